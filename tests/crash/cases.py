"""Every crash that is tried: each point of the table, with each label that passes it, derived from the definitions.

A stage that is added to a saga adds its crashes by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast, get_type_hints

from seedwork.saga import Saga, Step
from services.saga_coordinator import sagas


@dataclass(frozen=True, slots=True)
class Case:
    """One crash, and another one while what was begun is carried on.

    Points are as in `KNARR_CRASH_AT`: `job.after_effect/BuildImage`.
    """

    scene: str
    point: str
    again: str = ""
    """Empty: the same point, which is passed again."""

    @property
    def second(self) -> str:
        """Where it is killed during the recovery."""
        return self.again or self.point

    @property
    def name(self) -> str:
        """The test's id."""
        return f"{self.scene}-{self.point}"


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A command and its answer."""

    command: str
    answer: str


def _forward(step: Step) -> _Exchange:
    return _Exchange(get_type_hints(step.send)["return"].__name__, step.ok.__name__)


def _undo(step: Step) -> _Exchange:
    assert step.undo is not None
    assert step.undone is not None
    return _Exchange(type(step.undo(cast("Any", None))).__name__, step.undone.__name__)


def _to_success(scene: str, saga: Saga) -> Iterator[Case]:
    """All steps of a saga that succeeds."""
    yield from _around(scene, saga.starts_on.__name__, [_forward(step) for step in saga.steps], "DeploymentSucceeded")


def _undoing(scene: str, saga: Saga, *, at: str) -> Iterator[Case]:
    """The failure of the step `at`, and all undos."""
    steps = saga.steps[: saga.positions[at] + 1]
    failing = _Exchange(_forward(steps[-1]).command, steps[-1].failed.__name__)
    yield from _around(scene, None, [failing, *(_undo(step) for step in reversed(steps))], "DeploymentFailed")


def _around(scene: str, start: str | None, exchanges: list[_Exchange], end: str) -> Iterator[Case]:
    for each in exchanges:
        yield Case(scene, f"inbox.before_commit/{each.command}")
        yield Case(scene, f"inbox.after_commit/{each.command}")
        yield Case(scene, f"job.before_effect/{each.command}")
        yield Case(scene, f"job.after_effect/{each.command}")
        # Committed once, never again: the recovery goes on with what follows.
        yield Case(scene, f"job.after_commit/{each.command}", f"outbox.before_publish/{each.answer}")
    inputs = [*([start] if start else []), *(each.answer for each in exchanges)]
    for message in inputs:
        yield Case(scene, f"coordinator.before_commit/{message}")
        yield Case(scene, f"coordinator.after_commit/{message}")
    for message in [*inputs, *(each.command for each in exchanges), end]:
        yield Case(scene, f"outbox.before_publish/{message}")
        yield Case(scene, f"outbox.after_publish/{message}")
    yield Case(scene, f"inbox.before_commit/{end}")
    yield Case(scene, f"inbox.after_commit/{end}")


def _both(scene: str, label: str, *services: str) -> Iterator[Case]:
    for service in services:
        yield Case(scene, f"{service}.before_commit/{label}")
        yield Case(scene, f"{service}.after_commit/{label}")


def _asked(scene: str, trigger: str) -> Iterator[Case]:
    """What is committed is found there by its key when it is asked for again."""
    yield Case(scene, f"webhook.before_commit/{trigger}")
    yield Case(scene, f"webhook.after_commit/{trigger}", "coordinator.before_commit/DeploymentRequested")


CASES: tuple[Case, ...] = (
    *_both("push", "push", "webhook"),
    *_to_success("push", sagas.DEPLOY),
    *_undoing("failing-push", sagas.DEPLOY, at="deploy"),
    *_undoing("push-that-ends", sagas.DEPLOY, at="observe"),
    *_to_success("restart", sagas.RELEASE),
    *_undoing("failing-change", sagas.RELEASE, at="deploy"),
    *_to_success("removal", sagas.REMOVE),
    *_asked("request", "api"),
    *_asked("upload", "upload"),
    *_asked("polled-push", "poll"),
    *_both("cancelled-push", "cancel", "coordinator"),
    *_both("taken-back", "compensate", "coordinator"),
    Case("push-tried-again", "coordinator.before_commit/timer retry"),
    Case("push-tried-again", "coordinator.after_commit/timer retry", "outbox.before_publish/PublishImage"),
)
