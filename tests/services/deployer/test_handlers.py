"""A published image in, a live release out; its undo; and an app's end. On a runtime that runs nothing."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import select

from ocistore.layout import OciLayout
from ocistore.store import LABEL_ADDONS, Image
from seedwork.clock import SystemClock
from seedwork.errors import Conflict, FinalError, NotFound
from seedwork.messages import Envelope, envelope, new_id
from seedwork.outbox import Outbox
from seedwork.participant import Work
from seedwork.unit_of_work import Database
from services.deployer import configs, deploying, handlers, models, releases, rolling_back
from services.deployer.adapters.memory import MemoryRuntime
from services.deployer.addons import Removal
from services.deployer.contract import (
    AppRetired,
    DeployRelease,
    ReleaseDeployed,
    ReleaseRolledBack,
    RetireApp,
    RollBackRelease,
)
from services.deployer.deployer import Deployer
from services.deployer.errors import (
    AppDoesNotStart,
    CannotRun,
    Fenced,
    PreviousDoesNotStart,
    ReleaseCommandFailed,
    Undone,
)
from services.deployer.ports import Drift, Standing
from services.deployer.reconciling import Reconciler
from services.deployer.releases import KnownRelease, KnownRoute
from services.deployer.standing import Standby
from services.deployer.vault import Vault
from services.deployer.volumes import VolumeRemoval
from services.saga_coordinator.contract import DeploymentFailed
from tests.services.deployer.conftest import PYTHON, Shelf, eventually

COMMIT = "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d"


@dataclass
class World:
    """One app's sagas at a deployer, without bus and jobs."""

    db: Database
    images: OciLayout
    shelf: Shelf
    runtime: MemoryRuntime = field(default_factory=MemoryRuntime)
    vault: Vault = field(default_factory=lambda: Vault(b"x" * 43 + b"=", where="a test"))
    fence: int = 0

    @property
    def app_id(self) -> str:
        return self.shelf.app_id

    @property
    def deployer(self) -> Deployer:
        outbox = Outbox(models.kernel, SystemClock())
        return Deployer(db=self.db, images=self.images, runtime=self.runtime, vault=self.vault, outbox=outbox, keep=2)

    def work(self, saga_id: str, fence: int | None = None) -> Work:
        return Work(
            saga_id=saga_id,
            step="deploy",
            app_id=self.app_id,
            team="default",
            app="shop",
            attempt=1,
            fence=self.fence if fence is None else fence,
        )

    async def deploy(
        self, image: Image, saga_id: str | None = None, *, fence: int | None = None, **command: Any
    ) -> ReleaseDeployed:
        """Deliver `DeployRelease` under the next fence and commit what goes with its outcome."""
        self.fence += fence is None
        work = self.work(saga_id or new_id(), fence)
        asked = DeployRelease(
            app="shop", repository=image.repository, digest=image.digest, **{"commit": COMMIT, **command}
        )
        answer = await deploying.deploy_release(asked, work=work, deployer=self.deployer)
        await self.commit(work)
        return answer

    async def undo(self, saga_id: str) -> ReleaseRolledBack:
        return await rolling_back.roll_back_release(RollBackRelease(), work=self.work(saga_id), deployer=self.deployer)

    async def retire(self) -> AppRetired:
        work = self.work(new_id())
        answer = await handlers.retire_app(RetireApp(app="shop"), work=work, deployer=self.deployer)
        await self.commit(work)
        return answer

    async def commit(self, work: Work) -> None:
        for also in work._also:
            await self.db.write(also)

    async def release(self, saga_id: str) -> KnownRelease | None:
        return await self.db.read(lambda conn: releases.of_saga(conn, saga_id))

    async def states(self) -> list[str]:
        """Of all releases, oldest first."""
        query = select(models.releases.c.state).order_by(models.releases.c.number)
        return await self.db.read(lambda conn: _column(conn, query))

    async def config_states(self) -> list[str]:
        """Of all config versions, oldest first."""
        query = select(models.config_versions.c.state).order_by(models.config_versions.c.version)
        return await self.db.read(lambda conn: _column(conn, query))

    async def route(self) -> KnownRoute | None:
        return await self.db.read(lambda conn: releases.route_of(conn, self.app_id))

    async def sent(self) -> list[Envelope]:
        query = select(models.kernel.outbox.c.envelope).order_by(models.kernel.outbox.c.seq)
        return [Envelope.from_json(each) for each in await self.db.read(lambda conn: _column(conn, query))]

    async def set_config(self, values: Mapping[str, str], saga_id: str | None = None) -> int:
        made = await self.db.write(
            lambda conn: configs.add(conn, self.app_id, values, vault=self.vault, saga_id=saga_id, by="a test")
        )
        return made.version

    def env(self, saga_id: str) -> Mapping[str, str]:
        """What the instances of that saga got."""
        return self.runtime._units[saga_id].release.env


