"""Repositories through the git command, each with a bare mirror on disk: a second fetch moves only what is new.

A mirror is a cache. It is used under its lock, it is removed when git finds it damaged (the next attempt makes it
anew), and it goes when nobody used it for long. Git runs under the rules of `seedwork.git`. `export-ignore` in
`.gitattributes` is honoured, since `git archive` writes the tar. Submodules and LFS pointers are named, and stay what
they are here: `packing.py` fetches them, one repository after the other, so that no two locks are held at once.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from seedwork.archives import ArchiveLimits, NormalTar, NotAFolder, normalise_entries, read_tar
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
from seedwork.git import COMMIT, GitUrlPolicy, check_ref, resolved_url
from seedwork.git_credentials import GitCredentials
from seedwork.threads import in_thread
from services.source.adapters.git_listing import counted_links, paths_and_urls, watched_digest
from services.source.adapters.git_output import git, output_of
from services.source.errors import CommitNotFound, NotACommit, RepositoryRefused
from services.source.lfs import Pointer, watch_pointers
from services.source.locks import NamedLocks
from services.source.ports import Brought, PackedTree, Submodule

_UPKEEP_S = 600.0
"""For `git gc` and `git fsck`, which read a whole mirror."""
_ATTRIBUTES_AT_ONCE = 100
"""Names in one command: the answer repeats them."""

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
                    await git(arguments, mirror=path, config=config, timeout_s=_UPKEEP_S, what="Packing a mirror")
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

    async def submodule_at(self, commit: str, root: str) -> Submodule | None:
        """The submodule that is the folder, or that holds it, see the port."""
        parts = _parts(root)
        async with self._repaired():
            for count in range(1, len(parts) + 1):
                path = "/".join(parts[:count])
                found = await self._entry(await self._root_tree(commit), path)
                if found is None or found[0] == "blob":
                    return None
                if found[0] == "commit":
                    urls = await self._submodule_urls(commit)
                    return Submodule(path, found[1], urls.get(path, ""), "/".join(parts[count:]) or ".")
        return None

    async def pack(self, commit: str, root: str, out_path: Path) -> PackedTree:
        """Write the commit's folder as a tar, see the port."""
        async with self._repaired():
            tree = await self._tree(commit, root)
            tar, links, pointers = await in_thread(lambda stop: self._archive(tree, out_path, stop))
            urls = await self._submodule_urls(commit) if links else {}
            prefix = "".join(f"{part}/" for part in _parts(root))
            submodules = tuple(Submodule(path, of, urls.get(prefix + path, "")) for path, of in links)
            if pointers:
                pointers = await self._filtered(commit, prefix, pointers)
            return PackedTree(tar, submodules, tuple(pointers))

    async def watched(self, commit: str, patterns: Sequence[str]) -> str:
        """The digest of the files that match, see the port."""
        async with self._repaired():
            tree = await self._root_tree(commit)
            return await in_thread(lambda stop: watched_digest(self._path, tree, patterns, self._limits, stop))

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
            await git(["init", "--quiet", "--bare", "--template=", str(self._path)], what="Making a mirror")
        await in_thread(lambda _: _remove_leftovers(self._path))
        os.utime(self._path)

    async def _fetch_ref(self, ref: str) -> str | None:
        """The commit that the ref names now, fetched; None if the ref is gone."""
        kept = f"refs/knarr/refs/{hashlib.sha256(ref.encode()).hexdigest()[:32]}"
        if not await self._fetch(f"+{ref}:{kept}", f"Fetching {ref} of {self._url}"):
            return None
        names = [f"{kept}^{{commit}}", f"{kept}^{{tree}}"]
        try:
            answer = await git(["rev-parse", *names], mirror=self._path, what=f"Reading {ref}")
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
        return await git(["rev-parse", f"{wanted}^{{commit}}"], mirror=self._path, what="Reading a commit")

    async def _refuse_others(self, name: str, shown: str) -> None:
        """Raise `NotACommit` where this names a tree or a blob, perhaps through a tag."""
        try:
            kind = await git(["cat-file", "-t", f"{name}^{{}}"], mirror=self._path, what=f"Reading {shown}")
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
            await git(
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
            await git(question, mirror=self._path, what="Looking for a commit")
        except FinalError:
            return False
        return True

    async def _reaches(self, tip: str, commit: str) -> bool:
        """Whether `tip`'s history has `commit` in it: then nothing of `commit`'s history is outside of `tip`'s."""
        question = ["rev-list", "--max-count=1", commit, "--not", tip]
        return not await git(question, mirror=self._path, what="Comparing commits")

    async def _is_sound(self) -> bool:
        if not (self._path / "HEAD").exists():
            return True  # nothing to repair: the fault lies elsewhere
        question = ["fsck", "--connectivity-only", "--no-dangling", "--no-progress"]
        try:
            await git(question, mirror=self._path, timeout_s=_UPKEEP_S, what="Checking a mirror")
        except FinalError:
            return False
        return True

    async def _tree(self, commit: str, root: str) -> str:
        """The folder's own id: from it `git archive` knows no commit to write in, so one tree gives the same bytes."""
        parts = _parts(root)
        tree = await self._root_tree(commit)
        if not parts:
            return tree
        found = await self._entry(tree, "/".join(parts))
        if found is None or found[0] != "tree":
            raise NotAFolder(
                f"The commit {commit} has no folder {root!r}",
                todo="Correct the app's `root`, or commit the folder.",
            )
        return found[1]

    async def _root_tree(self, commit: str) -> str:
        tree = self._trees.get(commit)
        if tree is None:
            question = ["rev-parse", "--verify", f"{commit}^{{tree}}"]
            tree = self._trees[commit] = await git(question, mirror=self._path, what="Reading a commit")
        return tree

    async def _entry(self, tree: str, path: str) -> tuple[str, str] | None:
        """The kind (`blob`, `tree`, `commit`) and the id of what stands there."""
        question = ["--literal-pathspecs", "ls-tree", "-z", tree, "--", path]
        found = await git(question, mirror=self._path, what="Looking for a folder")
        mode_type_name = found.partition("\t")[0].split()
        return (mode_type_name[1], mode_type_name[2]) if len(mode_type_name) == 3 else None

    async def _submodule_urls(self, commit: str) -> Mapping[str, str]:
        """Addresses of submodules by path, as `.gitmodules` has them, relative ones resolved."""
        pattern = r"^submodule\..*\.(path|url)$"
        question = ["config", "-z", f"--blob={commit}:.gitmodules", "--get-regexp", pattern]
        if await self._entry(await self._root_tree(commit), ".gitmodules") is None:
            return {}
        try:
            answer = await git(question, mirror=self._path, what="Reading .gitmodules")
        except (FinalError, TooLarge):
            return {}  # no text of that form, or a huge one: the submodules are named without an address
        return {path: resolved_url(self._url, url) for path, url in paths_and_urls(answer).items()}

    async def _filtered(self, commit: str, prefix: str, pointers: Sequence[Pointer]) -> Sequence[Pointer]:
        """Those whose file has the attribute `filter=lfs`: git-lfs leaves others as they are, too."""
        tree = await self._root_tree(commit)
        with tempfile.TemporaryDirectory() as folder:
            env = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
            await git(["read-tree", tree], mirror=self._path, env=env, what="Reading attributes")
            filtered: set[str] = set()
            for at in range(0, len(pointers), _ATTRIBUTES_AT_ONCE):
                names = [prefix + each.name for each in pointers[at : at + _ATTRIBUTES_AT_ONCE]]
                question = ["check-attr", "-z", "--cached", "filter", "--", *names]
                answer = await git(question, mirror=self._path, env=env, what="Reading attributes")
                fields = answer.split("\0")
                filtered |= {name for name, value in zip(fields[::3], fields[2::3], strict=False) if value == "lfs"}
        return [each for each in pointers if prefix + each.name in filtered]

    def _archive(
        self, tree: str, out_path: Path, stop: threading.Event
    ) -> tuple[NormalTar, Sequence[tuple[str, str]], Sequence[Pointer]]:
        links = counted_links(self._path, tree, self._limits, stop)
        pointers: list[Pointer] = []
        with output_of(self._path, ["archive", "--format=tar", tree], self._limits, stop) as tar:
            entries = watch_pointers(read_tar(cast("BinaryIO", tar), limits=self._limits, stop=stop), pointers)
            return normalise_entries(entries, out_path, limits=self._limits, stop=stop), links, pointers


def _parts(root: str) -> list[str]:
    parts = [part for part in root.split("/") if part not in {"", "."}]
    if root.startswith("/") or ".." in parts or not root.isprintable():
        raise InvalidInput(f"The app's root {root[:100]!r} is no folder inside the repository")
    return parts


async def _remove_tree(path: Path) -> None:
    await in_thread(lambda _: shutil.rmtree(path, ignore_errors=True))


def _remove_leftovers(mirror: Path) -> None:
    """Of a git that was killed or found the disk full: locks, and packs that are not complete (git leaves them)."""
    places = [*mirror.glob("*.lock"), *(mirror / "refs").rglob("*.lock"), *(mirror / "objects").glob("*/tmp_*")]
    for path in places:
        path.unlink(missing_ok=True)
