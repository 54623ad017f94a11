"""A release is observed after the traffic has moved; and a deployment that changes nothing touches nothing."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from ocistore.layout import OciLayout
from seedwork.messages import envelope, new_id
from seedwork.unit_of_work import Database
from services.deployer import apps, drifts, handlers, observing, releases
from services.deployer.contract import ObserveRelease, ReleaseObserved
from services.deployer.deployer import Observation
from services.deployer.errors import FailsInUse, Undone
from services.deployer.ports import Drift, InstanceState, Traffic
from services.webhook.contract import AppChanged, DeploymentRequested
from tests.services.deployer.conftest import Shelf, eventually
from tests.services.deployer.test_handlers import World

QUIET = Traffic(requests=1000, errors=0)


class Observed(World):
    """One app whose releases are observed."""

    window_s = 0.6

    async def observe(self, saga_id: str) -> ReleaseObserved:
        """Deliver `ObserveRelease`, and commit what goes with its outcome."""
        work = replace(self.work(saga_id), step="observe")
        deployer = replace(self.deployer, observation=Observation(default_s=self.window_s, errors=3, start_s=5))
        answer = await observing.observe_release(ObserveRelease(app="shop"), work=work, deployer=deployer)
        await self.commit(work)
        return answer

    async def two_releases(self) -> tuple[str, str]:
        """The first one is warm, the second one has the traffic."""
        first, second = new_id(), new_id()
        await self.deploy(await self.shelf.image(version="one"), first, observed=True)
        await self.observe_nothing(first)
        await self.deploy(await self.shelf.image(version="two"), second, observed=True)
        return first, second

    async def observe_nothing(self, saga_id: str) -> None:
        """End the observation of a release at once."""
        before, self.window_s = self.window_s, 0.0
        await self.observe(saga_id)
        self.window_s = before

    def crash(self, saga_id: str, *, restarts: int = 1, state: InstanceState = "up") -> None:
        """An instance of that saga has ended by itself."""
        unit = self.runtime._units[saga_id]
        unit.instances = [
            replace(each, restarts=restarts, state=state, note="web.1 exited with status 3", log_tail=("no queue",))
            for each in unit.instances
        ]

    def running(self) -> set[str]:
        """Sagas that have instances."""
        return set(self.runtime._units)


@pytest.fixture
def world(db: Database, images: OciLayout, shelf: Shelf) -> Observed:
    return Observed(db, images, shelf)


# ── the window ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_release_before_keeps_running_until_the_window_is_over(world: Observed) -> None:
    """It is warm: an undo moves the traffic back at once."""
    first, second = await world.two_releases()
    assert world.running() == {first, second}

    answer = await world.observe(second)
    assert (answer.number, answer.ended_early) == (2, "")
    assert answer.observed_s == pytest.approx(world.window_s, abs=0.1)
    assert world.running() == {second}


async def test_without_a_window_the_release_before_stops_at_once(world: Observed) -> None:
    """0 s: off."""
    _, second = await world.two_releases()
    world.window_s = 0.0
    assert (await world.observe(second)).observed_s == 0.0
    assert world.running() == {second}


async def test_an_app_may_have_a_window_of_its_own(world: Observed) -> None:
    """`observe_s` of the app; None is the platform's default again."""
    _, second = await world.two_releases()
    event = AppChanged(app="shop", observe_s=0.0)
    message = envelope(event, source="webhook", saga_id=new_id(), app_id=world.app_id, app="shop")
    await world.db.write(lambda conn: handlers.on_app(event, message, conn))
    world.window_s = 3600.0
    assert (await world.observe(second)).observed_s == 0.0


