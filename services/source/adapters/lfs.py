"""`LargeFiles`: the LFS batch API over HTTPS, and the store of a repository on this machine.

Content is kept by repository and SHA-256, so that an app gets no other repository's content by naming its hash. A file
is used only when its size and its hash are right. Protocol:
https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md. `.lfsconfig` is not read: the store is the clone URL's.
"""

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
import orjson

from seedwork.archives import disk_errors
from seedwork.errors import FinalError, InvalidInput, NotAllowed, NotFound, TooLarge, Unavailable
from seedwork.git import GitUrlPolicy, https_form
from seedwork.git_credentials import GitCredentials
from seedwork.messages import new_id
from seedwork.threads import in_thread
from services.source.lfs import Pointer

_OBJECTS_AT_ONCE = 100
"""In one question; the specification leaves it open, and hosts take 100."""
_ANSWER_BYTES = 1024 * 1024
_MEDIA = "application/vnd.git-lfs+json"
_REDIRECTED, _REFUSED, _RETRY = range(300, 400), (401, 403), (408, 425, 429)

Client = Callable[[], httpx2.AsyncClient]


class LfsStore:
    """The `LargeFiles` port.

    Args:
        folder: Where content is kept.
        policy: The allow-list of repositories.
        credentials: Tokens for private repositories.
        timeout_s: Seconds for all content of one repository.
        client: Makes an HTTP client, for tests.
    """

    def __init__(
        self,
        folder: Path,
        *,
        policy: GitUrlPolicy,
        credentials: GitCredentials,
        timeout_s: float,
        client: Client | None = None,
    ) -> None:
        self._folder = folder
        self._policy = policy
        self._credentials = credentials
        self._timeout_s = timeout_s
        self._client = client or _client

    async def bring(self, clone_url: str, pointers: Sequence[Pointer]) -> Mapping[str, Path]:
        """Get what the pointers stand for, see the port."""
        self._policy.check(clone_url)
        kept = self._folder / hashlib.sha256(clone_url.encode()).hexdigest()[:32]
        await in_thread(lambda _: kept.mkdir(parents=True, exist_ok=True, mode=0o700))
        wanted = {each.oid: each for each in pointers}
        missing = [each for oid, each in wanted.items() if not await in_thread(lambda _, at=kept / oid: _touched(at))]  # type: ignore[misc]
        if missing and clone_url.startswith("file://"):
            await in_thread(lambda _: _copy_all(Path(unquote(clone_url.removeprefix("file://"))), missing, kept))
        elif missing:
            ends_at = time.monotonic() + self._timeout_s
            async with self._client() as client:
                await self._download_all(client, self._https(clone_url), missing, kept, ends_at)
        return {oid: kept / oid for oid in wanted if await in_thread(lambda _, at=kept / oid: at.exists())}  # type: ignore[misc]

    async def sweep(self, keep_s: float) -> int:
        """Remove content that was not used for so long; how many files."""
        return await in_thread(lambda _: _removed(self._folder, keep_s))

    def _https(self, clone_url: str) -> str:
        """The https address of the repository: the store of one that is fetched by ssh is asked there, if allowed."""
        if clone_url.startswith("https://"):
            return clone_url
        other = https_form(clone_url) or clone_url
        self._policy.check(other)
        return other

    async def _download_all(
        self, client: httpx2.AsyncClient, url: str, pointers: Sequence[Pointer], kept: Path, ends_at: float
    ) -> None:
        host = urlsplit(url).hostname
        authorization = self._credentials.authorization_for(url)
        for at in range(0, len(pointers), _OBJECTS_AT_ONCE):
            batch = {each.oid: each for each in pointers[at : at + _OBJECTS_AT_ONCE]}
            for oid, (href, headers) in (await self._batch(client, url, batch, authorization)).items():
                own = authorization and not headers and urlsplit(href).hostname == host
                request = client.build_request(
                    "GET", href, headers={"Authorization": authorization} if own and authorization else dict(headers)
                )
                if oid in batch:
                    with contextlib.suppress(NotFound):  # it is named as missing
                        await _download(client, request, batch[oid], kept, ends_at)

    async def _batch(
        self, client: httpx2.AsyncClient, url: str, batch: Mapping[str, Pointer], authorization: str | None
    ) -> Mapping[str, tuple[str, Mapping[str, str]]]:
        """Address and headers of each object that the store has."""
        address = f"{url.removesuffix('/').removesuffix('.git')}.git/info/lfs/objects/batch"
        wanted = [{"oid": each.oid, "size": each.size_bytes} for each in batch.values()]
        question = {"operation": "download", "transfers": ["basic"], "hash_algo": "sha256", "objects": wanted}
        headers = {"Accept": _MEDIA, "Content-Type": _MEDIA}
        if authorization:
            headers["Authorization"] = authorization
        with _faults(url):
            async with client.stream("POST", address, json=question, headers=headers) as response:
                _raise_for(response, url)
                body = bytearray()
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > _ANSWER_BYTES:
                        raise TooLarge(f"The LFS store of {url} answers with more than {_ANSWER_BYTES} bytes")
                answer = orjson.loads(body)
        return dict(_actions(answer))


