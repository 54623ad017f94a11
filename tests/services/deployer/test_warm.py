"""The release before stays warm as long as the one after it is observed, and no longer; also over a restart."""

import pytest
from sqlalchemy import select

from ocistore.layout import OciLayout
from seedwork.clock import SystemClock
from seedwork.messages import envelope, new_id
from seedwork.unit_of_work import Database
from services.deployer import handlers, models, observations
from services.deployer.adapters.memory import MemoryRuntime
from services.deployer.addons import Removal
from services.deployer.errors import FailsInUse, NotWarm, PreviousDoesNotStart
from services.deployer.reconciling import Reconciler
from services.deployer.standing import Standby
from services.deployer.volumes import VolumeRemoval
from services.saga_coordinator.contract import DeploymentFailed
from tests.services.deployer.conftest import Shelf
from tests.services.deployer.test_observing import Observed


class Restarted(Observed):
    """One app at a deployer that may be restarted, with a reconciler."""

    @property
    def standby(self) -> Standby:
        """What should run, by the database."""
        removal, volumes = Removal(self.db, None), VolumeRemoval(self.db, self.runtime, None)
        return Standby(self.db, self.images, self.vault, self.runtime, SystemClock(), removal=removal, volumes=volumes)

    async def restart(self) -> None:
        """Begin with a runtime in which nothing runs."""
        self.runtime = MemoryRuntime()
        await self.standby.recover()

    async def reconcile(self) -> None:
        """Compare once."""
        reconciler = Reconciler(
            self.db, self.deployer.outbox, self.runtime, SystemClock(), standings=self.standby.standings, every_s=1
        )
        await reconciler.once()

    async def ends_without_success(self, saga_id: str) -> None:
        """Deliver the coordinator's event, as after a skipped undo."""
        event = DeploymentFailed(app="shop", saga="deploy", reason="failed", step="observe", message="it crashed")
        message = envelope(event, source="saga_coordinator", saga_id=saga_id, app_id=self.app_id, app="shop")
        await self.db.write(lambda conn: handlers.on_failed(event, message, conn))

    async def observations(self) -> list[str]:
        """States of all rows."""
        rows = await self.db.read(lambda conn: conn.execute(select(models.observations.c.state)))
        return [row.state for row in rows]


@pytest.fixture
def world(db: Database, images: OciLayout, shelf: Shelf) -> Restarted:
    return Restarted(db, images, shelf)


async def test_a_restart_within_the_window_brings_both_releases_up(world: Restarted) -> None:
    """A failing observation then moves the traffic back, and starts nothing."""
    first, second = await world.two_releases()
    await world.restart()
    assert world.running() == {first, second}
    assert world.runtime.serving == {world.app_id: second}

    world.crash(second)
    with pytest.raises(FailsInUse):
        await world.observe(second)
    await world.restart()
    assert world.running() == {first, second}
    await world.undo(second)
    assert world.running() == {first}
    assert await world.observations() == []


async def test_a_restart_after_the_window_brings_up_what_serves_only(world: Restarted) -> None:
    """Also where it comes between the end of the observation and its answer."""
    _, second = await world.two_releases()
    warm = (await world.standby.standings())[0].warm
    assert warm is not None
    await world.db.write(lambda conn: observations.close(conn, second))
    await world.restart()
    assert world.running() == {second}
    with pytest.raises(NotWarm):
        await warm.load()

    world.window_s = 3600.0
    assert (await world.observe(second)).number == 2  # the window is not waited for again
    assert await world.observations() == []


async def test_a_first_release_and_one_without_a_step_observe_keep_nothing_warm(world: Restarted) -> None:
    """There is no release before, or it was stopped by the deployment itself."""
    await world.deploy(await world.shelf.image(version="one"), observed=True)
    assert await world.observations() == []
    await world.deploy(await world.shelf.image(version="two"))
    assert await world.observations() == []


async def test_a_release_that_is_warm_again_for_an_undo_is_brought_up(world: Restarted) -> None:
    """The answer of the observation came too late: the release before had stopped, and is started again."""
    first, second = await world.two_releases()
    await world.observe_nothing(second)
    assert world.running() == {second}
    world.runtime.fails[(await world.shelf.image(version="one")).digest] = "its database is gone"
    with pytest.raises(PreviousDoesNotStart):
        await world.undo(second)
    assert await world.observations() == []  # nothing is warm that does not start

    world.runtime.fails.clear()
    await world.undo(second)
    assert world.running() == {first}


async def test_a_skipped_undo_leaves_the_release_that_serves_and_nothing_beside(world: Restarted) -> None:
    """The saga is over, so nothing would ever stop the release before."""
    first, second = await world.two_releases()
    world.crash(second)
    with pytest.raises(FailsInUse):
        await world.observe(second)
    await world.reconcile()
    assert world.running() == {first, second}

    await world.ends_without_success(second)
    await world.reconcile()
    assert world.running() == {second}
    assert world.runtime.serving == {world.app_id: second}
    assert await world.observations() == []


async def test_the_end_of_an_older_saga_changes_nothing_for_a_newer_one(world: Restarted) -> None:
    """Each observation is its saga's."""
    _, second = await world.two_releases()
    third = new_id()
    await world.deploy(await world.shelf.image(version="three"), third, observed=True)
    await world.ends_without_success(second)
    await world.reconcile()
    assert world.running() == {second, third}


async def test_an_undone_release_is_not_kept_warm(world: Restarted) -> None:
    """Its saga was stuck while a newer one deployed."""
    _, second = await world.two_releases()
    third = new_id()
    await world.deploy(await world.shelf.image(version="three"), third, observed=True)
    await world.undo(second)
    await world.restart()
    assert world.running() == {third}


async def test_the_removal_of_an_app_forgets_its_observation(world: Restarted) -> None:
    """Nothing of it is left."""
    await world.two_releases()
    await world.retire()
    assert await world.observations() == []
    assert world.running() == set()
