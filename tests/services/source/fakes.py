"""Repositories in memory: commits as trees of files with parents, refs that move, a host that may be down."""

import contextlib
import hashlib
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seedwork.archives import NORMAL_MTIME, NormalTar, NotAFolder, pack_tar
from seedwork.errors import InvalidInput, NotFound, Unavailable
from seedwork.git import COMMIT, GitUrlPolicy, check_ref
from services.source.errors import CommitNotFound, RepositoryRefused
from services.source.lfs import Pointer
from services.source.plan.addons import Provided
from services.source.ports import Brought, PackedTree, Submodule
from services.source.watching import Watch

Files = Mapping[str, bytes]


@dataclass
class FakeOrigin:
    """What stands on the host."""

    url: str
    commits: dict[str, tuple[Files, str | None]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, *, ref: str = "refs/heads/main") -> str:
        """A commit on top of the ref, which moves to it."""
        parent = self.refs.get(ref)
        text = f"{len(self.commits)} {parent} {sorted(files.items())}"
        commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[commit] = (files, parent)
        self.refs[ref] = commit
        return commit

    def move(self, ref: str, commit: str) -> None:
        """A force push."""
        self.refs[ref] = commit

    def remove(self, ref: str) -> None:
        """A branch is deleted."""
        del self.refs[ref]

    def history(self, commit: str | None) -> list[str]:
        """The commit and all before it."""
        found = []
        while commit is not None:
            found.append(commit)
            commit = self.commits[commit][1]
        return found


class FakeRepositories:
    """The `Repositories` port."""

    def __init__(self, policy: GitUrlPolicy, *origins: FakeOrigin) -> None:
        """Take the allow-list and what is reachable."""
        self._policy = policy
        self._origins = {origin.url: origin for origin in origins}
        self.down = False

    @contextlib.asynccontextmanager
    async def open(self, clone_url: str) -> AsyncIterator["FakeRepository"]:
        """Hold that repository, see the port."""
        self._policy.check(clone_url)
        yield FakeRepository(clone_url, self._origins.get(clone_url), down=self.down)


class FakeRepository:
    """The `Repository` port."""

    def __init__(self, url: str, origin: FakeOrigin | None, *, down: bool) -> None:
        """Take what is on the host."""
        self._url = url
        self._origin = origin
        self._down = down

    async def bring(self, ref: str | None, commit: str | None) -> Brought:
        """Get the exact commit, see the port."""
        if ref is not None:
            check_ref(ref)
        if commit is not None and not COMMIT.fullmatch(commit):
            raise InvalidInput(f"{commit!r} is no commit")
        if self._down:
            raise Unavailable(f"{self._url} does not answer")
        if self._origin is None:
            raise RepositoryRefused(f"{self._url} cannot be read")
        tip = self._origin.refs.get(ref or "refs/heads/main")
        wanted = commit or tip
        if wanted is None or wanted not in self._origin.commits:
            raise CommitNotFound(f"{commit or ref} is not in {self._url}")
        return Brought(commit=wanted, tip=tip)

    async def is_ancestor(self, older: str, newer: str) -> bool:
        """Whether `newer`'s history has `older` in it, see the port."""
        origin = self._origin
        if origin is None or older == newer or newer not in origin.commits:
            return False
        return older in origin.history(newer)

    async def submodule_at(self, commit: str, root: str) -> Submodule | None:
        """There are none."""
        assert commit
        assert root
        return None

    async def watched(self, commit: str, patterns: Sequence[str]) -> str:
        """The digest of the files that match, see the port."""
        assert self._origin is not None
        watch = Watch(patterns)
        files = sorted(self._origin.commits[commit][0].items())
        return f"sha256:{hashlib.sha256(repr([each for each in files if watch.matches(each[0])]).encode()).hexdigest()}"

    async def pack(self, commit: str, root: str, out_path: Path) -> PackedTree:
        """Write the commit's folder as a tar, see the port."""
        if self._origin is None:
            raise RepositoryRefused(f"{self._url} cannot be read")
        return PackedTree(_packed(self._origin.commits[commit][0], root, out_path))


class NoLargeFiles:
    """The `LargeFiles` port, with nothing behind it."""

    async def bring(self, clone_url: str, pointers: Sequence[Pointer]) -> Mapping[str, Path]:
        """Nothing is there, see the port."""
        raise NotFound(f"{clone_url} has no LFS store for {len(pointers)} files")


@dataclass
class FewAddOns:
    """The `AddOnKinds` port: a machine with PostgreSQL only; None: the deployer does not answer."""

    known: Provided | None = field(default_factory=lambda: Provided("process", frozenset({"postgres"})))
    asked: int = 0

    async def provided(self) -> Provided | None:
        """See the port."""
        self.asked += 1
        return self.known


def _packed(files: Files, root: str, out_path: Path) -> NormalTar:
    with tempfile.TemporaryDirectory() as made:
        for name, content in files.items():
            path = Path(made, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        folder = Path(made, root)
        if ".." in Path(root).parts or Path(root).is_absolute():
            raise InvalidInput(f"{root!r} is no folder inside the repository")
        if not folder.is_dir():
            raise NotAFolder(f"There is no folder {root!r}")
        digest, size = pack_tar(folder, out_path, mtime=NORMAL_MTIME)
        return NormalTar(digest=digest, size_bytes=size, entries=len(list(folder.rglob("*"))))