async def _column(conn: Any, query: Any) -> list[Any]:
    return list((await conn.execute(query)).scalars())


@pytest.fixture
def world(db: Database, images: OciLayout, shelf: Shelf) -> World:
    return World(db, images, shelf)


# ── deploying ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_release_is_live_when_its_instances_were_observed(world: World) -> None:
    """The answer, the route and the runtime say the same."""
    image, saga = await world.shelf.image(), new_id()
    answer = await world.deploy(image, saga)

    assert (answer.number, answer.digest, answer.config_version, answer.replaced) == (1, image.digest, 1, None)
    assert answer.formation == {"web": 1}
    route = await world.route()
    assert route is not None
    assert (route.saga_id, route.fence, route.url) == (saga, 1, answer.url)
    assert world.runtime.serving == {world.app_id: saga}
    release = await world.release(saga)
    assert release is not None
    assert (release.state, release.commit, release.layers) == ("live", COMMIT, [each.digest for each in image.layers])


async def test_an_image_that_the_store_does_not_have_is_not_found(world: World) -> None:
    """Before anything is made of it, and again where the store lost it while its release waited."""
    image, saga = await world.shelf.image(), new_id()
    await world.images.remove(image.repository, image.digest)
    with pytest.raises(NotFound):
        await world.deploy(image, saga)
    assert await world.release(saga) is None
    waiting = await world.shelf.image()
    world.runtime.fails[waiting.digest] = "it ended with status 1"
    with pytest.raises(AppDoesNotStart):
        await world.deploy(waiting, saga)
    await world.images.remove(waiting.repository, waiting.digest)
    with pytest.raises(NotFound):
        await world.deploy(waiting, saga)
    assert await world.runtime.instances(world.app_id) == []


async def test_the_next_release_replaces_the_one_before(world: World) -> None:
    """One runs afterwards; the other one can be rolled back to."""
    first, second = new_id(), new_id()
    await world.deploy(await world.shelf.image(version="one"), first)
    answer = await world.deploy(await world.shelf.image(version="two"), second)

    assert (answer.number, answer.replaced) == (2, 1)
    assert await world.states() == ["superseded", "live"]
    assert {each.saga_id for each in await world.runtime.instances(world.app_id)} == {second}
    assert world.runtime.prepared == {second}


async def test_a_second_run_of_a_command_finds_the_first_ones_release(world: World) -> None:
    """Killed after the move, before the answer: the same release, the same number, no second command run."""
    image = await world.shelf.image(release=(PYTHON, "-c", ""))
    saga = new_id()
    first = await world.deploy(image, saga)
    again = await world.deploy(image, saga, fence=1)

    assert again == first
    assert await world.states() == ["live"]
    assert world.runtime.commands_run == [saga]


