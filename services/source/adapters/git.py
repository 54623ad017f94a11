"""Repositories through the git command, each with a bare mirror on disk: a second fetch moves only what is new.

A mirror is a cache. It is used under its lock, it is removed when git finds it damaged (the next attempt makes it
anew), and it goes when nobody used it for long. Git runs under the rules of `seedwork.git`. Submodules are not fetched,
LFS pointers stay pointers, and `export-ignore` in `.gitattributes` is honoured, since `git archive` writes the tar.
"""

import contextlib
import hashlib
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from seedwork.archives import ArchiveLimits, BadArchive, NormalTar, NotAFolder, normalise_tar
from seedwork.errors import (
    FinalError,
    InvalidInput,
    NotAllowed,
    NotFound,
    TimedOut,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from seedwork.git import COMMIT, GitUrlPolicy, check_ref, git_command, git_error, run_git, safe_git_env
from seedwork.git_credentials import GitCredentials
from seedwork.threads import in_thread
from services.source.errors import CommitNotFound, NotACommit, RepositoryRefused
from services.source.locks import NamedLocks
from services.source.ports import Brought

_LOCAL_S = 60.0
"""For a question to the mirror; they take milliseconds."""
_UPKEEP_S = 600.0
"""For `git gc` and `git fsck`, which read a whole mirror."""
_ANSWER_BYTES = 64 * 1024
_POLL_MS = 200
"""How often a reader that waits for git looks whether it should stop."""

_DURABLE = ("fetch.unpackLimit=1", "core.fsync=pack,pack-metadata,reference")
"""What was fetched stays in packs, written through to the disk: git leaves loose objects to the page cache."""

_GONE = re.compile("couldn't find remote ref|not our ref|unadvertised object", re.IGNORECASE)
"""The host's own words for a ref or a commit that it does not have."""


class GitRepositories:
    """The `Repositories` port.

    Args:
        folder: Where the mirrors are.
        policy: The allow-list.
        credentials: Tokens for private repositories.
        limits: How much of a commit's tree is taken.
        fetch_timeout_s: For one fetch.
    """

    def __init__(
        self,
        folder: Path,
        *,
        policy: GitUrlPolicy,
        credentials: GitCredentials,
        limits: ArchiveLimits,
        fetch_timeout_s: float,
    ) -> None:
        self._folder = folder
        self._policy = policy
        self._credentials = credentials
        self._limits = limits
        self._fetch_timeout_s = fetch_timeout_s
        self._locks = NamedLocks(folder)

    @contextlib.asynccontextmanager
    async def open(self, clone_url: str) -> AsyncIterator["GitMirror"]:
        """Hold that repository, see the port."""
        self._policy.check(clone_url)
        name = hashlib.sha256(clone_url.encode()).hexdigest()[:32]
        async with self._locks.hold(name):
            yield GitMirror(
                self._folder / f"{name}.git",
                clone_url,
                env=self._credentials.env_for(clone_url),
                limits=self._limits,
                fetch_timeout_s=self._fetch_timeout_s,
            )

    async def sweep(self, keep_s: float) -> int:
        """Remove mirrors that were not used for so long, and pack the others where it is worth it; how many went."""
        removed = 0
        for path in sorted(self._folder.glob("*.git")):
            async with self._locks.hold(path.stem):
                if time.time() - path.stat().st_mtime >= keep_s:
                    await _remove_tree(path)
                    removed += 1
                else:
                    config = ("gc.auto=1000", "gc.autoDetach=false")
                    arguments = ["gc", "--auto", "--quiet"]
                    await _git(arguments, mirror=path, config=config, timeout_s=_UPKEEP_S, what="Packing a mirror")
        return removed


class GitMirror:
    """The `Repository` port: one mirror, used by one task at a time."""

    def __init__(
        self, path: Path, url: str, *, env: Mapping[str, str], limits: ArchiveLimits, fetch_timeout_s: float
    ) -> None:
        self._path = path
        self._url = url
        self._env = env
        self._limits = limits
        self._fetch_timeout_s = fetch_timeout_s
        self._trees: dict[str, str] = {}
        """Of commits that were read on the way: a program less."""

    async def bring(self, ref: str | None, commit: str | None) -> Brought:
        """Get the exact commit, see the port."""
        if ref is not None:
            check_ref(ref)
        if commit is not None and not COMMIT.fullmatch(commit):
            raise InvalidInput(f"{commit[:100]!r} is no commit", todo="Give all 40 hex digits, in lower case.")
        async with self._repaired():
            await self._prepare()
            tip = await self._fetch_ref(ref or "HEAD")
            wanted = commit or tip
            if wanted is None:
                raise CommitNotFound(f"{self._url} has no {ref}", todo="Push it, or correct the app's ref.")
            if wanted != tip:
                wanted = await self._found(wanted, tip, ref or "HEAD")
            return Brought(commit=wanted, tip=tip)

    async def is_ancestor(self, older: str, newer: str) -> bool:
        """Whether `newer`'s history has `older` in it, see the port."""
        if older == newer or not (await self._has(older) and await self._has(newer)):
            return False
        return await self._reaches(newer, older)

    async def pack(self, commit: str, root: str, out_path: Path) -> NormalTar:
        """Write the commit's folder as a tar, see the port."""
        async with self._repaired():
            tree = await self._tree(commit, root)
            return await in_thread(lambda stop: self._archive(tree, out_path, stop))

    @contextlib.asynccontextmanager
    async def _repaired(self) -> AsyncIterator[None]:
        """A failure that a damaged mirror may have caused: look, and if so, remove it and let the saga try again."""
        try:
            yield
        except (CommitNotFound, RepositoryRefused, InvalidInput, TooLarge, TimedOut):
            raise
        except FinalError as error:
            if await self._is_sound():
                raise
            await _remove_tree(self._path)
            raise Unavailable(
                f"The mirror of {self._url} was damaged", why=error.message, todo="The next attempt fetches it anew."
            ) from error

    async def _prepare(self) -> None:
        """Make the mirror, if it is not there. We hold its lock: a lock file in it is of a git that was killed."""
        if not (self._path / "HEAD").exists():
            await _git(["init", "--quiet", "--bare", "--template=", str(self._path)], what="Making a mirror")
        await in_thread(lambda _: _remove_leftovers(self._path))
        os.utime(self._path)

    async def _fetch_ref(self, ref: str) -> str | None:
        """The commit that the ref names now, fetched; None if the ref is gone."""
        kept = f"refs/knarr/refs/{hashlib.sha256(ref.encode()).hexdigest()[:32]}"
        if not await self._fetch(f"+{ref}:{kept}", f"Fetching {ref} of {self._url}"):
            return None
        names = [f"{kept}^{{commit}}", f"{kept}^{{tree}}"]
        try:
            answer = await _git(["rev-parse", *names], mirror=self._path, what=f"Reading {ref}")
        except FinalError:
            await self._refuse_others(kept, ref)
            raise
        commit, tree = answer.split()
        self._trees[commit] = tree
        return commit

    async def _found(self, wanted: str, tip: str | None, ref: str) -> str:
        """Fetch the commit where it is not here; return its id, which is another one where a tag was asked for."""
        if tip and await self._has(wanted) and await self._reaches(tip, wanted):
            return await self._peeled(wanted)
        await self._fetch_commit(wanted, ref)
        return await self._peeled(wanted)

    async def _peeled(self, wanted: str) -> str:
        return await _git(["rev-parse", f"{wanted}^{{commit}}"], mirror=self._path, what="Reading a commit")

    async def _refuse_others(self, name: str, shown: str) -> None:
        """Raise `NotACommit` where this names a tree or a blob, perhaps through a tag."""
        try:
            kind = await _git(["cat-file", "-t", f"{name}^{{}}"], mirror=self._path, what=f"Reading {shown}")
        except FinalError:
            return  # it is not here, or damaged: the caller says so
        if kind != "commit":
            raise NotACommit(
                f"{shown} is a {kind}, no commit",
                why="only a commit, or a tag of one, can be deployed",
                todo="Give the id of a commit: `git rev-parse HEAD` prints it.",
            )

    async def _fetch_commit(self, commit: str, ref: str) -> None:
        """Ask for it by its name: a force push took it out of the ref's history, or it is on another ref."""
        await self._refuse_others(commit, commit)
        if not await self._fetch(f"+{commit}:refs/knarr/commits/{commit}", f"Fetching {commit} of {self._url}"):
            raise CommitNotFound(
                f"The commit {commit} is not in {self._url}",
                why=f"the history of {ref} does not have it, and the host does not give it by its name",
                todo="A force push may have removed it: push it again, or deploy another commit.",
            )
        if not await self._has(commit):
            await self._refuse_others(commit, commit)
            raise FinalError(f"The mirror of {self._url} does not have what was fetched", code="mirror_damaged")

    async def _fetch(self, refspec: str, what: str) -> bool:
        """False if the host says that it has no such thing."""
        arguments = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"]
        fetched = False
        try:
            await _git(
                [*arguments, "--end-of-options", self._url, refspec],
                mirror=self._path,
                config=_DURABLE,
                env=self._env,
                timeout_s=self._fetch_timeout_s,
                what=what,
            )
            fetched = True
        except (Unauthenticated, NotAllowed) as error:
            raise self._refused(error) from error
        except NotFound as error:
            if any(_GONE.search(line) for line in error.log_tail):
                return False
            if error.reason_code == "repository_not_found":
                raise self._refused(error) from error
            raise
        finally:
            if not fetched:
                await in_thread(lambda _: _remove_leftovers(self._path))
        return True

    def _refused(self, error: FinalError) -> RepositoryRefused:
        return RepositoryRefused(
            f"{self._url} cannot be read",
            why=error.why,
            todo="Check the app's clone URL. A private repository needs a token in KNARR_SOURCE_CREDENTIALS"
            " (https) or a key in ~/.ssh of the user that runs knarr (ssh).",
            log_tail=error.log_tail,
        )

    async def _has(self, commit: str) -> bool:
        question = ["rev-parse", "--quiet", "--verify", f"{commit}^{{commit}}"]
        try:
            await _git(question, mirror=self._path, what="Looking for a commit")
        except FinalError:
            return False
        return True

    async def _reaches(self, tip: str, commit: str) -> bool:
        """Whether `tip`'s history has `commit` in it: then nothing of `commit`'s history is outside of `tip`'s."""
        question = ["rev-list", "--max-count=1", commit, "--not", tip]
        return not await _git(question, mirror=self._path, what="Comparing commits")

    async def _is_sound(self) -> bool:
        if not (self._path / "HEAD").exists():
            return True  # nothing to repair: the fault lies elsewhere
        question = ["fsck", "--connectivity-only", "--no-dangling", "--no-progress"]
        try:
            await _git(question, mirror=self._path, timeout_s=_UPKEEP_S, what="Checking a mirror")
        except FinalError:
            return False
        return True

    async def _tree(self, commit: str, root: str) -> str:
        """The folder's own id: from it `git archive` knows no commit to write in, so one tree gives the same bytes."""
        parts = [part for part in root.split("/") if part not in {"", "."}]
        if root.startswith("/") or ".." in parts or not root.isprintable():
            raise InvalidInput(f"The app's root {root[:100]!r} is no folder inside the repository")
        tree = self._trees.get(commit)
        if tree is None:
            question = ["rev-parse", "--verify", f"{commit}^{{tree}}"]
            tree = await _git(question, mirror=self._path, what="Reading a commit")
        if not parts:
            return tree
        question = ["--literal-pathspecs", "ls-tree", "-z", tree, "--", "/".join(parts)]
        found = await _git(question, mirror=self._path, what="Looking for a folder")
        mode_type_name = found.partition("\t")[0].split()
        if len(mode_type_name) != 3 or mode_type_name[1] != "tree":
            raise NotAFolder(
                f"The commit {commit} has no folder {root!r}",
                todo="Correct the app's `root`, or commit the folder.",
            )
        return mode_type_name[2]

    def _archive(self, tree: str, out_path: Path, stop: threading.Event) -> NormalTar:
        _count(self._path, tree, self._limits, stop)
        with _output_of(self._path, ["archive", "--format=tar", tree], self._limits, stop) as tar:
            return normalise_tar(cast("BinaryIO", tar), out_path, limits=self._limits, stop=stop)


async def _git(
    args: Sequence[str],
    *,
    what: str,
    mirror: Path | None = None,
    config: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    timeout_s: float = _LOCAL_S,
) -> str:
    where = [] if mirror is None else [f"--git-dir={mirror}"]
    settings = [part for setting in config for part in ("-c", setting)]
    command = [*settings, *where, *args]
    output = await run_git(command, env=env, timeout_s=timeout_s, max_output_bytes=_ANSWER_BYTES, what=what)
    return output.decode(errors="replace").strip()


async def _remove_tree(path: Path) -> None:
    await in_thread(lambda _: shutil.rmtree(path, ignore_errors=True))


def _remove_leftovers(mirror: Path) -> None:
    """Of a git that was killed or found the disk full: locks, and packs that are not complete (git leaves them)."""
    places = [*mirror.glob("*.lock"), *(mirror / "refs").rglob("*.lock"), *(mirror / "objects").glob("*/tmp_*")]
    for path in places:
        path.unlink(missing_ok=True)


def _count(mirror: Path, tree: str, limits: ArchiveLimits, stop: threading.Event) -> None:
    """Refuse a tree that is too large before `git archive` takes it into memory: a few bytes can name 10^9 files."""
    entries = size = 0
    rest = b""
    with _output_of(mirror, ["ls-tree", "-r", "-t", "-l", "-z", tree], limits, stop) as listing:
        while chunk := listing.read(64 * 1024):
            *records, rest = (rest + chunk).split(b"\0")
            entries += len(records)
            size += sum(_size(record) for record in records)
            if entries > limits.max_entries or size > limits.max_bytes:
                raise TooLarge(
                    f"The app's folder holds more than {limits.max_entries} files or {limits.max_bytes} bytes",
                    todo="Take generated and large files out of the repository, or raise KNARR_SOURCE_MAX_ENTRIES"
                    " or KNARR_SOURCE_MAX_BYTES.",
                    code="archive_too_large",
                )


def _size(record: bytes) -> int:
    """From `mode type object size<TAB>path`; folders and submodules have `-` for a size."""
    size = record.partition(b"\t")[0].split()[3]
    return int(size) if size.isdigit() else 0


@contextlib.contextmanager
def _output_of(mirror: Path, args: Sequence[str], limits: ArchiveLimits, stop: threading.Event) -> Iterator["_Output"]:
    """What git prints, while it prints it; git is gone at the end, and its failure is the error that counts."""
    with tempfile.TemporaryFile() as complaint:
        process = subprocess.Popen(
            git_command([f"--git-dir={mirror}", *args]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaint,
            env=safe_git_env(),
            start_new_session=True,
            bufsize=0,
        )
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        output = _Output(process.stdout.fileno(), limits.max_seconds, stop)
        try:
            yield output
            _raise_if_failed(process, complaint, args[0])
        except BadArchive:
            if output.ended:  # torn off in the middle: git's own words say why
                _raise_if_failed(process, complaint, args[0])
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()


def _raise_if_failed(
    process: "subprocess.Popen[bytes]", complaint: "tempfile._TemporaryFileWrapper[bytes] | BinaryIO", command: str
) -> None:
    status = process.wait()
    if status != 0:
        complaint.seek(0)
        raise git_error(f"git {command}", status, complaint.read(16 * 1024))


class _Output:
    """A pipe whose reader can be told to stop while it waits."""

    def __init__(self, fd: int, max_seconds: float, stop: threading.Event) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._stop = stop
        self._ends_at = time.monotonic() + max_seconds
        self.ended = False

    def read(self, size: int) -> bytes:
        while not self._poll.poll(_POLL_MS):
            if self._stop.is_set() or time.monotonic() >= self._ends_at:
                raise TimedOut("git did not finish in time, or was stopped")
        data = os.read(self._fd, size)
        self.ended = not data
        return data
