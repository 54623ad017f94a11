"""What can go wrong with an app's source, beyond the kernel's own kinds.

FinalError
├── InvalidInput
│   ├── AppInvalid          the app's files do not say how to run it, or say it wrongly
│   └── NotACommit          the id or the ref names a tree or a blob
├── NotFound
│   └── CommitNotFound      the repository is there, the commit (or the ref) is not
├── NotAllowed
│   └── RepositoryRefused   the Git host does not let us in, or has no such repository
└── Superseded              an older commit than the one that is live or waiting
"""

from collections.abc import Sequence
from typing import Self

from seedwork.errors import FinalError, InvalidInput, NotAllowed, NotFound


class AppInvalid(InvalidInput):
    """A file of the app cannot be used; the text names the file, the key and what is allowed."""

    code = "app_invalid"
    title = "The app's files cannot be used"
    reasons: tuple[str, ...] = ()
    """Every reason, where there is more than one."""

    @classmethod
    def of(cls, reasons: Sequence[Self]) -> Self:
        """Return one error that lists all reasons; a single one is returned as it is."""
        if len(reasons) == 1:
            return reasons[0]
        numbered = " ".join(f"({number}) {reason.message}" for number, reason in enumerate(reasons, start=1))
        error = cls(f"The app cannot be deployed as it is, for {len(reasons)} reasons", why=numbered)
        error.reasons = tuple(reason.message for reason in reasons)
        return error


class NotACommit(InvalidInput):
    """The id or the ref names a tree or a blob; the text says which."""

    code = "not_a_commit"
    title = "Not a commit"


class CommitNotFound(NotFound):
    """The commit is not reachable from the ref, and the host does not give it by its name either."""

    code = "commit_not_found"
    title = "No such commit"


class RepositoryRefused(NotAllowed):
    """Wrong or missing credentials; most hosts answer the same for a repository that is not there."""

    code = "repository_refused"
    title = "No access to the repository"


class Superseded(FinalError):
    """The commit is an ancestor of one that is live or waiting."""

    code = "superseded"
    title = "Superseded"

    def __init__(self, what: str, *, why: str, todo: str, superseded_by: str) -> None:
        """Keep the saga whose commit is newer."""
        super().__init__(what, why=why, todo=todo)
        self.superseded_by = superseded_by
