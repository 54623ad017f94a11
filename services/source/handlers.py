"""The exact commit (or an upload) in; an archive that this saga holds and the app's description out.

Safe to deliver twice: the archive's name is its content, the reference's the saga's.
"""

from collections.abc import Mapping
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.archives import ArchiveLimits, NormalTar, normalise_tar
from seedwork.errors import InvalidInput
from seedwork.messages import Envelope
from seedwork.participant import Work
from seedwork.threads import in_thread
from seedwork.unit_of_work import after_commit
from services.saga_coordinator.contract import DeploymentSucceeded
from services.source.archives import Archives, forget
from services.source.contract import (
    AppDescription,
    BuildSettings,
    DiscardSource,
    FetchSource,
    SourceDiscarded,
    SourceFetched,
    SourceFetchFailed,
)
from services.source.errors import Superseded
from services.source.plan import Capabilities, plan, tree_of_archive
from services.source.ports import Brought, Repositories, Repository
from services.source.sweeper import Sweeper
from services.source.uploads import Uploads


async def fetch_source(
    command: FetchSource,
    *,
    work: Work,
    repositories: Repositories,
    uploads: Uploads,
    archives: Archives,
    limits: ArchiveLimits,
    capabilities: Capabilities,
) -> SourceFetched | SourceFetchFailed:
    """Bring the source, describe the app in it, hold the archive for this saga."""
    async with archives.draft() as draft:
        try:
            if command.source_digest is not None:
                commit, packed = None, await _unpack_upload(command, draft, work=work, uploads=uploads, limits=limits)
            else:
                commit, packed = await _pack_commit(command, draft, work=work, repositories=repositories)
        except Superseded as error:
            return SourceFetchFailed(
                retryable=False, code=error.reason_code, message=error.message, superseded_by=error.superseded_by
            )
        work.note("reading the app's files")
        description = await in_thread(lambda _: _described(draft, command.settings, capabilities))
        await archives.keep(packed, draft, app_id=work.app_id, saga_id=work.saga_id)
    return SourceFetched(digest=packed.digest, size_bytes=packed.size_bytes, commit=commit, description=description)


def _described(archive: Path, settings: BuildSettings, capabilities: Capabilities) -> AppDescription:
    with tree_of_archive(archive) as tree:
        return plan(tree, settings=settings, capabilities=capabilities)


async def discard_source(_command: DiscardSource, *, work: Work, archives: Archives) -> SourceDiscarded:
    """Let go of what this saga holds; nothing held is fine."""
    dropped = await archives.drop(work.saga_id)
    return SourceDiscarded(
        found=tuple(f"reference to archive {each.digest}" for each in dropped),
        done=tuple(
            "dropped, the archive was removed" if each.bytes_removed else "dropped, others hold the archive"
            for each in dropped
        ),
    )


async def on_succeeded(
    _event: DeploymentSucceeded, envelope: Envelope, conn: AsyncConnection, *, sweeper: Sweeper
) -> None:
    """The image is published: this saga needs its source no more."""
    await forget(conn, envelope.correlationid)
    after_commit(conn, sweeper.wake)


async def _unpack_upload(
    command: FetchSource, draft: Path, *, work: Work, uploads: Uploads, limits: ArchiveLimits
) -> NormalTar:
    upload = uploads.path(command.source_digest or "")
    work.note("reading the upload")
    return await in_thread(
        lambda stop: normalise_tar(upload, draft, limits=limits, root=command.root, compression="gzip", stop=stop)
    )


async def _pack_commit(
    command: FetchSource, draft: Path, *, work: Work, repositories: Repositories
) -> tuple[str, NormalTar]:
    if command.clone_url is None:
        raise InvalidInput(
            "There is nothing to fetch",
            why=f"the app {command.app} has no clone URL, and no archive was uploaded",
            todo="Give the app a clone_url, or upload its folder (`knarr deploy DIR`).",
        )
    work.note(f"waiting for {command.clone_url}")
    async with repositories.open(command.clone_url) as repository:
        work.note(f"fetching {command.clone_url}")
        brought = await repository.bring(command.ref, command.commit)
        if not command.force:
            await _refuse_superseded(brought, command.known_commits, repository)
        work.note(f"packing {brought.commit}")
        return brought.commit, await repository.pack(brought.commit, command.root, draft)


async def _refuse_superseded(brought: Brought, known: Mapping[str, str], repository: Repository) -> None:
    """An older commit must not replace a newer one, unless somebody moved the ref back to it (DESIGN §3.3)."""
    if brought.commit == brought.tip:
        return
    for saga_id, commit in sorted(known.items(), reverse=True):  # the newest saga's name tells most
        if await repository.is_ancestor(brought.commit, commit):
            raise Superseded(
                f"The commit {brought.commit} is older than {commit}",
                why=f"that one is live or waiting (saga {saga_id}), and the ref does not name the older one any more",
                todo="To deploy the older one all the same, deploy it with force.",
                superseded_by=saga_id,
            )
