"""What the handlers of the deployer work with, and the parts that several of them share."""

import asyncio
from collections.abc import Awaitable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from ocistore.store import ImageStore
from seedwork.messages import Envelope, Event, envelope
from seedwork.outbox import Outbox
from seedwork.participant import Work
from seedwork.unit_of_work import Database
from services.deployer import releases
from services.deployer.addons import Removal
from services.deployer.apps import App
from services.deployer.assembly import assemble
from services.deployer.contract import ReleaseRetired
from services.deployer.ports import AddOns, Address, Release, Runtime
from services.deployer.releases import KnownRelease
from services.deployer.vault import Vault

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """How the step `observe` judges a release."""

    default_s: float = 10.0
    """Length of the window in seconds, where the app does not set one; 0: off."""
    errors: int = 5
    """Answers with a status of 500 or above that fail a release, if they are also a tenth of all its answers."""
    start_s: float = 60.0
    """Seconds after the end of the window in which instances that are starting again must be up."""


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
    observation: Observation = Observation()

    @property
    def removal(self) -> Removal:
        """Of add-ons."""
        return Removal(self.db, self.provider)


async def address_of(app: App, deployer: Deployer) -> Address:
    """The app's address: as before, or a new one, remembered."""
    routes = await deployer.db.read(releases.all_routes)
    for route in routes:
        if route.app_id == app.app_id:
            return Address(url=route.url, port=route.port)
    address = await deployer.runtime.expose(app.app_id, app.name, taken={route.port for route in routes})
    await deployer.db.write(lambda conn: releases.add_route(conn, app.app_id, address))
    return address


async def prepare(known: KnownRelease, app: App, work: Work, deployer: Deployer) -> Release:
    """All that its instances need is there."""
    release = await assemble(
        known, app, db=deployer.db, images=deployer.images, vault=deployer.vault, provider=deployer.provider
    )
    work.hide({*release.env.values(), *(each.password for each in release.addons)} - {release.app, release.team})
    if deployer.provider is not None:
        for addon in release.addons:
            work.note(f"starting the add-on {addon.name}")
            await deployer.provider.provide(addon, note=work.note)
    work.note("unpacking the image")
    await deployer.runtime.prepare(release)
    return release


async def run(release: Release, work: Work, deployer: Deployer, *, with_command: bool) -> None:
    """Until every instance was seen to answer."""
    runtime = deployer.runtime
    if with_command and release.release_command:
        work.note("running the release command")
        await runtime.run_release_command(release)
    work.note("starting instances")
    await runtime.start(release)
    await runtime.observe(release, note=work.note)


async def is_live(conn: AsyncConnection, saga_id: str) -> bool:
    """Whether the saga's release has the traffic."""
    known = await releases.of_saga(conn, saga_id)
    return known is not None and known.state == "live"


async def stop_others(
    app_id: str, runtime: Runtime, *, keep: AbstractSet[str], also: AbstractSet[str] = frozenset()
) -> None:
    """Stop every instance of the app that belongs to another saga than those to keep.

    Args:
        app_id: The app.
        runtime: Runs them.
        keep: Sagas whose instances stay.
        also: Sagas whose instances may be about to start.
    """
    others = ({each.saga_id for each in await runtime.instances(app_id)} | also) - keep
    await asyncio.gather(*(runtime.stop(app_id, other) for other in others))


async def retire_old(conn: AsyncConnection, app: App, work: Work, deployer: Deployer) -> None:
    """Retire releases beyond those that are kept, and release their images."""
    old = await releases.retire_beyond(conn, app.app_id, deployer.keep)
    await deployer.outbox.add(conn, [retired(each, app, work.saga_id) for each in old])


def retired(release: KnownRelease, app: App, saga_id: str, *, reference: str | None = None) -> Envelope:
    """The event that releases an image.

    Args:
        release: Whose image it is.
        app: Its app.
        saga_id: The saga in which it happens.
        reference: The saga whose reference to the image ends; None: that of the release.
    """
    return event(
        ReleaseRetired(
            app=app.name,
            number=release.number,
            digest=release.digest,
            release_saga_id=reference or release.saga_id,
        ),
        app,
        saga_id,
    )


def event(message: Event, app: App, saga_id: str) -> Envelope:
    """An event of this service about an app."""
    return envelope(message, source="deployer", saga_id=saga_id, app_id=app.app_id, team=app.team, app=app.name)


async def to_its_end(work: Awaitable[T]) -> T:
    """Let a short piece of work end although we are cancelled meanwhile; then be cancelled."""
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled() and (error := running.exception()):
            log.info("work that was to be finished failed", error=str(error))
        raise
