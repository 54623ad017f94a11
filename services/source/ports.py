"""The outside world of `source`: repositories on Git hosts."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from seedwork.archives import NormalTar
from services.source.lfs import Pointer
from services.source.plan.addons import Provided


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """A commit that is here now."""

    commit: str
    """40 hex digits."""
    tip: str | None
    """The commit that the ref names now; null: the ref is gone."""


@dataclass(frozen=True, slots=True)
class Submodule:
    """Another repository at a path of this one."""

    path: str
    """Below the folder that was asked for."""
    commit: str
    """40 hex digits."""
    url: str
    """From `.gitmodules`, unchecked; empty: it is not there."""
    inside: str = "."
    """The rest of the path that was asked for, inside the submodule."""


@dataclass(frozen=True, slots=True)
class PackedTree:
    """A folder of a commit as a tar: submodules are empty folders in it, and LFS pointers are pointers."""

    tar: NormalTar
    submodules: tuple[Submodule, ...] = ()
    pointers: tuple[Pointer, ...] = ()


class Repository(Protocol):
    """One repository, held by us alone until its context ends."""

    async def bring(self, ref: str | None, commit: str | None) -> Brought:
        """Get the exact commit, or (none given) the ref's tip; what is here already is not moved again.

        Args:
            ref: A full name, `refs/heads/main`; None: the repository's HEAD.
            commit: 40 hex digits. It counts as found when the ref's history has it, or the host gives it by its name.

        Raises:
            CommitNotFound: The ref or the commit is not there.
            InvalidInput: No such form of ref or commit.
            RepositoryRefused: No access, or no such repository.
            Unavailable: The host does not answer, or not in time.
            StorageFull: No room; the mirror stays as it was.
        """

    async def is_ancestor(self, older: str, newer: str) -> bool:
        """Whether `newer`'s history has `older` in it, `older` not being `newer`; false if either is not here."""

    async def submodule_at(self, commit: str, root: str) -> Submodule | None:
        """The submodule that is the folder `root` of the commit, or that holds it; None: it is a folder of its own."""

    async def watched(self, commit: str, patterns: Sequence[str]) -> str:
        """The digest over path, mode and content of the files of the whole commit that match the patterns."""

    async def pack(self, commit: str, root: str, out_path: Path) -> PackedTree:
        """Write the commit's folder `root` as a tar in the normal form.

        Raises:
            NotAFolder: The commit has no such folder.
            BadArchive: The tree has something in it that is not taken, such as a link that leads out.
            TooLarge: A limit is over.
            TimedOut: Its time is over.
            StorageFull: No room left.
        """


class LargeFiles(Protocol):
    """Brings content that repositories keep in Git LFS."""

    async def bring(self, clone_url: str, pointers: Sequence[Pointer]) -> Mapping[str, Path]:
        """Get what the pointers of this repository stand for; files by the content's SHA-256, checked.

        What the other side does not have is not among them.

        Raises:
            NotAllowed: The repository's LFS store does not let us in, or cannot be reached by its kind of URL.
            NotFound: There is no LFS store.
            Unavailable: It does not answer, or not in time.
            StorageFull: No room left.
        """


class Repositories(Protocol):
    """Every repository that this installation may talk to."""

    def open(self, clone_url: str) -> AbstractAsyncContextManager[Repository]:
        """Hold that repository.

        Raises:
            InvalidInput: It is no URL to clone from.
            NotAllowed: It is outside the allow-list.
        """


class AddOnKinds(Protocol):
    """Knows which add-ons can be provided."""

    async def provided(self) -> Provided | None:
        """Return what is provided; None: it is not known now."""
