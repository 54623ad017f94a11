"""Stage 4 of 4: a published image in, a running and observed release out; and its undo.

The order decides what a crash leaves behind: the row of the release is first, then its files and instances, then, once
those were observed, the one transaction that moves the traffic, then the end of what ran before. Before the move a run
that fails takes its own things away again; after it the release is live, and only an undo takes it down.
"""

import asyncio
import contextlib
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from ocistore.store import ImageStore
from seedwork.errors import Conflict, FinalError, NotFound
from seedwork.messages import Envelope, envelope
from seedwork.outbox import Outbox
from seedwork.participant import Work
from seedwork.side_by_side import side_by_side
from seedwork.unit_of_work import Database, database_now_ms
from services.deployer import addons, configs, releases, volumes
from services.deployer.addons import Removal
from services.deployer.assembly import assemble, formation_for
from services.deployer.contract import (
    AppRetired,
    DeployRelease,
    ReleaseDeployed,
    ReleaseRetired,
    ReleaseRolledBack,
    RetireApp,
    RollBackRelease,
)
from services.deployer.errors import CannotRun, Fenced, PreviousDoesNotStart, Undone
from services.deployer.image import ImageFacts, facts_of, manifest_hash
from services.deployer.ports import AddOns, Address, Release, Runtime
from services.deployer.releases import App, KnownRelease
from services.deployer.vault import Vault
from services.saga_coordinator.contract import DeploymentFailed
from services.webhook.contract import AppChanged, AppCreated

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployer:
    """What the handlers work with."""

    db: Database
    images: ImageStore
    runtime: Runtime
    vault: Vault
    outbox: Outbox
    keep: int
    """Releases per app that can be rolled back to, beside the live one."""
    provider: AddOns | None = None
    """Of add-ons; None: the runtime has none."""

    @property
    def removal(self) -> Removal:
        """Of add-ons."""
        return Removal(self.db, self.provider)


async def deploy_release(command: DeployRelease, *, work: Work, deployer: Deployer) -> ReleaseDeployed:
    """Start the image with its config, observe it, move the traffic, stop what ran before.

    Raises:
        AppDoesNotStart: An instance does not come up.
        ReleaseCommandFailed: The `release:` command failed.
        CannotRun: The image asks for what this runtime does not have.
        Fenced: A newer deployment has the traffic.
        Undone: This saga was undone already.
    """
    db, runtime = deployer.db, deployer.runtime
    app = App(app_id=work.app_id, name=command.app or work.app, team=work.team)
    known = await _reserved(command, app, work, deployer)
    served = known.state == "live"
    address: Address
    release: Release
    replaced: KnownRelease | None
    try:
        address, release, replaced = await side_by_side(
            partial(_address, app, deployer),
            partial(_prepared, known, app, work, deployer),
            partial(db.read, lambda conn: releases.live(conn, app.app_id)),
        )
        await _run(release, work, deployer, with_command=not served)
        await _to_its_end(_take_traffic(known, work.fence, db, runtime))
        served = True
    finally:
        served = served or await _to_its_end(db.read(lambda conn: _is_live(conn, work.saga_id)))
        if not served:
            await runtime.stop(app.app_id, work.saga_id)
    work.note("stopping what ran before")
    await _stop_others(app.app_id, work.saga_id, runtime)
    work.with_outcome(lambda conn: _retire_old(conn, app, work, deployer))
    return ReleaseDeployed(
        number=known.number,
        digest=known.digest,
        url=address.url,
        config_version=known.config_version,
        formation=known.formation,
        manifest_hash=known.manifest_hash,
        replaced=replaced.number if replaced and replaced.saga_id != work.saga_id else None,
    )