def _client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(timeout=httpx2.Timeout(30.0), follow_redirects=False)


def _actions(answer: Any) -> Sequence[tuple[str, tuple[str, Mapping[str, str]]]]:
    """What the store says of each object, as far as it has the documented form."""
    found: list[tuple[str, tuple[str, Mapping[str, str]]]] = []
    objects = answer.get("objects") if isinstance(answer, dict) else None
    for each in objects if isinstance(objects, list) else ():
        actions = each.get("actions") if isinstance(each, dict) else None
        download = actions.get("download") if isinstance(actions, dict) else None
        if not isinstance(download, dict) or not isinstance(each.get("oid"), str):
            continue
        href, headers = download.get("href"), download.get("header") or {}
        if isinstance(href, str) and href.startswith("https://") and isinstance(headers, dict):
            found.append((each["oid"], (href, {str(name): str(value) for name, value in headers.items()})))
    return found


async def _download(
    client: httpx2.AsyncClient, request: httpx2.Request, pointer: Pointer, kept: Path, ends_at: float
) -> None:
    """One file, written as it comes and kept if it is what the pointer says."""
    shown = str(request.url).partition("?")[0]  # what follows may be a signature
    draft = kept / f"{new_id()}.part"
    hashed, size_bytes = hashlib.sha256(), 0
    try:
        with _faults(shown), disk_errors(), draft.open("xb") as file:
            response = await client.send(request, stream=True)
            async with contextlib.aclosing(response):
                _raise_for(response, shown)
                async for piece in response.aiter_bytes():
                    size_bytes += len(piece)
                    if size_bytes > pointer.size_bytes:
                        break
                    if time.monotonic() >= ends_at:
                        raise Unavailable("The Git LFS content did not come in time", todo="Try again.")
                    hashed.update(piece)
                    file.write(piece)
        _settle(draft, kept, pointer, hashed.hexdigest(), size_bytes)
    finally:
        draft.unlink(missing_ok=True)


def _copy_all(repository: Path, pointers: Sequence[Pointer], kept: Path) -> None:
    """From the store of a repository on this machine: `lfs/objects/aa/bb/OID`, in `.git` where there is a work tree."""
    for pointer in pointers:
        inner = Path("lfs", "objects", pointer.oid[:2], pointer.oid[2:4], pointer.oid)
        for place in (repository / inner, repository / ".git" / inner):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                _copy(place, pointer, kept)
                break


def _copy(place: Path, pointer: Pointer, kept: Path) -> None:
    draft = kept / f"{new_id()}.part"
    hashed, size_bytes = hashlib.sha256(), 0
    fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as source:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return
        try:
            with disk_errors(), draft.open("xb") as file:
                while size_bytes <= pointer.size_bytes and (piece := source.read(256 * 1024)):
                    size_bytes += len(piece)
                    hashed.update(piece)
                    file.write(piece)
            _settle(draft, kept, pointer, hashed.hexdigest(), size_bytes)
        finally:
            draft.unlink(missing_ok=True)


def _settle(draft: Path, kept: Path, pointer: Pointer, oid: str, size_bytes: int) -> None:
    if (oid, size_bytes) != (pointer.oid, pointer.size_bytes):
        raise InvalidInput(
            f"The Git LFS content of {pointer.name!r} is not what its pointer says",
            why=f"the pointer says {pointer.oid} and {pointer.size_bytes} bytes",
            todo="Push the file again: git lfs push --all origin",
        )
    draft.replace(kept / pointer.oid)


def _touched(path: Path) -> bool:
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _removed(folder: Path, keep_s: float) -> int:
    count = 0
    for path in folder.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= keep_s:
                path.unlink()
                count += 1
    return count


@contextlib.contextmanager
def _faults(url: str) -> Iterator[None]:
    """A fault of the network, or an answer of another form, as one of our errors."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        if isinstance(error, (httpx2.InvalidURL, ValueError)):
            raise FinalError(f"The LFS store of {url} cannot be read", why=str(error)[:200]) from error
        raise Unavailable(f"The LFS store at {url} does not answer", why=str(error)[:200], todo="Try again.") from error


def _raise_for(response: httpx2.Response, url: str) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in _RETRY or status >= 500:
        raise Unavailable(f"The LFS store at {url} answered {status}", todo="Try again.")
    if status in _REFUSED:
        raise NotAllowed(
            f"The LFS store at {url} answered {status}",
            todo="Give knarr a token that may read the repository: KNARR_SOURCE_CREDENTIALS.",
        )
    raise NotFound(f"The LFS store at {url} answered {status}")
