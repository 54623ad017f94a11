"""The saga that puts a release onto a newer run image."""

from typing import Any

from seedwork.messages import Envelope
from services.builder.contract import ImageBuildFailed, ImageBuilt, ImageRebased
from services.deployer.contract import ReleaseDeployed, ReleaseDeployFailed
from services.registry.contract import ImagePublished
from services.saga_coordinator.sagas import DEPLOY, REBASE
from tests.services.saga_coordinator.conftest import Stage

BUILT, REBASED = "sha256:" + "b" * 64, "sha256:" + "e" * 64
COMMIT = "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d"


def answered(kind: Any, **changes: Any) -> Any:
    return kind.model_validate({**kind.EXAMPLE, **changes})


def play(stage: Stage) -> None:
    """Digests and numbers that fit together."""
    numbers = iter(range(1, 10))

    def deployed(command: Envelope) -> Any:
        number = next(numbers)
        return answered(
            ReleaseDeployed, number=number, digest=command.data["digest"], replaced=number - 1 if number > 1 else None
        )

    stage.participants.answers |= {
        "BuildImage": lambda _: answered(ImageBuilt, digest=BUILT),
        "RebaseImage": lambda command: answered(ImageRebased, digest=REBASED, commit=command.data["commit"]),
        "PublishImage": lambda command: answered(ImagePublished, digest=command.data["digest"]),
        "DeployRelease": deployed,
    }


async def test_a_rebase_publishes_deploys_and_observes_what_the_builder_made(stage: Stage) -> None:
    """No source, no build; the commit of the release stays."""
    play(stage)
    saga = await stage.until(await stage.start(REBASE, digest=BUILT, commit=COMMIT), "SUCCEEDED")
    assert (saga["saga"], saga["trigger"], saga["commit"]) == ("rebase", "rebase", COMMIT)
    rebase, publish, deploy, observe = stage.participants.commands
    assert (rebase.type, rebase.data["digest"]) == ("RebaseImage", BUILT)
    assert (publish.data["digest"], publish.data["staged"]) == (REBASED, ImageRebased.EXAMPLE["repository"])
    assert (deploy.data["kind"], deploy.data["digest"], deploy.data["commit"]) == ("rebase", REBASED, COMMIT)
    assert deploy.data["observed"]
    assert observe.type == "ObserveRelease"


async def test_a_rebase_takes_what_is_live_when_its_turn_comes(stage: Stage) -> None:
    """A push that was deployed after the request is not set back."""
    play(stage)
    await stage.until(await stage.start(DEPLOY, number=1), "SUCCEEDED")
    older = {"digest": "sha256:" + "0" * 64, "commit": "0" * 40}
    saga = await stage.until(await stage.start(REBASE, **older), "SUCCEEDED")
    rebase = next(each for each in stage.participants.commands if each.type == "RebaseImage")
    assert (rebase.data["digest"], rebase.data["commit"]) == (BUILT, COMMIT)
    assert saga["commit"] == COMMIT


async def test_a_rebase_whose_release_does_not_start_is_undone_step_by_step(stage: Stage) -> None:
    """As any other deployment."""
    play(stage)
    stage.participants.answers["DeployRelease"] = lambda _: ReleaseDeployFailed.example()
    saga = await stage.until(await stage.start(REBASE, digest=BUILT), "COMPENSATED")
    assert saga["reason"] == "failed"
    undone = [each.type for each in stage.participants.commands[3:]]
    assert undone == ["RollBackRelease", "UnpublishImage", "DiscardBuild"]


async def test_a_rebase_that_changes_nothing_says_so(stage: Stage) -> None:
    """The run image is the one that the release stands on."""
    play(stage)
    stage.participants.answers["DeployRelease"] = lambda _: answered(ReleaseDeployed, digest=BUILT, unchanged=True)
    saga = await stage.until(await stage.start(REBASE, digest=BUILT), "SUCCEEDED")
    assert saga["reason"] == "unchanged"


async def test_a_rebased_release_is_as_old_as_its_deployment_and_goes_back_to_it(stage: Stage) -> None:
    """A retry of an older push stays refused, and `compensate` brings the image of before."""
    play(stage)
    built = stage.participants.answers["BuildImage"]
    stage.participants.answers["BuildImage"] = lambda _: ImageBuildFailed.example()
    older = await stage.start(DEPLOY, number=1)
    await stage.until(older, "COMPENSATED")
    stage.participants.answers["BuildImage"] = built
    await stage.until(await stage.start(DEPLOY, number=2), "SUCCEEDED")
    rebase = await stage.start(REBASE, digest="sha256:" + "0" * 64)
    await stage.until(rebase, "SUCCEEDED")
    refused = await stage.client.post(f"/sagas/{older}/retry", json={})
    assert (refused.status_code, "older than what is live" in refused.text) == (409, True)
    back = (await stage.client.post(f"/sagas/{rebase}/compensate", json={})).json()["linked_id"]
    await stage.until(back, "SUCCEEDED")
    deploy = next(
        each for each in stage.participants.commands if each.correlationid == back and each.type == "DeployRelease"
    )
    assert (deploy.data["rollback_to"], deploy.data["kind"]) == (1, "rollback")