async def test_a_restart_of_the_service_does_not_begin_the_window_again(world: Observed) -> None:
    """Its end is in the database."""
    _, second = await world.two_releases()
    world.window_s = 3600.0
    interrupted = asyncio.create_task(world.observe(second))
    until_ms = await eventually(lambda: world.db.read(lambda conn: releases.observing_until(conn, second)))
    interrupted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await interrupted
    world.window_s = 7200.0
    again = asyncio.create_task(world.observe(second))
    await asyncio.sleep(0)
    assert await world.db.read(lambda conn: releases.observing_until(conn, second)) == until_ms
    again.cancel()


async def test_a_newer_request_ends_the_window(world: Observed) -> None:
    """A push does not wait; an older one changes nothing."""
    older = new_id()
    _, second = await world.two_releases()
    world.window_s = 3600.0
    await _requested(world, older)
    observing_it = asyncio.create_task(world.observe(second))
    await _requested(world, new_id())
    answer = await observing_it
    assert answer.ended_early == "a newer release was requested"
    assert world.running() == {second}
    newest = await world.db.read(lambda conn: apps.newest_saga(conn, world.app_id))
    assert newest is not None
    assert newest > second


async def _requested(world: World, saga_id: str) -> None:
    event = DeploymentRequested.model_validate(DeploymentRequested.EXAMPLE)
    message = envelope(event, source="webhook", saga_id=saga_id, app_id=world.app_id, app="shop")
    await world.db.write(lambda conn: handlers.on_requested(event, message, conn))


# ── what fails it ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", ["up", "crashed"])
async def test_an_instance_that_ends_fails_the_release(world: Observed, state: InstanceState) -> None:
    """Also where it has been started again already; its last lines are in the verdict."""
    first, second = await world.two_releases()
    world.crash(second, state=state)
    with pytest.raises(FailsInUse, match=r"web\.1 ended soon after its start") as caught:
        await world.observe(second)
    assert caught.value.log_tail == ("no queue",)
    assert world.running() == {first, second}

    await world.undo(second)
    assert world.runtime.serving == {world.app_id: first}
    assert world.running() == {first}


async def test_an_instance_of_the_release_before_may_end(world: Observed) -> None:
    """It has no traffic any more."""
    first, second = await world.two_releases()
    world.crash(first)
    assert (await world.observe(second)).number == 2


async def test_errors_fail_a_release_where_the_one_before_had_none(world: Observed) -> None:
    """Above the threshold."""
    first, second = await world.two_releases()
    world.runtime.traffics = {first: QUIET, second: Traffic(requests=20, errors=3)}
    with pytest.raises(FailsInUse, match=r"3 of 20 requests .* release 1 had 0 of 1000"):
        await world.observe(second)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (QUIET, Traffic(requests=20, errors=2)),
        (QUIET, Traffic(requests=31, errors=3)),
        (Traffic(requests=100, errors=2), Traffic(requests=20, errors=20)),
        (None, Traffic(requests=20, errors=20)),
    ],
    ids=["below the threshold", "a small share", "as before", "nothing to compare with"],
)
async def test_errors_that_prove_nothing_do_not_fail_a_release(
    world: Observed, before: Traffic | None, after: Traffic
) -> None:
    """Few errors, or an app that had them before."""
    first, second = await world.two_releases()
    world.runtime.traffics = {second: after, **({first: before} if before else {})}
    assert (await world.observe(second)).number == 2


async def test_a_release_that_lost_the_traffic_is_not_observed(world: Observed) -> None:
    """Nothing of what serves now is stopped."""
    first, second = await world.two_releases()
    await world.undo(second)
    with pytest.raises(Undone):
        await world.observe(second)
    assert world.running() == {first}


# ── unchanged ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_same_image_config_and_formation_touch_nothing(world: Observed) -> None:
    """No release, no instance; this saga's reference to the image ends, since the release has its own."""
    image, first, second = await world.shelf.image(), new_id(), new_id()
    await world.deploy(image, first, observed=True)
    answer = await world.deploy(image, second, observed=True, commit="2" * 40)

    assert (answer.unchanged, answer.number, answer.replaced) == (True, 1, None)
    assert await world.states() == ["live"]
    assert world.running() == {first}
    retired = [each for each in await world.sent() if each.type == "ReleaseRetired"]
    assert [(each.data["release_saga_id"], each.data["digest"]) for each in retired] == [(second, image.digest)]
    observed = await world.observe(second)
    assert (observed.number, observed.ended_early) == (1, "nothing changed")