async def roll_back_release(_command: RollBackRelease, *, work: Work, deployer: Deployer) -> ReleaseRolledBack:
    """Nothing of this saga's release stays; where it was live, what ran before it serves again first.

    Raises:
        PreviousDoesNotStart: The release before does not come up; this one keeps serving.
    """
    db, runtime = deployer.db, deployer.runtime
    ours = await db.write(lambda conn: _undoing(conn, work))
    found, done = [], []
    if ours is not None and ours.state == "live":
        found.append(f"live release {ours.number}")
        done.append(await _give_back(ours, work, deployer))
    elif ours is not None and ours.state != "undone":
        found.append(f"release {ours.number}, {ours.state}")
        await db.write(lambda conn: releases.undo(conn, ours))
        done.append("marked as undone")
    if ours is not None:
        await _follow_the_row(ours.app_id, db, runtime)
    things = [
        *await runtime.stop(work.app_id, work.saga_id),
        *await deployer.removal.undone(work.app_id, work.saga_id),
    ]
    if things:
        found += things
        done.append("stopped and removed")
    return ReleaseRolledBack(found=tuple(found), done=tuple(done))


async def retire_app(_command: RetireApp, *, work: Work, deployer: Deployer) -> AppRetired:
    """Stop everything of the app, drop its route, config and releases."""
    db, runtime, app_id = deployer.db, deployer.runtime, work.app_id
    known = await db.read(lambda conn: releases.in_states(conn, releases.KEPT_STATES, app_id=app_id))
    await runtime.switch(app_id, None, fence=work.fence)
    found: list[str] = []
    for release in known:
        found += await runtime.stop(app_id, release.saga_id)
    found += await deployer.removal.of_app(app_id)
    found += await runtime.forget(app_id)
    if known:
        found.append(f"{len(known)} releases")

    async def drop(conn: AsyncConnection) -> None:
        app = App(app_id=app_id, name=work.app, team=work.team)
        await deployer.outbox.add(conn, [_retired(each, app, work.saga_id) for each in known])
        await releases.drop_app(conn, app_id)

    work.with_outcome(drop)
    return AppRetired(found=tuple(found), done=("stopped and removed",) if found else ())


async def on_app(event: AppCreated | AppChanged, message: Envelope, conn: AsyncConnection) -> None:
    """An app was made or renamed."""
    await releases.know_app(conn, App(app_id=message.appid, name=event.app, team=message.team))


async def on_failed(_event: DeploymentFailed, message: Envelope, conn: AsyncConnection) -> None:
    """A saga ended without success, perhaps before it came here: its config change waits no more."""
    await configs.give_up(conn, message.appid, message.correlationid)


# ── deploying ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _reserved(command: DeployRelease, app: App, work: Work, deployer: Deployer) -> KnownRelease:
    """This saga's release: made once, found again by every later run.

    Raises:
        Undone: This saga was undone already.
    """
    db = deployer.db
    known = await db.read(lambda conn: releases.of_saga(conn, work.saga_id))
    if known is None:
        target = await _rollback_target(command, app, db)
        repository, digest = command.repository, target.digest if target else command.digest
        facts = facts_of(await deployer.images.get(repository, digest, tagged=False))
        _refuse_addons(facts, deployer.runtime)

        async def reserve(conn: AsyncConnection) -> KnownRelease | None:
            if await releases.is_undone(conn, work.saga_id):
                return None
            if made := await releases.of_saga(conn, work.saga_id):
                return made  # by a worker that stood still meanwhile
            await releases.know_app(conn, app)
            made = await _new_release(conn, command, work, target=target, facts=facts, vault=deployer.vault)
            await releases.add(conn, made)
            await addons.reserve(conn, app.app_id, facts.addons, saga_id=work.saga_id, vault=deployer.vault)
            await volumes.reserve(conn, app, facts.storage)
            return made

        known = await db.write(reserve)
    if known is None or known.state not in releases.KEPT_STATES:
        raise Undone("The release is not started", why="its saga was undone")
    return known


