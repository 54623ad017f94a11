"""The lines at the end of `make test-stack`: what is counted, and for whom."""

from types import SimpleNamespace

import pytest

from tests.stack.servers import Server
from tests.stack.what_ran import lines_of, ran_against


def report(*servers: str, when: str = "call", outcome: str = "passed") -> SimpleNamespace:
    """As pytest has it."""
    return SimpleNamespace(
        when=when,
        outcome=outcome,
        failed=outcome == "failed",
        skipped=outcome == "skipped",
        user_properties=[("summary", "of something else"), ("servers", list(servers))],
    )


async def four() -> str:
    return "4.0"


async def away() -> str:
    raise ConnectionRefusedError("nobody listens")


CAKE = Server("cake", ("CAKE_URL", "CAKE_ADMIN_URL"), four)


def test_a_test_counts_once_for_each_of_its_servers() -> None:
    """However many of a server's variables it wants."""
    reports = [report("CAKE_URL", "CAKE_ADMIN_URL", "TEA_URL"), report("CAKE_URL", outcome="failed")]
    tea = Server("tea", ("TEA_URL",), four)
    said = [" ".join(line.split()) for line in lines_of([CAKE, tea], ran_against(reports))]
    assert said == ["cake 4.0: 1 passed, 1 failed", "tea 4.0: 1 passed"]


def test_a_fixture_that_fails_is_a_failure() -> None:
    """And one that ends well is no test of its own."""
    reports = [report("CAKE_URL", when="setup", outcome="failed"), report("CAKE_URL", when="teardown")]
    (line,) = lines_of([CAKE], ran_against(reports))
    assert line.endswith("4.0: 1 failed")


@pytest.mark.parametrize("reports", [[], [report("TEA_URL")]])
def test_a_server_without_a_test_is_not_run(reports: list[SimpleNamespace]) -> None:
    """Nobody asks it anything."""
    (line,) = lines_of([Server("cake", ("CAKE_URL",), away)], ran_against(reports))
    assert line.split(maxsplit=1) == ["cake", "not run"]


def test_a_server_that_has_gone_is_told() -> None:
    """In place of its version."""
    (line,) = lines_of([Server("cake", ("CAKE_URL",), away)], ran_against([report("CAKE_URL")]))
    assert "does not answer: nobody listens: 1 passed" in line
