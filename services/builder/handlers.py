"""Commands of `builder`: an archive becomes a staged image, or what was made of it goes again.

Safe to repeat: the image's name is its content, so a second run finds the first one's work.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial

from seedwork.archives import disk_errors
from seedwork.errors import KnarrError, StorageFull, TimedOut
from seedwork.participant import Work
from services.builder.builds import Builds
from services.builder.contract import (
    BuildDiscarded,
    BuildImage,
    DiscardBuild,
    ImageBuilt,
    ImageRebased,
    RebaseImage,
)
from services.builder.errors import CannotBuild
from services.builder.folders import WorkFolders
from services.builder.logs import BuildLog, BuildLogs
from services.builder.ports import (
    BuildOrder,
    BuildVariables,
    Built,
    ImageBuilder,
    ImageRebaser,
    RebaseOrder,
    SourceArchive,
)
from services.builder.staging import Staging
from services.source.contract import AppDescription

SHOW_UNFINISHED_S = 1.0
"""Seconds between two looks at output without a line's end: a prompt or a progress bar is shown within two seconds."""
TAIL_LINES = 30
"""Of the log in a failure event: enough for a traceback."""


async def build_image(
    command: BuildImage,
    *,
    work: Work,
    builder: ImageBuilder,
    sources: SourceArchive,
    variables: BuildVariables,
    builds: Builds,
    staging: Staging,
    folders: WorkFolders,
    logs: BuildLogs,
    timeout_s: float,
) -> ImageBuilt:
    """Fetch the archive, build it, stage the image."""

    async def hold(digest: str) -> None:
        await staging.hold(work.app_id, digest, work.saga_id)

    given = await variables.of(work.app_id)
    await builds.begin(command, work)
    if await folders.has(work.saga_id):  # of an attempt whose replica was killed, or stands still
        await builder.stop(work.saga_id)
    async with (
        _logged(logs, builds, work, secrets=given.values()) as log,
        _limited(timeout_s),
        folders.of(work.saga_id) as folder,
    ):
        with disk_errors():
            work.note("fetching the source")
            archive = folder / "source.tar"
            size_bytes = await sources.download(command.source_digest, archive)
            await asyncio.to_thread(log.say, f"Source {command.source_digest}, {size_bytes} bytes")
            await asyncio.to_thread(_say_plan, log, command.description)
            built_folder = folder / "build"
            await asyncio.to_thread(built_folder.mkdir)
            order = BuildOrder(
                saga_id=work.saga_id,
                app_id=work.app_id,
                app=command.app,
                team=work.team,
                commit=command.commit,
                source_digest=command.source_digest,
                description=command.description,
                archive=archive,
                folder=built_folder,
                variables=given,
                builder=command.builder,
            )
            built = await builder.build(order, output=log, note=work.note, hold=hold)
    work.with_outcome(lambda conn: builds.succeeded(conn, work.saga_id, built))
    return ImageBuilt(repository=built.repository, digest=built.digest, layers=built.layers)


async def rebase_image(
    command: RebaseImage,
    *,
    work: Work,
    rebaser: ImageRebaser | KnarrError,
    builds: Builds,
    staging: Staging,
    logs: BuildLogs,
    timeout_s: float,
) -> ImageRebased:
    """Put the image onto the current run image, stage the result."""

    async def hold(digest: str) -> None:
        await staging.hold(work.app_id, digest, work.saga_id)

    await builds.begin(command, work)
    async with _logged(logs, builds, work, secrets=()) as log, _limited(timeout_s):
        if isinstance(rebaser, KnarrError):
            raise CannotBuild("The builder buildpacks is not here", why=rebaser.what, todo=rebaser.todo)
        order = RebaseOrder(
            saga_id=work.saga_id,
            app_id=work.app_id,
            app=command.app,
            repository=command.repository,
            digest=command.digest,
        )
        await asyncio.to_thread(log.say, f"Image {command.repository}@{command.digest}")
        made = await rebaser.rebase(order, output=log, note=work.note, hold=hold)
    built = Built(repository=made.repository, digest=made.digest, layers=())
    work.with_outcome(lambda conn: builds.succeeded(conn, work.saga_id, built))
    return ImageRebased(
        repository=made.repository,
        digest=made.digest,
        commit=command.commit,
        run_image=made.run_image,
        unchanged=made.unchanged,
    )


async def discard_build(
    _command: DiscardBuild,
    *,
    work: Work,
    builder: ImageBuilder,
    builds: Builds,
    staging: Staging,
    folders: WorkFolders,
) -> BuildDiscarded:
    """Nothing of this saga's build or rebase stays, except its log."""
    found: list[str] = []
    done: list[str] = []
    if processes := await builder.stop(work.saga_id):
        found.append(f"{processes} processes")
        done.append("ended them")
    if await folders.remove(work.saga_id):
        found.append("a work folder")
        done.append("removed it")
    if dropped := await staging.drop(work.saga_id):
        image, removed = dropped
        found.append(f"image {image}")
        done.append("removed it" if removed else "dropped our reference; another deployment holds it")
    work.with_outcome(lambda conn: builds.discarded(conn, work.saga_id))
    return BuildDiscarded(found=tuple(found), done=tuple(done))


def _say_plan(log: BuildLog, description: AppDescription) -> None:
    """Log what `source` detected, and what it passes over."""
    for line in description.detected:
        log.say(f"Plan: {line}")
    for line in description.notes:
        log.say(f"Note: {line}")


@asynccontextmanager
async def _logged(logs: BuildLogs, builds: Builds, work: Work, *, secrets: Iterable[str]) -> AsyncIterator[BuildLog]:
    """The attempt's log; an error is told there, its last lines go with the error, and the build's row says so."""
    secrets = tuple(secrets)
    work.hide(secrets)
    log = await asyncio.to_thread(partial(logs.open, work.saga_id, attempt=work.attempt, secrets=secrets))
    showing = asyncio.create_task(_show_unfinished(log))
    try:
        try:
            yield log
        except KnarrError as error:
            error.log_tail = error.log_tail or await asyncio.to_thread(log.tail, TAIL_LINES)
            await asyncio.to_thread(log.say, f"Failed: {error.message}")
            raise
    except Exception as error:
        why = work.shown(error.message) if isinstance(error, KnarrError) else "A fault of the builder."
        await builds.failed(work.saga_id, why)
        raise
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)
        await asyncio.to_thread(log.close)


async def _show_unfinished(log: BuildLog) -> None:
    """Show output without a line's end, for as long as the build runs. `write` reports a full disk, not this."""
    with contextlib.suppress(StorageFull):
        while True:
            await asyncio.sleep(SHOW_UNFINISHED_S)
            await asyncio.to_thread(log.show_unfinished)


@asynccontextmanager
async def _limited(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimedOut(
            "The build was stopped",
            why=f"it took longer than {timeout_s:g} s",
            todo="Look at its log for what hangs, or raise KNARR_BUILD_TIMEOUT_S.",
        ) from error
