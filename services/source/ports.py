"""The outside world of `source`: repositories on Git hosts."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from seedwork.archives import NormalTar


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """A commit that is here now."""

    commit: str
    """40 hex digits."""
    tip: str | None
    """The commit that the ref names now; null: the ref is gone."""
    submodules: tuple[str, ...] = ()
    """Their paths in the whole tree; they are not fetched."""


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

    async def pack(self, commit: str, root: str, out_path: Path) -> NormalTar:
        """Write the commit's folder `root` as a tar in the normal form.

        Raises:
            NotAFolder: The commit has no such folder.
            BadArchive: The tree has something in it that is not taken, such as a link that leads out.
            TooLarge: A limit is over.
            TimedOut: Its time is over.
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
