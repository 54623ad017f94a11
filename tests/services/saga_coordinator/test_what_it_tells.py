"""The coordinator says at the start what it will send: a broker wants the schema of each type before."""

from pathlib import Path

import pytest

from seedwork.saga import Saga
from seedwork.testing.saga import Scene
from services.saga_coordinator.app import create_app
from services.saga_coordinator.sagas import DEPLOY, REBASE, RELEASE, REMOVE
from services.saga_coordinator.settings import CoordinatorSettings


@pytest.mark.parametrize("definition", [DEPLOY, RELEASE, REBASE, REMOVE], ids=lambda each: each.name)
def test_every_message_that_a_saga_sends_is_among_them(definition: Saga, tmp_path: Path) -> None:
    """Forward to the end, and undone from its last step."""
    scene, *before, last = Scene(definition), *definition.steps
    for saga, end in (("succeeds", scene.ok), ("fails", scene.fail)):
        scene.start(saga)
        for step in before:
            scene.ok(step.name, saga)
        end(last.name, saga)
    if not definition.forward_only:
        for step in reversed(definition.steps):
            scene.undone(step.name, "fails")
    sent = {*scene.sent("succeeds"), *scene.sent("fails")}
    undone = [step for step in definition.steps if step.undo]
    assert len(sent) >= len(definition.steps) + len(undone) + 1
    assert sent <= {
        each.__name__ for each in create_app(CoordinatorSettings(home=tmp_path)).state.service.message_types()
    }
