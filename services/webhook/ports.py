"""The intake's outside world: other people's repositories, and where an uploaded archive is kept."""

from pathlib import Path
from typing import Protocol


class RemoteRefs(Protocol):
    """Asks a repository for the commit at the tip of a ref. Reads only, and keeps nothing."""

    async def tip(self, clone_url: str, ref: str) -> str:
        """The commit (40 hex digits) that `ref` (`refs/heads/main`, `refs/tags/v1`) points at now.

        Raises:
            InvalidInput: The URL or the ref is none.
            NotAllowed: The URL is outside the allow-list.
            NotFound: No such repository, or no such ref in it.
            Unauthenticated: The repository wants credentials that are not there.
            RetryableError: The other side did not answer.
        """

    async def default_branch(self, clone_url: str) -> str:
        """The full name of the branch that the repository's HEAD names, `refs/heads/master`.

        Raises:
            InvalidInput: The URL is none.
            NotAllowed: The URL is outside the allow-list.
            NotFound: No such repository, or it names no branch.
            Unauthenticated: The repository wants credentials that are not there.
            RetryableError: The other side did not answer.
        """

    async def named(self, clone_url: str, name: str) -> tuple[str, str]:
        """The ref that a short name means, and the commit at its tip: `main` or `v1.2`; a branch before a tag.

        Raises:
            InvalidInput: The URL or the name is none.
            NotAllowed: The URL is outside the allow-list.
            NotFound: No such repository, or neither a branch nor a tag of that name.
            Unauthenticated: The repository wants credentials that are not there.
            RetryableError: The other side did not answer.
        """


class SourceArchive(Protocol):
    """Takes an uploaded archive into the source service."""

    async def put(self, digest: str, archive: Path) -> None:
        """Store the gzip file under its digest (`sha256:…` of its bytes); durable on return, the same again no change.

        Raises:
            FinalError: The source service does not take it; the text is its own.
            Unavailable: The source service did not answer.
            StorageFull: It has no room.
        """
