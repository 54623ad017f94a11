"""Deployments that a person or a program asks for: a commit, the tip of a ref, or an uploaded archive.

What is asked for is exact before it is accepted: a ref is resolved to its commit now, an archive is stored in the
source service under its digest. With an `Idempotency-Key`, a request that comes again is answered with the first one's
deployment.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import Caller
from seedwork.archives import disk_errors
from seedwork.clock import Clock
from seedwork.errors import Conflict, InvalidInput
from seedwork.git import GitUrlPolicy
from seedwork.messages import new_id
from seedwork.outbox import Outbox
from seedwork.unit_of_work import Database
from services.webhook import rules
from services.webhook.apps import find
from services.webhook.deployments import LOCKED_APP, Wanted, request_deployment
from services.webhook.models import idempotency_keys
from services.webhook.ports import RemoteRefs, SourceArchive

_GZIP = b"\x1f\x8b"
_WRITTEN_BYTES = 1024 * 1024
"""Chunks from the network are some 64 kB; a thread is woken for a whole megabyte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks, and about which app."""

    app: str
    """Its name or id."""
    caller: Caller
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Requested:
    """The deployment that answers the request."""

    saga_id: str
    commit: str | None = None
    source_digest: str | None = None


class Requests:
    """Takes requests for deployments."""

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        clock: Clock,
        *,
        refs: RemoteRefs,
        archives: SourceArchive,
        policy: GitUrlPolicy,
        uploads: Path,
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._clock = clock
        self._refs = refs
        self._archives = archives
        self._policy = policy
        self._uploads = uploads

    async def clean(self) -> None:
        """Remove what a killed process left of its uploads. Before requests are taken."""
        await asyncio.to_thread(_empty_folder, self._uploads)

    async def deploy(self, asker: Asker, *, commit: str | None, ref: str | None, force: bool) -> Requested:
        """Deploy a commit, or the tip of a ref (of the app's own, if neither is given).

        Raises:
            InvalidInput: A field is wrong, or both are given.
            NotFound: The team has no such app, or the repository no such ref.
            NotAllowed: The repository is outside the allow-list.
            Conflict: The app has no repository, or is being removed.
            RetryableError: The repository did not answer.
        """
        app, known = await self._begin(asker)
        if known:
            return known
        if app.clone_url is None:
            raise Conflict(
                f"The app {app.name} has no repository",
                why="a commit can only be fetched from one",
                todo=f"Deploy a folder with `knarr deploy DIR --app {app.name}`, or name a repository with "
                f"`knarr apps update {app.name} --repository OWNER/NAME --clone-url URL`.",
            )
        self._policy.check(app.clone_url)
        if commit is not None and ref is not None:
            raise InvalidInput("commit and ref cannot both be given", todo="Give the one that you mean, or neither.")
        if commit is not None:
            wanted = Wanted(
                commit=rules.commit(commit), trigger="api", requested_by=asker.caller.name, ref=app.ref, force=force
            )
        else:
            ref, tip = await self._tip(app.clone_url, app.ref if ref is None else ref)
            wanted = Wanted(commit=tip, trigger="api", requested_by=asker.caller.name, ref=ref, force=force)
        is_tip = commit is None and ref == app.ref
        return await self._db.write(partial(self._request, app=app, asker=asker, wanted=wanted, is_tip=is_tip))

    async def _tip(self, clone_url: str, ref: str) -> tuple[str, str]:
        """The full name of the ref and its commit; a short name is looked for among branches, then tags."""
        if not ref.startswith("refs/"):
            return await self._refs.named(clone_url, rules.short_ref(ref))
        ref = rules.branch_or_tag(ref)
        return ref, await self._refs.tip(clone_url, ref)

    async def upload(self, asker: Asker, chunks: AsyncIterator[bytes]) -> Requested:
        """Deploy an uploaded archive: a gzip file, stored in the source service before this returns.

        Raises:
            InvalidInput: It is no gzip file.
            TooLarge: It is larger than allowed (`chunks` says so).
            NotFound: The team has no such app.
            Conflict: The app is being removed.
            StorageFull: No room here or in the source service.
            Unavailable: The source service did not answer.
        """
        app, known = await self._begin(asker)
        if known:
            return known
        draft = self._uploads / new_id()
        try:
            digest = await _keep(chunks, draft)
            await self._archives.put(digest, draft)
        finally:
            await asyncio.to_thread(draft.unlink, missing_ok=True)
        wanted = Wanted(commit=None, source_digest=digest, trigger="upload", requested_by=asker.caller.name, force=True)
        return await self._db.write(partial(self._request, app=app, asker=asker, wanted=wanted))

    async def _begin(self, asker: Asker) -> tuple[Row[Any], Requested | None]:
        """The app, and the deployment if this request came before."""

        async def load(conn: AsyncConnection) -> tuple[Row[Any], Requested | None]:
            app = await find(conn, name_or_id=asker.app, access=asker.caller.access, own=asker.caller.team)
            return app, await _known(conn, app.app_id, asker.idempotency_key)

        app, known = await self._db.read(load)
        if not known:
            _must_be_active(app)
        return app, known

    async def _request(
        self, conn: AsyncConnection, *, app: Row[Any], asker: Asker, wanted: Wanted, is_tip: bool = False
    ) -> Requested:
        app = (await conn.execute(LOCKED_APP, {"wanted_id": app.app_id})).one()
        if known := await _known(conn, app.app_id, asker.idempotency_key):
            return known  # the same request, at the same moment
        _must_be_active(app)
        saga_id = await request_deployment(conn, self._outbox, app, wanted, is_tip=is_tip)
        if asker.idempotency_key is not None:
            row = {
                "app_id": app.app_id,
                "idempotency_key": asker.idempotency_key,
                "saga_id": saga_id,
                "commit": wanted.commit,
                "source_digest": wanted.source_digest,
                "created_ms": self._clock.now_ms(),
            }
            await conn.execute(insert(idempotency_keys).values(row))
        return Requested(saga_id, wanted.commit, wanted.source_digest)


def _must_be_active(app: Row[Any]) -> None:
    if app.state != "active":
        raise Conflict(f"The app {app.name} takes no deployments", why="it is being removed")


async def _known(conn: AsyncConnection, app_id: str, key: str | None) -> Requested | None:
    if key is None:
        return None
    keys = idempotency_keys.c
    row = (
        await conn.execute(select(idempotency_keys).where(keys.app_id == app_id, keys.idempotency_key == key))
    ).one_or_none()
    return None if row is None else Requested(row.saga_id, row.commit, row.source_digest)


async def _keep(chunks: AsyncIterator[bytes], draft: Path) -> str:
    """Write the archive down; its digest."""
    hashed = hashlib.sha256()
    size_bytes = 0
    with disk_errors():
        file = await asyncio.to_thread(_create, draft)
        try:
            async for block in _blocks(chunks):
                if size_bytes == 0 and not block.startswith(_GZIP):
                    raise _no_gzip("it does not begin as one")
                size_bytes += len(block)
                await asyncio.to_thread(_append, file, hashed, block)
        finally:
            await asyncio.to_thread(file.close)
    if size_bytes == 0:
        raise _no_gzip("it is empty")
    return f"sha256:{hashed.hexdigest()}"


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in larger pieces."""
    block = bytearray()
    async for chunk in chunks:
        block += chunk
        if len(block) >= _WRITTEN_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def _create(draft: Path) -> BinaryIO:
    draft.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _append(file: BinaryIO, hashed: Any, block: bytes) -> None:
    file.write(block)
    hashed.update(block)


def _empty_folder(folder: Path) -> None:
    for each in folder.iterdir() if folder.is_dir() else ():
        each.unlink()


def _no_gzip(why: str) -> InvalidInput:
    return InvalidInput("The body is no gzip file", why=why, todo="Send a .tar.gz as application/gzip.")
