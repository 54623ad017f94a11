"""knarr's sagas through the running coordinator: from the starting event to the end."""

from typing import Any

from seedwork.messages import Envelope
from services.builder.contract import ImageBuildFailed
from services.deployer.contract import ReleaseDeployed, ReleaseObserveFailed
from services.saga_coordinator.sagas import DEPLOY, RELEASE, REMOVE
from services.source.contract import SourceFetched, SourceFetchFailed
from tests.services.saga_coordinator.conftest import APP_ID, Stage, eventually


def failed(kind: Any, **data: Any) -> Any:
    return kind.model_validate({**kind.EXAMPLE, **data})


async def test_a_push_becomes_a_release(stage: Stage) -> None:
    """Five commands in order, each made from the answers before it, under the lane's fence."""
    saga_id = await stage.start(DEPLOY)
    saga = await stage.until(saga_id, "SUCCEEDED")
    commands = stage.participants.commands
    assert [each.type for each in commands] == [
        "FetchSource",
        "BuildImage",
        "PublishImage",
        "DeployRelease",
        "ObserveRelease",
    ]
    assert {(each.fence, each.sagaattempt, each.correlationid, each.appid) for each in commands} == {
        (1, 1, saga_id, APP_ID)
    }
    assert commands[1].data["source_digest"] == "sha256:" + "ab" * 32
    assert commands[2].data["staged"] == "staging/0192f0c1-2345-7abc-8def-0123456789ab"
    assert commands[3].data["digest"] == "sha256:" + "cd" * 32
    assert commands[3].data["observed"]
    assert [step["state"] for step in saga["steps"]] == ["DONE"] * 5
    assert (saga["waiting_for"], saga["app"], saga["trigger"], saga["number"]) == (None, "shop", "push", 1)
    assert saga["commit"] == "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d"
    (event,) = await eventually(stage.heard)
    assert (event.type, event.data["saga"], event.correlationid) == ("DeploymentSucceeded", "deploy", saga_id)


async def test_a_release_that_fails_in_use_is_undone_step_by_step(stage: Stage) -> None:
    """The observation ends first, then the traffic moves back."""
    stage.participants.answers["ObserveRelease"] = lambda _: ReleaseObserveFailed.example()
    saga = await stage.until(await stage.start(DEPLOY), "COMPENSATED")

    assert [each.type for each in stage.participants.commands][5:] == [
        "StopObserving",
        "RollBackRelease",
        "UnpublishImage",
        "DiscardBuild",
        "DiscardSource",
    ]
    assert [step["state"] for step in saga["steps"]] == ["UNDONE"] * 5


async def test_a_deployment_that_changes_nothing_succeeds_as_unchanged(stage: Stage) -> None:
    """What could be taken back before can be taken back still: the release that the current one replaced."""
    stage.participants.answers["DeployRelease"] = deployed
    first = await stage.start(DEPLOY, number=1)
    await stage.until(first, "SUCCEEDED")
    second = await stage.start(DEPLOY, number=2)
    await stage.until(second, "SUCCEEDED")
    stage.participants.answers["DeployRelease"] = lambda command: deployed(
        command, number=2, replaced=None, unchanged=True
    )
    third = await stage.start(DEPLOY, number=3)
    saga = await stage.until(third, "SUCCEEDED")

    assert saga["reason"] == "unchanged"
    ended = [each for each in await stage.heard() if each.type == "DeploymentSucceeded"]
    assert [each.data["unchanged"] for each in ended] == [False, False, True]
    response = await stage.client.post(f"/sagas/{third}/compensate", json={})
    linked = await stage.until(response.json()["linked_id"], "SUCCEEDED")
    assert linked["trigger"] == "rollback"


def deployed(command: Envelope, **changes: object) -> ReleaseDeployed:
    """The answer of the deployer: release N replaces N - 1."""
    number = command.fence or 1
    said = {**ReleaseDeployed.EXAMPLE, "number": number, "replaced": number - 1 or None, **changes}
    return ReleaseDeployed.model_validate(said)


async def test_the_settings_of_an_app_reach_the_steps(stage: Stage) -> None:
    """The source reads them, the builder is the one that the app wants, and watched files reach the deployer."""
    digest = "sha256:" + "77" * 32
    stage.participants.answers["FetchSource"] = lambda _: SourceFetched.model_validate(
        {**SourceFetched.EXAMPLE, "watched_digest": digest}
    )
    settings = {"builder": "buildx", "dockerfile": "docker/Dockerfile", "watch": ["libs/**"]}
    await stage.until(await stage.start(DEPLOY, settings=settings), "SUCCEEDED")
    fetch, build, _, deploy = stage.participants.commands[:4]
    assert settings.items() <= fetch.data["settings"].items()
    assert build.data["builder"] == "buildx"
    assert deploy.data["watched_digest"] == digest


