"""How long a deployment waits for what is away before it asks a person, in each version of its definition."""

import random

import pytest

from seedwork.saga import Retry
from services.saga_coordinator.sagas import DEFINITIONS

DRAWN = 2000


def outlives(retry: Retry, seconds: float) -> float:
    """The share of sagas whose last attempt comes after an outage that began with their first one."""
    draw = random.Random(4711).random  # noqa: S311  no secret
    waits = (sum(retry.wait_ms(tries, draw()) for tries in range(1, retry.attempts)) for _ in range(DRAWN))
    return sum(each > seconds * 1000 for each in waits) / DRAWN


@pytest.mark.parametrize("key", ["deploy@3", "release@3", "deploy@4", "release@4", "rebase@1"])
def test_an_outage_of_half_a_minute_needs_nobody_and_one_of_a_minute_seldom(key: str) -> None:
    """Forward and in the undo, in every step (ADR 20 and 21)."""
    for step in DEFINITIONS[key].steps:
        for retry in (step.retry, step.undo_retry):
            assert outlives(retry, 30) > 0.98
            assert outlives(retry, 60) > 0.8


@pytest.mark.parametrize(("version", "attempts"), [(1, (5, 8)), (2, (5, 12)), (3, (9, 12)), (4, (9, 12))])
@pytest.mark.parametrize("name", ["deploy", "release"])
def test_a_saga_keeps_the_patience_that_it_began_with(name: str, version: int, attempts: tuple[int, int]) -> None:
    """With another number its log would not lead to its row."""
    for step in DEFINITIONS[f"{name}@{version}"].steps:
        assert (step.retry.attempts, step.undo_retry.attempts) == attempts
