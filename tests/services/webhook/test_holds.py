"""Holds: after a rollback, or when an operator says so, pushes are recorded and not deployed."""

import asyncio
from typing import Any

import pytest

from seedwork.messages import envelope, new_id
from services.deployer.contract import ReleaseRequested
from services.saga_coordinator.contract import DeploymentSucceeded
from tests.services.webhook.conftest import BOUND_S, Knarr
from tests.services.webhook.github_payloads import COMMIT, Webhook, push
from tests.services.webhook.test_poller import MAIN, look, row_of

NEXT = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"


async def rolled_back(knarr: Knarr, app_id: str, saga_id: str | None = None) -> str:
    """The deployer publishes that a rollback was requested; returned when the webhook has handled it."""
    asked = ReleaseRequested(
        app="shop", kind="rollback", digest="sha256:" + "cd" * 32, rollback_to=3, requested_by="ada"
    )
    saga_id = saga_id or new_id()
    await knarr.bus.publish([envelope(asked, source="deployer", saga_id=saga_id, app_id=app_id)])
    return saga_id


async def ended(knarr: Knarr, app_id: str, saga_id: str, kind: str) -> None:
    """The coordinator publishes that a release has ended."""
    event = DeploymentSucceeded(app="shop", saga="release", kind=kind)
    await knarr.bus.publish([envelope(event, source="saga_coordinator", saga_id=saga_id, app_id=app_id)])


async def auto_deploy(knarr: Knarr, name: str = "shop", *, on: bool) -> dict[str, Any]:
    """What the app shows, once it is on or off."""
    async with asyncio.timeout(BOUND_S):
        while True:
            shown: dict[str, Any] = (await knarr.client.get(f"/apps/{name}")).json()["auto_deploy"]
            if shown["on"] is on:
                return shown
            await asyncio.sleep(0.01)


async def test_a_push_after_a_rollback_is_held_and_says_how_to_release_it(knarr: Knarr) -> None:
    """The delivery and the app say so; nothing is deployed."""
    app = await knarr.make_app()
    await rolled_back(knarr, app["id"])
    shown = await auto_deploy(knarr, on=False)
    assert (shown["by"], shown["why"], shown["waiting_commit"]) == ("ada", "rollback to release 3", None)
    answer = (await knarr.send(Webhook(push()))).json()
    assert (answer["status"], answer["deployments"]) == ("held", [])
    assert "knarr apps release shop" in answer["reason"]
    (delivery,) = await knarr.deliveries()
    assert (delivery["status"], delivery["reason"]) == ("held", answer["reason"])
    assert (await auto_deploy(knarr, on=False))["waiting_commit"] == COMMIT
    assert [each for each in knarr.told if each.type == "DeploymentRequested"] == []


async def test_a_poll_of_a_held_app_deploys_nothing_until_it_is_released(knarr: Knarr) -> None:
    """The commit that waits is named; the next poll after the release deploys it."""
    await knarr.make_app()
    assert (await knarr.client.post("/apps/shop/hold", json={"why": "demo"})).json()["auto_deploy"]["on"] is False
    knarr.refs.tips[MAIN] = COMMIT
    await look(knarr)
    assert (await auto_deploy(knarr, on=False))["waiting_commit"] == COMMIT
    released = (await knarr.client.post("/apps/shop/release")).json()
    assert (released["auto_deploy"]["on"], released["waiting_commit"]) == (True, COMMIT)
    assert (await row_of(knarr)).next_poll_ms <= knarr.clock.now_ms()
    await look(knarr)
    (told,) = await knarr.events("DeploymentRequested", 1)
    assert (told.data["commit"], told.data["trigger"]) == (COMMIT, "poll")


