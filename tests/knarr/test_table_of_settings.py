"""The table of the README: one row a setting, replaced by that setting's next run only."""

import datetime as dt

from tests.e2e.table import BEGIN, END, row, written

TODAY = dt.date(2026, 11, 21)
PAGE = f"# knarr\n\n{BEGIN}\n{END}\n\n## Next\n"


def test_a_row_says_setting_servers_and_outcomes() -> None:
    """What nobody had is not in it."""
    line = row("compose", "MySQL 9", {"passed": 3, "failed": 0, "not run": 2}, TODAY)
    assert line.endswith("| MySQL 9 | 3 passed, 2 not run | 2026-11-21 |")


def test_rows_of_other_settings_stay_and_the_own_one_is_replaced() -> None:
    """In the same order whoever ran first, and with nothing else of the page changed."""
    first = written(PAGE, "compose", row("compose", "MySQL 8", {"passed": 1}, TODAY))
    second = written(first, "laptop", row("laptop", "none", {"passed": 2}, TODAY))
    third = written(second, "compose", row("compose", "MySQL 9", {"passed": 3}, TODAY))
    assert "MySQL 8" not in third
    assert third.index("2 passed") < third.index("MySQL 9")
    assert third.count("| Setting |") == 1
    assert third.startswith("# knarr\n\n")
    assert third.endswith(f"{END}\n\n## Next\n")