async def test_a_saga_has_the_commit_that_its_source_found(stage: Stage) -> None:
    """The id of a tag object was asked for: the builder, the release and what follows see the commit's id."""
    found = SourceFetched.EXAMPLE["commit"]
    saga_id = await stage.start(DEPLOY, commit="7" * 40)
    saga = await stage.until(saga_id, "SUCCEEDED")
    fetch, build, _, deploy = stage.participants.commands[:4]
    assert (fetch.data["commit"], build.data["commit"], deploy.data["commit"]) == ("7" * 40, found, found)
    assert saga["commit"] == found


async def test_the_end_of_a_release_says_of_which_kind_it_was(stage: Stage) -> None:
    """A rollback that a compensation started has no other event."""
    await stage.until(await stage.start(RELEASE, kind="rollback", rollback_to=1), "SUCCEEDED")
    (event,) = await eventually(stage.heard)
    assert (event.type, event.data["saga"], event.data["kind"]) == ("DeploymentSucceeded", "release", "rollback")


async def test_a_build_that_fails_is_undone(stage: Stage) -> None:
    """The reason, the step and the log tail are there."""
    stage.participants.answers["BuildImage"] = lambda _: failed(
        ImageBuildFailed, retryable=False, code="build_failed", message="It does not compile.", log_tail=("line 7",)
    )
    saga_id = await stage.start(DEPLOY)
    saga = await stage.until(saga_id, "COMPENSATED")
    assert [each.type for each in stage.participants.commands] == [
        "FetchSource",
        "BuildImage",
        "DiscardBuild",
        "DiscardSource",
    ]
    assert saga["reason"] == "failed"
    build = saga["steps"][1]
    assert (build["state"], build["attempts"], build["undo_attempts"]) == ("UNDONE", 1, 1)
    assert (build["error"]["code"], build["error"]["log_tail"]) == ("build_failed", ["line 7"])
    (event,) = await eventually(stage.heard)
    assert (event.type, event.data["step"], event.data["message"]) == (
        "DeploymentFailed",
        "build",
        "It does not compile.",
    )


async def test_a_passing_fault_is_tried_again(stage: Stage) -> None:
    """The second attempt succeeds."""
    stage.participants.answers["BuildImage"] = lambda command: (
        failed(ImageBuildFailed, retryable=True, code="unavailable", message="No network.")
        if command.sagaattempt == 1
        else DEPLOY.steps[1].ok.example()
    )
    saga_id = await stage.start(DEPLOY)
    saga = await stage.until(saga_id, "SUCCEEDED")
    assert saga["steps"][1]["attempts"] == 2


async def test_a_second_push_waits_for_the_first_and_a_third_replaces_it(stage: Stage) -> None:
    """The lane, from outside."""
    stage.participants.answers["BuildImage"] = lambda command: (
        None if command.correlationid == first else DEPLOY.steps[1].ok.example()
    )
    first = await stage.start(DEPLOY, saga_id="00000000-0000-7000-8000-000000000001", number=1)
    second = await stage.start(DEPLOY, number=2, commit="2" * 40)
    third = await stage.start(DEPLOY, number=3, commit="3" * 40)
    saga = await stage.until(second, "QUEUED")
    assert (saga["waiting_for"]["what"], saga["waiting_for"]["from"]) == ("lane", first)
    response = await stage.client.post(f"/sagas/{first}/cancel", json={"reason": "wrong branch"})
    assert response.status_code == 200
    assert (await stage.until(first, "COMPENSATED"))["reason"] == "cancelled"
    assert (await stage.until(third, "SUCCEEDED"))["fence"] == 2
    saga = await stage.until(second, "COMPENSATED")
    assert (saga["reason"], saga["superseded_by"]) == ("superseded", third)
    fetch = next(each for each in stage.participants.commands if each.correlationid == third)
    assert fetch.data["known_commits"] == {second: "2" * 40}


async def test_a_push_that_is_older_is_superseded_by_its_source(stage: Stage) -> None:
    """The source says by whom."""
    stage.participants.answers["FetchSource"] = lambda _: failed(
        SourceFetchFailed, retryable=False, code="superseded", message="Older.", superseded_by="s9"
    )
    saga = await stage.until(await stage.start(DEPLOY), "COMPENSATED")
    assert (saga["reason"], saga["superseded_by"]) == ("superseded", "s9")