async def test_a_rollback_does_not_bring_the_commit_back_that_is_the_tip(knarr: Knarr) -> None:
    """The tip was deployed and rolled back: a release of the hold alone deploys nothing."""
    app = await knarr.make_app()
    await knarr.send(Webhook(push()))
    knarr.refs.tips[MAIN] = COMMIT
    await rolled_back(knarr, app["id"])
    await auto_deploy(knarr, on=False)
    await look(knarr)
    assert (await knarr.client.post("/apps/shop/release")).json()["waiting_commit"] is None
    await look(knarr)
    await knarr.events("DeploymentRequested", 1)


async def test_a_deployment_by_name_is_not_held(knarr: Knarr) -> None:
    """`knarr deploy --app shop --ref main`, and a delivery that is sent again on purpose."""
    await knarr.make_app()
    await knarr.client.post("/apps/shop/hold")
    knarr.refs.tips[MAIN] = NEXT
    await knarr.send(Webhook(push()))
    assert (await knarr.client.post("/apps/shop/deployments", json={"ref": "main"})).status_code == 202
    (delivery,) = await knarr.deliveries()
    assert (await knarr.client.post(f"/deliveries/{delivery['id']}/redeliver")).status_code == 202
    assert [each.data["commit"] for each in await knarr.events("DeploymentRequested", 2)] == [NEXT, COMMIT]
    assert (await knarr.deliveries())[0]["status"] == "accepted"
    assert (await auto_deploy(knarr, on=False))["on"] is False


async def test_the_end_of_the_same_rollback_does_not_hold_an_app_again(knarr: Knarr) -> None:
    """It was released while the rollback ran."""
    app = await knarr.make_app()
    saga_id = await rolled_back(knarr, app["id"])
    await auto_deploy(knarr, on=False)
    await knarr.client.post("/apps/shop/release")
    await ended(knarr, app["id"], saga_id, "rollback")
    await knarr.make_app("second")
    await ended(knarr, (await row_of(knarr, "second")).app_id, new_id(), "rollback")
    await auto_deploy(knarr, "second", on=False)
    assert (await auto_deploy(knarr, on=True))["on"] is True


async def test_a_rollback_that_was_undone_ends_its_hold(knarr: Knarr) -> None:
    """The release that should go is still live; the hold of an operator stands."""
    app = await knarr.make_app()
    saga_id = await rolled_back(knarr, app["id"])
    await auto_deploy(knarr, on=False)
    await knarr.end_saga(app["id"], saga_id, saga="release", reason="failed")
    await auto_deploy(knarr, on=True)
    await knarr.client.post("/apps/shop/hold", json={"why": "freeze"})
    await knarr.end_saga(app["id"], saga_id, saga="release", reason="failed")
    await rolled_back(knarr, (await knarr.make_app("other", repository="acme/other"))["id"])
    await auto_deploy(knarr, "other", on=False)
    assert (await auto_deploy(knarr, on=False))["why"] == "freeze"


async def test_a_compensated_release_holds_its_app(knarr: Knarr) -> None:
    """The coordinator starts that rollback itself, so that its end is the first news."""
    app = await knarr.make_app()
    await ended(knarr, app["id"], new_id(), "rollback")
    assert (await auto_deploy(knarr, on=False))["why"] == "compensated release"


@pytest.mark.parametrize("kind", ["config", "scale", "restart"])
async def test_other_releases_hold_nothing(knarr: Knarr, kind: str) -> None:
    """Only a rollback takes code back."""
    app = await knarr.make_app()
    await ended(knarr, app["id"], new_id(), kind)
    await rolled_back(knarr, (await knarr.make_app("other", repository="acme/other"))["id"])
    await auto_deploy(knarr, "other", on=False)
    assert (await auto_deploy(knarr, on=True))["on"] is True


async def test_a_hold_that_stands_keeps_its_reason(knarr: Knarr) -> None:
    """The first one counts."""
    await knarr.make_app()
    first = (await knarr.client.post("/apps/shop/hold", json={"why": "freeze"})).json()["auto_deploy"]
    assert first["why"] == "freeze"
    assert (await knarr.client.post("/apps/shop/hold", json={"why": "x"})).json()["auto_deploy"] == first