async def test_a_run_that_was_cut_off_before_the_move_is_carried_on(world: World) -> None:
    """The number and the pinned config stay, although the live config changed meanwhile."""
    image, saga = await world.shelf.image(), new_id()
    world.runtime.hangs.add(image.digest)
    running = asyncio.create_task(world.deploy(image, saga))
    await eventually(lambda: world.release(saga))
    await eventually(lambda: world.runtime.instances(world.app_id))
    running.cancel()
    await asyncio.wait([running])
    assert await world.runtime.instances(world.app_id) == []
    assert world.runtime.prepared == set()

    await world.set_config({"LATER": "1"})
    world.runtime.hangs.clear()
    answer = await world.deploy(image, saga, fence=1)
    assert (answer.number, answer.config_version) == (1, 1)


async def test_an_app_that_does_not_start_leaves_what_ran_before_serving(world: World) -> None:
    """Nothing of the failed release runs or lies about; its row waits for the undo."""
    first = new_id()
    await world.deploy(await world.shelf.image(version="one"), first)
    broken, saga = await world.shelf.image(version="broken"), new_id()
    world.runtime.fails[broken.digest] = "web.1 exited with status 1"
    with pytest.raises(AppDoesNotStart):
        await world.deploy(broken, saga)

    assert world.runtime.serving == {world.app_id: first}
    assert {each.saga_id for each in await world.runtime.instances(world.app_id)} == {first}
    assert world.runtime.prepared == {first}
    assert await world.states() == ["live", "pending"]


async def test_a_failed_release_command_stops_the_deployment_before_anything_starts(world: World) -> None:
    """The traffic was never touched."""
    image = await world.shelf.image(release=(PYTHON, "-c", ""))
    world.runtime.command_fails[image.digest] = "cannot migrate"
    with pytest.raises(ReleaseCommandFailed):
        await world.deploy(image)
    assert await world.runtime.instances(world.app_id) == []


async def test_an_older_deployment_cannot_overwrite_a_newer_one(world: World) -> None:
    """The fence is compared in the write that moves traffic: the sleeper's run ends as `fenced`, its things go."""
    newer, older = new_id(), new_id()
    await world.deploy(await world.shelf.image(version="new"), newer, fence=8)
    with pytest.raises(Fenced) as caught:
        await world.deploy(await world.shelf.image(version="old"), older, fence=7)

    assert caught.value.reason_code == "fenced"
    assert world.runtime.serving == {world.app_id: newer}
    assert {each.saga_id for each in await world.runtime.instances(world.app_id)} == {newer}


async def test_addons_are_refused_with_the_runtimes_that_have_them(world: World) -> None:
    """Before anything is started or reserved."""
    image = await world.shelf.image(labels={LABEL_ADDONS: '[{"kind": "mongodb", "version": "6.0.2"}]'})
    with pytest.raises(CannotRun, match=r"mongodb.*process, docker and kubernetes"):
        await world.deploy(image)
    assert await world.states() == []


async def test_the_formation_is_the_images_then_as_it_was_scaled(world: World) -> None:
    """A deploy keeps what a person set; a new process type begins as the image says."""
    worker = {"worker": (PYTHON, "-c", "")}
    one = await world.shelf.image(version="one", processes=worker)
    assert (await world.deploy(one)).formation == {"web": 1, "worker": 0}
    scaled = await world.deploy(one, kind="scale", formation={"web": 3, "worker": 2})
    assert scaled.formation == {"web": 3, "worker": 2}
    two = await world.shelf.image(version="two", processes={"clock": (PYTHON, "-c", "")}, formation={"clock": 1})
    assert (await world.deploy(two)).formation == {"clock": 1, "web": 3}


async def test_the_manifest_hash_says_what_runs(world: World) -> None:
    """A restart has the same hash, other config another one."""
    image = await world.shelf.image()
    first = await world.deploy(image)
    assert (await world.deploy(image, kind="restart")).manifest_hash == first.manifest_hash
    version = await world.set_config({"COLOUR": "blue"})
    changed = await world.deploy(image, kind="config", config_version=version)
    assert changed.manifest_hash != first.manifest_hash


# ── config ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_first_release_takes_the_newest_config(world: World) -> None:
    """What was set before there was an app to run."""
    await world.set_config({"COLOUR": "red"})
    version = await world.set_config({"COLOUR": "blue"})
    saga = new_id()
    answer = await world.deploy(await world.shelf.image(), saga)

    assert answer.config_version == version
    assert world.env(saga) == {"COLOUR": "blue"}
    assert await world.config_states() == ["superseded", "live"]


