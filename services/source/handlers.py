"""The exact commit (or an upload) in; an archive that this saga holds and the app's description out.

Safe to deliver twice: the archive's name is its content, the reference's the saga's.
"""

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.archives import ArchiveLimits, NormalTar, normalise_entries, read_tar
from seedwork.errors import InvalidInput
from seedwork.git import GitUrlPolicy
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
from services.source.lfs import Pointer, watch_pointers
from services.source.packing import Packed, Packer, named_pointers, unread_pointer
from services.source.plan import Capabilities, plan, tree_of_archive
from services.source.plan.addons import refuse_missing
from services.source.ports import AddOnKinds, Brought, LargeFiles, Repositories, Repository
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
    large_files: LargeFiles,
    policy: GitUrlPolicy,
    addon_kinds: AddOnKinds,
) -> SourceFetched | SourceFetchFailed:
    """Bring the source, describe the app in it, hold the archive for this saga."""
    async with archives.draft() as draft:
        try:
            if command.source_digest is not None:
                packed = await _unpack_upload(command, draft, work=work, uploads=uploads, limits=limits)
            else:
                packer = Packer(repositories, large_files, policy, limits, work)
                packed = await _pack_commit(command, draft, packer)
        except Superseded as error:
            return SourceFetchFailed(
                retryable=False, code=error.reason_code, message=error.message, superseded_by=error.superseded_by
            )
        work.note("reading the app's files")
        try:
            description = await in_thread(lambda _: _described(draft, command.settings, capabilities))
        except InvalidInput as error:
            raise unread_pointer(error, packed) from error
        if description.addons and (provided := await addon_kinds.provided()) is not None:
            refuse_missing(description.addons, provided)
        await archives.keep(packed.tar, draft, app_id=work.app_id, saga_id=work.saga_id)
    return SourceFetched(
        digest=packed.tar.digest,
        size_bytes=packed.tar.size_bytes,
        commit=packed.commit,
        description=description.model_copy(update={"notes": (*packed.notes, *description.notes)}),
        watched_digest=packed.watched_digest,
    )


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
) -> Packed:
    upload = uploads.path(command.source_digest or "")
    work.note("reading the upload")
    pointers: list[Pointer] = []

    def unpack(stop: threading.Event) -> NormalTar:
        entries = watch_pointers(read_tar(upload, limits=limits, compression="gzip", stop=stop), pointers)
        return normalise_entries(entries, draft, limits=limits, root=command.root, stop=stop)

    tar = await in_thread(unpack)
    names = tuple(each.name for each in pointers)
    notes = (f"{named_pointers(names)}: `git lfs pull` gets it",) if names else ()
    return Packed(tar, notes=notes, pointers=names)


async def _pack_commit(command: FetchSource, draft: Path, packer: Packer) -> Packed:
    if command.clone_url is None:
        raise InvalidInput(
            "There is nothing to fetch",
            why=f"the app {command.app} has no clone URL, and no archive was uploaded",
            todo=f"Upload its folder: `knarr deploy DIR --app {command.app}`",
        )
    try:
        return await _packed(command, command.clone_url, draft, packer)
    finally:
        await packer.clean()


async def _packed(command: FetchSource, clone_url: str, draft: Path, packer: Packer) -> Packed:
    watched = None
    packer.work.note(f"waiting for {clone_url}")
    async with packer.repositories.open(clone_url) as repository:
        packer.work.note(f"fetching {clone_url}")
        brought = await repository.bring(command.ref, command.commit)
        if not command.force:
            await _refuse_superseded(brought, command.known_commits, repository)
        packer.work.note(f"packing {brought.commit}")
        if command.settings.watch:
            watched = await repository.watched(brought.commit, command.settings.watch)
        tree = await packer.tree(repository, brought.commit, command.root, draft)
    packed = await packer.finish(clone_url, tree, draft)
    return replace(packed, commit=brought.commit, watched_digest=watched)


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