async def test_the_undo_of_an_unchanged_deployment_leaves_the_current_release(world: Observed) -> None:
    """It is another saga's."""
    image, first, second = await world.shelf.image(), new_id(), new_id()
    await world.deploy(image, first, observed=True)
    await world.deploy(image, second, observed=True)
    await world.undo(second)

    assert world.runtime.serving == {world.app_id: first}
    assert [each for each in await world.states() if each] == ["undone", "live"]
    with pytest.raises(Undone):
        await world.deploy(image, second, observed=True)


@pytest.mark.parametrize("change", ["image", "config", "formation", "watched", "restart"])
async def test_each_difference_is_a_change(world: Observed, change: str) -> None:
    """A restart is wanted although nothing differs."""
    image = await world.shelf.image(version="one")
    await world.deploy(image, observed=True)
    command: dict[str, Any] = {}
    if change == "image":
        image = await world.shelf.image(version="two")
    elif change == "config":
        await world.set_config({"COLOUR": "blue"})
    elif change == "formation":
        command = {"formation": {"web": 2}}
    elif change == "watched":
        command = {"watched_digest": "sha256:" + "77" * 32}
    else:
        command = {"kind": "restart"}
    answer = await world.deploy(image, observed=True, **command)
    assert (answer.unchanged, answer.number) == (False, 2)


# ── scale ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_process_type_that_comes_back_gets_the_number_that_a_person_set(world: Observed) -> None:
    """Scaled to 2, gone, and there again: 2, not the image's default of 0."""
    both = await world.shelf.image(processes={"worker": ("sleep", "600")}, version="one")
    await world.deploy(both)
    await world.db.write(lambda conn: apps.note_scale(conn, world.app_id, {"worker": 2}))
    await world.deploy(both, kind="scale", formation={"web": 1, "worker": 2})
    assert (await world.deploy(await world.shelf.image(version="two"))).formation == {"web": 1}
    back = await world.deploy(await world.shelf.image(processes={"worker": ("sleep", "600")}, version="three"))
    assert back.formation == {"web": 1, "worker": 2}


# ── drifts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_difference_is_one_row_until_it_is_repaired(world: Observed) -> None:
    """Seen three times, repaired once, and seen again later."""
    saga = new_id()
    await world.deploy(await world.shelf.image(), saga)

    async def see(at_ms: int, *, repaired: bool = False) -> list[tuple[int, int | None]]:
        drift = Drift(
            app_id=world.app_id, saga_id=saga, what="the container of web.1 is gone", repaired=repaired, at_ms=at_ms
        )
        await world.db.write(lambda conn: drifts.record(conn, drift))
        found = await world.db.read(lambda conn: drifts.of_app(conn, world.app_id))
        return [(each.at_ms, each.repaired_ms) for each in found]

    assert await see(1000) == [(1000, None)]
    assert await see(2000) == [(2000, None)]
    assert await see(3000, repaired=True) == [(2000, 3000)]
    assert await see(9000) == [(9000, None)]


async def test_few_differences_are_kept_per_app(world: Observed) -> None:
    """A runtime that finds new ones all the time does not fill the database."""
    await world.deploy(await world.shelf.image())
    for number in range(drifts.SHOWN + 5):
        drift = Drift(app_id=world.app_id, saga_id="s", what=f"{number}", repaired=False, at_ms=number)
        await world.db.write(partial(drifts.record, drift=drift))
    found = await world.db.read(lambda conn: drifts.of_app(conn, world.app_id))
    assert [each.what for each in found] == [str(number) for number in range(drifts.SHOWN + 4, 4, -1)]