async def test_a_deploy_pins_the_live_config_not_one_that_waits(world: World) -> None:
    """A config change in another saga goes live with that saga only."""
    image = await world.shelf.image()
    await world.deploy(image)
    pending = await world.set_config({"COLOUR": "blue"}, saga_id=new_id())
    assert (await world.deploy(image)).config_version == 1
    assert (await world.deploy(image, kind="config", config_version=pending)).config_version == pending


async def test_a_rollback_brings_image_and_config_back(world: World) -> None:
    """As a new release; the formation stays as it is now."""
    one, two = await world.shelf.image(version="one"), await world.shelf.image(version="two")
    await world.deploy(one)
    version = await world.set_config({"COLOUR": "blue"})
    await world.deploy(two, kind="config", config_version=version, formation={"web": 2})
    saga = new_id()
    answer = await world.deploy(one, saga, kind="rollback", rollback_to=1)

    assert (answer.number, answer.digest, answer.config_version) == (3, one.digest, 1)
    assert answer.formation == {"web": 2}
    assert world.env(saga) == {}
    assert await world.config_states() == ["live", "superseded"]


async def test_a_rollback_to_nothing_is_refused(world: World) -> None:
    """A number that never was, and one that was undone."""
    image, saga = await world.shelf.image(), new_id()
    await world.deploy(image, saga)
    with pytest.raises(NotFound, match="no release 7"):
        await world.deploy(image, kind="rollback", rollback_to=7)
    await world.undo(saga)
    with pytest.raises(Conflict, match="undone"):
        await world.deploy(image, kind="rollback", rollback_to=1)


async def test_declared_variables_have_their_defaults_and_secrets_are_made_once(world: World) -> None:
    """`generator: secret` is kept in the config; a set value wins over a default."""
    env = {"SECRET_KEY": {"generate": True}, "COLOUR": {"value": "red"}, "SIZE": {"value": "small"}}
    image = await world.shelf.image(env=env)
    await world.set_config({"SIZE": "large"})
    first, second = new_id(), new_id()
    await world.deploy(image, first)
    made = world.env(first)
    assert len(made["SECRET_KEY"]) == 64
    assert (made["COLOUR"], made["SIZE"]) == ("red", "large")
    await world.deploy(image, second, kind="restart")
    assert world.env(second) == made


async def test_required_variables_without_a_value_are_named(world: World) -> None:
    """All of them at once, with the command that sets them."""
    image = await world.shelf.image(env={"STRIPE_KEY": {}, "DB_URL": {}, "MAYBE": {"required": False}})
    with pytest.raises(
        FinalError, match=r"DB_URL, STRIPE_KEY.*`knarr config set shop DB_URL=VALUE STRIPE_KEY=VALUE`"
    ) as caught:
        await world.deploy(image)
    assert caught.value.reason_code == "config_missing"


async def test_config_is_not_readable_in_the_database(world: World) -> None:
    """Sealed at rest."""
    await world.set_config({"PASSWORD": "hunter2hunter2"})
    sealed = await world.db.read(lambda conn: _column(conn, select(models.config_versions.c.sealed)))
    assert "hunter2" not in str(sealed)


async def test_a_change_whose_saga_failed_elsewhere_waits_no_more(world: World) -> None:
    """The coordinator's word that a saga ended is enough; the next change does not build on it."""
    saga = new_id()
    await world.set_config({"COLOUR": "blue"}, saga_id=saga)
    event = DeploymentFailed(app="shop", saga="release", reason="cancelled")
    message = envelope(event, source="saga_coordinator", saga_id=saga, app_id=world.app_id)
    await world.db.write(lambda conn: handlers.on_failed(event, message, conn))
    assert await world.db.read(lambda conn: configs.current(conn, world.app_id)) is None