async def _new_release(
    conn: AsyncConnection,
    command: DeployRelease,
    work: Work,
    *,
    target: KnownRelease | None,
    facts: ImageFacts,
    vault: Vault,
) -> KnownRelease:
    live = await releases.live(conn, work.app_id)
    config_version = await configs.pin(
        conn,
        work.app_id,
        wanted=target.config_version if target else command.config_version,
        declared=facts.env,
        vault=vault,
        saga_id=work.saga_id,
        app=command.app,
    )
    formation = formation_for(facts, command.formation, live.formation if live else None)
    digest = target.digest if target else command.digest
    return KnownRelease(
        saga_id=work.saga_id,
        app_id=work.app_id,
        number=await releases.next_number(conn, work.app_id),
        kind=command.kind,
        commit=target.commit if target else command.commit,
        repository=command.repository,
        digest=digest,
        config_version=config_version,
        formation=formation,
        processes=sorted(facts.processes),
        layers=facts.layers,
        manifest_hash=manifest_hash(
            digest=digest, config_version=config_version, formation=formation, processes=facts.processes
        ),
        state="pending",
        created_ms=await database_now_ms(conn),
    )


async def _rollback_target(command: DeployRelease, app: App, db: Database) -> KnownRelease | None:
    number = command.rollback_to
    if number is None:
        return None
    target = await db.read(lambda conn: releases.numbered(conn, app.app_id, number))
    if target is None:
        raise NotFound(f"{app.name} has no release {number}", todo=f"Run `knarr releases {app.name}` to list them.")
    if target.state not in {"live", "superseded"}:
        raise Conflict(f"Release {number} cannot come back", why=f"it is {target.state}")
    return target


def _refuse_addons(facts: ImageFacts, runtime: Runtime) -> None:
    lacking = sorted({each.kind for each in facts.addons} - runtime.addons)
    if lacking:
        raise CannotRun(
            f"The app asks for {', '.join(lacking)}, which the runtime `{runtime.name}` does not provide",
            why="this machine has no server program for it"
            if runtime.name == "process"
            else "its add-ons are provided by the runtimes process, docker and kubernetes",
            todo="Install the server program, or run apps with Docker: `knarr up --runtime docker`. Or take the service"
            " out of `.cupaas.yml` or app.json, and give the address of one that you run yourself as a config var.",
            code="addons_unavailable",
        )


async def _address(app: App, deployer: Deployer) -> Address:
    """The app's address: as before, or a new one, remembered."""
    routes = await deployer.db.read(releases.all_routes)
    for route in routes:
        if route.app_id == app.app_id:
            return Address(url=route.url, port=route.port)
    address = await deployer.runtime.expose(app.app_id, app.name, taken={route.port for route in routes})
    await deployer.db.write(lambda conn: releases.add_route(conn, app.app_id, address))
    return address


async def _prepared(known: KnownRelease, app: App, work: Work, deployer: Deployer) -> Release:
    """All that its instances need is there."""
    release = await assemble(
        known, app, db=deployer.db, images=deployer.images, vault=deployer.vault, provider=deployer.provider
    )
    if deployer.provider is not None:
        for addon in release.addons:
            work.note(f"starting the add-on {addon.name}")
            await deployer.provider.provide(addon, note=work.note)
    work.note("unpacking the image")
    await deployer.runtime.prepare(release)
    return release


async def _run(release: Release, work: Work, deployer: Deployer, *, with_command: bool) -> None:
    """Until every instance was seen to answer."""
    runtime = deployer.runtime
    if with_command and release.release_command:
        work.note("running the release command")
        await runtime.run_release_command(release)
    work.note("starting instances")
    await runtime.start(release)
    await runtime.observe(release, note=work.note)


async def _take_traffic(known: KnownRelease, fence: int, db: Database, runtime: Runtime) -> None:
    """First the row, which is what a restart goes by; then the runtime."""
    await db.write(lambda conn: releases.move_traffic(conn, known, fence=fence))
    await runtime.switch(known.app_id, known.saga_id, fence=fence)