async def test_a_config_change_publishes_a_reference_and_deploys(stage: Stage) -> None:
    """No source, no build."""
    saga_id = await stage.start(RELEASE, kind="config", config_version=7)
    saga = await stage.until(saga_id, "SUCCEEDED")
    assert [each.type for each in stage.participants.commands] == ["PublishImage", "DeployRelease", "ObserveRelease"]
    assert stage.participants.commands[0].data["staged"] is None
    assert stage.participants.commands[1].data["config_version"] == 7
    assert (saga["trigger"], saga["saga"]) == ("config", "release")


async def test_a_removed_app_is_retired_before_its_images_go(stage: Stage) -> None:
    """Forward only."""
    saga = await stage.until(await stage.start(REMOVE), "SUCCEEDED")
    assert [each.type for each in stage.participants.commands] == ["RetireApp", "DropImages"]
    assert saga["saga"] == "remove"


async def test_retry_of_an_undone_deployment_starts_a_linked_one(stage: Stage) -> None:
    """Same commit, same number, another id."""
    stage.participants.answers["BuildImage"] = lambda _: failed(ImageBuildFailed)
    saga_id = await stage.start(DEPLOY)
    await stage.until(saga_id, "COMPENSATED")
    del stage.participants.answers["BuildImage"]
    response = await stage.client.post(f"/sagas/{saga_id}/retry", json={"reason": "fixed"})
    assert response.status_code == 200
    linked_id = response.json()["linked_id"]
    assert response.headers["location"] == f"/sagas/{linked_id}"
    linked = await stage.until(linked_id, "SUCCEEDED")
    assert (linked["parent_id"], linked["trigger"], linked["number"]) == (saga_id, "retry", 1)
    assert linked["commit"] == "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d"


async def test_compensate_of_the_live_deployment_rolls_back_to_what_it_replaced(stage: Stage) -> None:
    """A linked release saga with the digest of before."""
    releases = iter((1, 2, 3))

    def deployed(command: Any) -> Any:
        number = next(releases)
        return failed(
            ReleaseDeployed, number=number, digest=command.data["digest"], replaced=number - 1 if number > 1 else None
        )

    def published(command: Any) -> Any:
        return failed(DEPLOY.steps[2].ok, digest=command.data["digest"])

    def built(command: Any) -> Any:
        return failed(DEPLOY.steps[1].ok, digest="sha256:" + command.data["commit"][0] * 64)

    stage.participants.answers |= {"DeployRelease": deployed, "PublishImage": published, "BuildImage": built}
    stage.participants.answers["FetchSource"] = lambda command: failed(
        DEPLOY.steps[0].ok, commit=command.data["commit"]
    )
    first = await stage.start(DEPLOY, number=1, commit="1" * 40)
    await stage.until(first, "SUCCEEDED")
    refused = await stage.client.post(f"/sagas/{first}/compensate", json={})
    assert refused.status_code == 409
    assert "nothing to go back to" in refused.json()["detail"]
    second = await stage.start(DEPLOY, number=2, commit="2" * 40)
    await stage.until(second, "SUCCEEDED")
    response = await stage.client.post(f"/sagas/{second}/compensate", json={"reason": "slow"})
    linked = await stage.until(response.json()["linked_id"], "SUCCEEDED")
    assert (linked["saga"], linked["trigger"], linked["parent_id"]) == ("release", "rollback", second)
    last = stage.participants.commands[-2]
    assert (last.data["kind"], last.data["rollback_to"], last.data["digest"]) == ("rollback", 1, "sha256:" + "1" * 64)
    again = await stage.client.post(f"/sagas/{second}/compensate", json={})
    assert (again.status_code, again.json()["state"]) == (409, "SUCCEEDED")


async def test_the_audit_finds_nothing_whatever_the_state(stage: Stage) -> None:
    """Running, waiting and paused sagas all have something that will move them."""
    stage.participants.answers["BuildImage"] = lambda _: None
    first = await stage.start(DEPLOY, number=1)
    await stage.start(DEPLOY, number=2)

    async def building() -> bool:
        return any(each.type == "BuildImage" for each in stage.participants.commands)

    await eventually(building)
    assert await stage.app.state.audit.look() == []
    await stage.client.post(f"/sagas/{first}/pause", json={})
    assert await stage.app.state.audit.look() == []