# ── undoing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_undoing_what_never_came_here_finds_nothing_and_keeps_it_out(world: World) -> None:
    """An undo may overtake its command; the command then is refused."""
    saga = new_id()
    answer = await world.undo(saga)
    assert (answer.found, answer.done) == ((), ())
    with pytest.raises(Undone):
        await world.deploy(await world.shelf.image(), saga)
    assert await world.runtime.instances(world.app_id) == []


async def test_undoing_a_release_that_never_served_removes_its_own_things_only(world: World) -> None:
    """The one that serves is not touched, and its config stays live."""
    first, saga = new_id(), new_id()
    await world.deploy(await world.shelf.image(version="one"), first)
    broken = await world.shelf.image(version="broken")
    world.runtime.fails[broken.digest] = "no"
    version = await world.set_config({"COLOUR": "blue"}, saga_id=saga)
    with pytest.raises(AppDoesNotStart):
        await world.deploy(broken, saga, kind="config", config_version=version)

    answer = await world.undo(saga)
    assert answer.found == ("release 2, pending",)
    assert world.runtime.serving == {world.app_id: first}
    assert await world.states() == ["live", "undone"]
    assert await world.config_states() == ["live", "undone"]


async def test_undoing_the_live_release_brings_back_what_ran_before(world: World) -> None:
    """With its own digest and config; then ours stops."""
    one, two = await world.shelf.image(version="one"), await world.shelf.image(version="two")
    first, saga = new_id(), new_id()
    await world.deploy(one, first)
    version = await world.set_config({"COLOUR": "blue"}, saga_id=saga)
    await world.deploy(two, saga, kind="config", config_version=version)

    answer = await world.undo(saga)
    assert answer.found[0] == "live release 2"
    assert answer.done[0] == "release 1 serves again"
    assert world.runtime.serving == {world.app_id: first}
    (instance,) = await world.runtime.instances(world.app_id)
    assert (instance.saga_id, instance.digest, instance.state) == (first, one.digest, "up")
    assert world.env(first) == {}
    assert world.runtime.prepared == {first}
    assert await world.states() == ["live", "undone"]
    assert await world.config_states() == ["live", "undone"]
    assert (await world.undo(saga)).found == ()


async def test_undoing_the_only_release_leaves_no_route(world: World) -> None:
    """The app answers that it has no release; what was configured waits for the next one."""
    await world.set_config({"COLOUR": "blue"})
    saga = new_id()
    await world.deploy(await world.shelf.image(), saga)
    answer = await world.undo(saga)

    assert "there was no release before it" in answer.done[0]
    assert world.runtime.serving == {}
    route = await world.route()
    assert route is not None
    assert route.saga_id is None
    assert await world.config_states() == ["pending"]
    again = new_id()
    await world.deploy(await world.shelf.image(), again)
    assert world.env(again) == {"COLOUR": "blue"}


async def test_what_does_not_start_again_leaves_ours_serving(world: World) -> None:
    """The undo fails and says why; after the last attempt the saga is STUCK, and the app still answers."""
    one, two = await world.shelf.image(version="one"), await world.shelf.image(version="two")
    saga = new_id()
    await world.deploy(one)
    await world.deploy(two, saga)
    world.runtime.fails[one.digest] = "its database is gone"

    with pytest.raises(PreviousDoesNotStart, match=r"Release 1.*its database is gone.*Release 2 keeps serving"):
        await world.undo(saga)
    assert world.runtime.serving == {world.app_id: saga}
    assert {each.saga_id for each in await world.runtime.instances(world.app_id)} == {saga}
    assert await world.states() == ["superseded", "live"]

    world.runtime.fails.clear()
    assert (await world.undo(saga)).done[0] == "release 1 serves again"


async def test_an_undone_release_gets_no_traffic_from_a_worker_that_slept(world: World) -> None:
    """The row that the undo left is looked at in the write that moves traffic."""
    image, saga = await world.shelf.image(), new_id()
    await world.deploy(image, saga)
    release = await world.release(saga)
    assert release is not None
    await world.undo(saga)
    with pytest.raises(Undone):
        await world.db.write(lambda conn: releases.move_traffic(conn, release, fence=world.fence))
    route = await world.route()
    assert route is not None
    assert route.saga_id is None