async def _is_live(conn: AsyncConnection, saga_id: str) -> bool:
    known = await releases.of_saga(conn, saga_id)
    return known is not None and known.state == "live"


async def _stop_others(app_id: str, saga_id: str, runtime: Runtime) -> None:
    """Whatever else of the app runs: the release before, and what an interrupted run left."""
    others = {each.saga_id for each in await runtime.instances(app_id)} - {saga_id}
    await asyncio.gather(*(runtime.stop(app_id, other) for other in others))


async def _retire_old(conn: AsyncConnection, app: App, work: Work, deployer: Deployer) -> None:
    old = await releases.retire_beyond(conn, app.app_id, deployer.keep)
    await deployer.outbox.add(conn, [_retired(each, app, work.saga_id) for each in old])


def _retired(release: KnownRelease, app: App, saga_id: str) -> Envelope:
    return envelope(
        ReleaseRetired(app=app.name, number=release.number, digest=release.digest, release_saga_id=release.saga_id),
        source="deployer",
        saga_id=saga_id,
        app_id=app.app_id,
        team=app.team,
        app=app.name,
    )


# ── undoing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _undoing(conn: AsyncConnection, work: Work) -> KnownRelease | None:
    """This saga's release; where there is none, nobody can make one any more."""
    known = await releases.of_saga(conn, work.saga_id)
    if known is None:
        await releases.refuse_for_ever(conn, work.app_id, work.saga_id)
    return known


async def _give_back(ours: KnownRelease, work: Work, deployer: Deployer) -> str:
    """Traffic back to the release before ours; what was done."""
    db, runtime = deployer.db, deployer.runtime
    previous = await db.read(lambda conn: releases.before(conn, ours.app_id, ours.saga_id))
    if previous is None:
        await _to_its_end(_return_traffic(ours, None, work.fence, db, runtime))
        return "there was no release before it: the app answers 503 until the next one"
    running = {each.saga_id for each in await runtime.instances(ours.app_id)}
    back = False
    try:
        await _start_again(previous, ours, work, deployer)
        await _to_its_end(_return_traffic(ours, previous, work.fence, db, runtime))
        back = True
    finally:
        back = back or await _to_its_end(db.read(lambda conn: _is_live(conn, previous.saga_id)))
        if not back and previous.saga_id not in running:
            await runtime.stop(ours.app_id, previous.saga_id)
    return f"release {previous.number} serves again"


async def _start_again(previous: KnownRelease, ours: KnownRelease, work: Work, deployer: Deployer) -> None:
    work.note(f"starting release {previous.number} again")
    app = App(app_id=work.app_id, name=work.app, team=work.team)
    try:
        release = await _prepared(previous, app, work, deployer)
        await _run(release, work, deployer, with_command=False)
    except FinalError as error:
        raise PreviousDoesNotStart(
            f"Release {previous.number}, which ran before, does not start again",
            why=error.message,
            todo=f"Release {ours.number} keeps serving. Repair what is missing, then retry the undo.",
            log_tail=error.log_tail,
        ) from error


async def _return_traffic(
    ours: KnownRelease, previous: KnownRelease | None, fence: int, db: Database, runtime: Runtime
) -> None:
    await db.write(lambda conn: releases.move_back(conn, ours, previous, fence=fence))
    await runtime.switch(ours.app_id, previous.saga_id if previous else None, fence=fence)


async def _follow_the_row(app_id: str, db: Database, runtime: Runtime) -> None:
    """An undo that was interrupted between the row and the runtime: what serves is what the row says."""
    route = await db.read(lambda conn: releases.route_of(conn, app_id))
    if route is not None:
        with contextlib.suppress(Fenced):  # a newer deployment is past us
            await runtime.switch(app_id, route.saga_id, fence=route.fence)


async def _to_its_end(work: Awaitable[T]) -> T:
    """Let a short piece of work end although we are cancelled meanwhile; then be cancelled."""
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled() and (error := running.exception()):
            log.info("work that was to be finished failed", error=str(error))
        raise
