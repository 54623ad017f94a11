"""The table that people read, and the flame graph beside it."""

import re

import pytest

from bench.figures import Figure, percentile, shown, table
from bench.flame import svg, tree


@pytest.mark.parametrize(
    ("values", "target", "verdict"),
    [
        ((2.0, 3.0, 9.0), "<= 3", "holds"),
        ((2.0, 3.1, 9.0), "<= 3", "missed"),
        ((3100.0, 2900.0, 3000.0), ">= 3000", "holds"),
        ((2999.0,), ">= 3000", "missed"),
        ((1.0,), "", ""),
    ],
)
def test_the_median_of_the_runs_holds_a_target_or_misses_it(
    values: tuple[float, ...], target: str, verdict: str
) -> None:
    """Not the best of them."""
    assert Figure(group="g", name="n", values=values, unit="ms", target=target).verdict == verdict


def test_the_table_has_range_and_load_beside_each_figure() -> None:
    """A group's name stands above its figures, once."""
    figures = [
        Figure(group="Round trip", name="p50", values=[1.0, 2.0, 3.0], unit="ms", target="<= 3", load=1.5),
        Figure(group="Round trip", name="p99", values=[1234.0], unit="ms", load=0.5),
    ]
    lines = table(figures).splitlines()
    assert lines[2] == "| **Round trip** | | | | | | |"
    assert lines[3] == "| p50 | 2.00 | 1.00 … 3.00 | ms | ≤ 3 | holds | 1.5 |"
    assert lines[4] == "| p99 | 1,234 |  | ms |  |  | 0.5 |"


def test_a_percentile_is_a_value_that_was_measured() -> None:
    """By the nearest rank."""
    values = [float(each) for each in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7.0], 0.99)) == (50.0, 99.0, 7.0)


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (0.123, "0.12"), (12.34, "12.3"), (1234.5, "1,234")])
def test_a_figure_has_the_digits_that_mean_something(value: float, text: str) -> None:
    """About three."""
    assert shown(value) == text


def test_a_flame_graph_shows_shares_and_no_folder_of_the_machine() -> None:
    """Stacks are merged from their roots; imports and waiting threads are left out."""
    stacks = [
        "main (/home/somebody/knarr/app.py:1);decide (/home/somebody/libs/seedwork/decide.py:7) 30",
        "main (/home/somebody/knarr/app.py:9);write (/home/somebody/libs/seedwork/outbox.py:2) 10",
        "main (/home/somebody/knarr/app.py:1);_find_and_load (<frozen importlib._bootstrap>:1) 50",
        "run (threading.py:1);_connection_worker_thread (aiosqlite/core.py:5) 500",
    ]
    picture = svg(tree(stacks), "a test")
    titles = re.findall("<title>(.*?)</title>", picture)
    assert titles == [
        "all: 100.0%",
        "main (knarr/app.py): 100.0%",
        "decide (seedwork/decide.py): 75.0%",
        "write (seedwork/outbox.py): 25.0%",
    ]
    assert "somebody" not in picture
