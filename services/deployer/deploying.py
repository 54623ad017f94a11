"""Stage 4 of 5: a published image in, a running and observed release with the traffic out.

The order decides what a crash leaves behind: the row of the release is first, then its files and instances, then, once
those were observed, the one transaction that moves the traffic. Before the move a run that fails takes its own things
away again; after it the release is live, and only an undo takes it down.

Where an `ObserveRelease` follows, the instances of the release before keep running: an undo moves the traffic back to
them. In older definitions this is the last step, and stops them.
"""

import time
from functools import partial

from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.errors import Conflict, NotFound
from seedwork.participant import Work
from seedwork.side_by_side import side_by_side
from seedwork.unit_of_work import Database, database_now_ms
from services.deployer import addons, apps, configs, releases, volumes
from services.deployer.apps import App
from services.deployer.assembly import formation_for
from services.deployer.contract import DeployRelease, ReleaseDeployed
from services.deployer.deployer import (
    Deployer,
    address_of,
    is_live,
    prepare,
    retire_old,
    retired,
    run,
    stop_others,
    to_its_end,
)
from services.deployer.errors import CannotRun, Undone
from services.deployer.image import ImageFacts, facts_of, manifest_hash
from services.deployer.ports import Address, Release, Runtime
from services.deployer.releases import KnownRelease
from services.deployer.vault import Vault


async def deploy_release(command: DeployRelease, *, work: Work, deployer: Deployer) -> ReleaseDeployed:
    """Start the image with its config, observe it, move the traffic; stop what ran before, unless it is observed next.

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
    if known.saga_id != work.saga_id:
        return await _unchanged(known, app, work, deployer)
    served = known.state == "live"
    address: Address
    release: Release
    before: KnownRelease | None
    try:
        address, release, before = await side_by_side(
            partial(address_of, app, deployer),
            partial(prepare, known, app, work, deployer),
            partial(db.read, lambda conn: _before(conn, known)),
        )
        began = time.monotonic()
        await run(release, work, deployer, with_command=not served)
        answered_ms = int((time.monotonic() - began) * 1000)
        await to_its_end(_take_traffic(known, before if command.observed else None, work.fence, db, runtime))
        served = True
    finally:
        served = served or await to_its_end(db.read(lambda conn: is_live(conn, work.saga_id)))
        if not served:
            await runtime.stop(app.app_id, work.saga_id)
    kept = {work.saga_id} | ({before.saga_id} if before and command.observed else set())
    work.note("stopping what ran before")
    await stop_others(app.app_id, runtime, keep=kept)
    if not command.observed:
        work.with_outcome(lambda conn: retire_old(conn, app, work, deployer))
    return _deployed(
        known,
        address,
        replaced=before.number if before else None,
        first_answer_ms=await _first_answer_ms(known, runtime, answered_ms),
    )


async def _before(conn: AsyncConnection, known: KnownRelease) -> KnownRelease | None:
    """The release that this one replaces, or has replaced already."""
    live = await releases.live(conn, known.app_id)
    return live if live and live.saga_id != known.saga_id else await releases.before(conn, known.app_id, known.saga_id)


async def _take_traffic(
    known: KnownRelease, warm: KnownRelease | None, fence: int, db: Database, runtime: Runtime
) -> None:
    """First the row, which is what a restart goes by; then the runtime."""
    await db.write(lambda conn: releases.move_traffic(conn, known, fence=fence, warm=warm))
    await runtime.switch(known.app_id, known.saga_id, fence=fence)


async def _first_answer_ms(known: KnownRelease, runtime: Runtime, answered_ms: int) -> int | None:
    """Time from the start of the first `web` instance to its first answer: as the runtime saw it, else as we did."""
    if not known.formation.get("web"):
        return None
    ours = [each for each in await runtime.instances(known.app_id) if each.saga_id == known.saga_id]
    seen = [each.first_answer_ms for each in ours if each.process.startswith("web.")]
    return min((each for each in seen if each is not None), default=answered_ms)


def _deployed(
    known: KnownRelease,
    address: Address,
    *,
    replaced: int | None = None,
    first_answer_ms: int | None = None,
    unchanged: bool = False,
) -> ReleaseDeployed:
    return ReleaseDeployed(
        number=known.number,
        digest=known.digest,
        url=address.url,
        config_version=known.config_version,
        formation=known.formation,
        manifest_hash=known.manifest_hash,
        replaced=replaced,
        unchanged=unchanged,
        first_answer_ms=first_answer_ms,
    )


# ── nothing changed ──────────────────────────────────────────────────────────────────────────────────────────────────


async def _unchanged(live: KnownRelease, app: App, work: Work, deployer: Deployer) -> ReleaseDeployed:
    """Leave the current release as it is. This saga's reference to its image ends: the release has its own."""

    async def let_go(conn: AsyncConnection) -> None:
        await deployer.outbox.add(conn, [retired(live, app, work.saga_id, reference=work.saga_id)])

    work.with_outcome(let_go)
    return _deployed(live, await address_of(app, deployer), unchanged=True)


def _is_unchanged(command: DeployRelease, new: KnownRelease, live: KnownRelease) -> bool:
    """Whether a deployment would run exactly what runs already."""
    return (
        command.kind in {"deploy", "rebase"}
        and (live.repository, live.digest, live.manifest_hash) == (new.repository, new.digest, new.manifest_hash)
        and (live.config_version, live.watched_digest) == (new.config_version, new.watched_digest)
        and dict(live.formation) == dict(new.formation)
    )


# ── the row of the release ───────────────────────────────────────────────────────────────────────────────────────────


async def _reserved(command: DeployRelease, app: App, work: Work, deployer: Deployer) -> KnownRelease:
    """This saga's release: made once, found again by every later run; the current release where nothing would change.

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
            await apps.know_app(conn, app)
            live = await releases.live(conn, app.app_id)
            made = await _new_release(conn, command, work, target=target, facts=facts, live=live, vault=deployer.vault)
            if live is not None and _is_unchanged(command, made, live):
                return live
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
    live: KnownRelease | None,
    vault: Vault,
) -> KnownRelease:
    config_version = await configs.pin(
        conn,
        work.app_id,
        wanted=target.config_version if target else command.config_version,
        declared=facts.env,
        vault=vault,
        saga_id=work.saga_id,
        app=command.app,
    )
    scaled = await apps.scale_of(conn, work.app_id)
    formation = formation_for(facts, command.formation, live.formation if live else None, scaled)
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
        watched_digest=command.watched_digest if command.kind == "deploy" else _watched(target or live),
    )


def _watched(source: KnownRelease | None) -> str | None:
    """Return what a release without a source of its own takes over from the one whose source it has."""
    return source.watched_digest if source else None


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