# ── retention and removal ────────────────────────────────────────────────────────────────────────────────────────────


async def test_old_releases_are_retired_with_the_outcome(world: World) -> None:
    """The two newest besides the live one stay; the images of the others are let go of, by their own saga's id."""
    sagas = [new_id() for _ in range(5)]
    for number, saga in enumerate(sagas):
        await world.deploy(await world.shelf.image(version=str(number)), saga)

    assert await world.states() == ["retired", "retired", "superseded", "superseded", "live"]
    told = [each for each in await world.sent() if each.type == "ReleaseRetired"]
    assert [each.data["release_saga_id"] for each in told] == sagas[:2]
    assert [each.correlationid for each in told] == sagas[3:]


async def test_a_retired_app_leaves_nothing(world: World) -> None:
    """Instances, address, rows; every kept release's image is let go of."""
    sagas = [new_id(), new_id()]
    for number, saga in enumerate(sagas):
        await world.deploy(await world.shelf.image(version=str(number)), saga)

    answer = await world.retire()
    assert any(each.startswith("port ") for each in answer.found)
    assert await world.runtime.instances(world.app_id) == []
    assert world.runtime.serving == {}
    assert await world.states() == []
    assert await world.config_states() == []
    assert await world.route() is None
    told = [each for each in await world.sent() if each.type == "ReleaseRetired"]
    assert {each.data["release_saga_id"] for each in told} == set(sagas)
    assert (await world.retire()).found == ()


class Restarted(MemoryRuntime):
    """Keeps what it is told after a restart."""

    def __init__(self) -> None:
        super().__init__()
        self.standing: Sequence[Standing] = ()

    async def recover(self, standing: Sequence[Standing]) -> None:
        self.standing = standing


async def test_a_restarted_runtime_is_told_what_should_be_there(world: World) -> None:
    """Whose release serves, and its process types: whether one of them is gone can be seen without loading it."""
    image = await world.shelf.image(processes={"worker": (PYTHON, "-c", "pass")})
    await world.deploy(image, "old-saga")
    await world.deploy(image, "live-saga", formation={"worker": 2})
    runtime = Restarted()
    removal = Removal(world.db, None)
    volumes = VolumeRemoval(world.db, runtime, None)
    standby = Standby(world.db, world.images, world.vault, runtime, SystemClock(), removal=removal, volumes=volumes)
    await standby.recover()
    (told,) = runtime.standing
    assert (told.app_id, told.saga_id, told.fence) == (world.app_id, "live-saga", 2)
    assert told.processes == {"web", "worker"}
    assert (await told.load()).formation == {"web": 1, "worker": 2}


async def test_a_difference_becomes_an_event_and_its_repair_as_well(world: World) -> None:
    """With the number of the release; one of a saga that no release has is not told."""
    await world.deploy(await world.shelf.image(), "live-saga")
    runtime = world.runtime
    removal, volumes = Removal(world.db, None), VolumeRemoval(world.db, runtime, None)
    standby = Standby(world.db, world.images, world.vault, runtime, SystemClock(), removal=removal, volumes=volumes)
    reconciler = Reconciler(
        world.db, world.deployer.outbox, runtime, SystemClock(), standings=standby.standings, every_s=1
    )
    gone = Drift(app_id=world.app_id, saga_id="live-saga", what="web.1 is gone", repaired=False, at_ms=1)
    runtime.drifts = [gone, replace(gone, repaired=True), replace(gone, saga_id="unknown")]
    await reconciler.once()
    await reconciler.once()

    told = [each for each in await world.sent() if each.type.startswith("Drift")]
    assert [(each.type, each.data["number"], each.data["what"]) for each in told] == [
        ("DriftDetected", 1, "web.1 is gone"),
        ("DriftRepaired", 1, "web.1 is gone"),
    ]
