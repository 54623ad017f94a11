"""What `builder` needs from the world: archives, something that builds, and a place for what it prints."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from services.builder.contract import BuiltLayer
from services.source.contract import AppDescription


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOrder:
    """What is to be built, and for whom."""

    saga_id: str
    app_id: str
    app: str
    commit: str | None
    source_digest: str
    description: AppDescription
    team: str = "default"
    archive: Path
    """The source as a tar in the normal form; its root is the app's folder."""
    folder: Path
    """An empty private folder of this build. Who ordered the build removes it."""
    builder: str | None = None
    """`layers`, `buildx` or `buildpacks`, where the app chose; None: the service's settings do."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Config vars that the build gets. Secret: they are in no log and no label."""

    @property
    def repository(self) -> str:
        """Where the image is staged."""
        return staging_repository(self.app_id)


def staging_repository(app_id: str) -> str:
    """The repository in which an app's builds are staged."""
    return f"staging/{app_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A complete image in the store."""

    repository: str
    digest: str
    layers: tuple[BuiltLayer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RebaseOrder:
    """Which image is to stand on the current run image, and for whom."""

    saga_id: str
    app_id: str
    app: str
    repository: str
    """In the image store: the image is `<repository>@<digest>`."""
    digest: str

    @property
    def staging(self) -> str:
        """Where the result is staged."""
        return staging_repository(self.app_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebased:
    """A complete image in the store."""

    repository: str
    digest: str
    run_image: str
    """Name of the run image."""
    unchanged: bool
    """True: the image stood on this run image already."""


class BuildOutput(Protocol):
    """Takes what a build prints: for people, secrets masked, bounded."""

    def write(self, text: bytes) -> None:
        """Output of a tool, in pieces of any size; blocks for the time of a write to a file."""

    def say(self, line: str) -> None:
        """A line of our own."""

    def write_unfinished(self, text: bytes) -> int:
        """Show the beginning of a line whose end has not come; `write` goes on with the line.

        Call it only where everything written before is complete lines, or the beginning of this line.

        Returns:
            How many bytes were taken. The rest may be half of a secret; it is given again with what follows.
        """

    def tail(self, lines: int) -> tuple[str, ...]:
        """The last lines, oldest first."""


class ImageBuilder(Protocol):
    """Turns an archive into an image; one adapter per way of building."""

    async def build(
        self,
        order: BuildOrder,
        *,
        output: BuildOutput,
        note: Callable[[str], None],
        hold: Callable[[str], Awaitable[None]],
    ) -> Built:
        """Build and store the image.

        The same order gives the same digest. Cancelling it ends every process of the build before it returns.

        Args:
            order: What to build.
            output: Gets everything that is printed, as it is printed.
            note: Told what is going on, a few words at a time.
            hold: Called with the image's digest before its bytes are stored, so that nobody collects them.

        Raises:
            BuildFailed: A build tool ended with an error, or took more than it may.
            CannotBuild: The app asks for something that this builder or machine does not have.
            InvalidInput: The archive or a file in it is wrong; the text names it.
            RegistryUnavailable: A package registry did not answer.
            StorageFull: The disk has no room left.
        """

    async def stop(self, saga_id: str | None = None) -> int:
        """End what is left of a build's processes (None: of every build, also of a killed service); how many."""


class ImageRebaser(Protocol):
    """Puts an image that was built by buildpacks onto the current run image."""

    async def rebase(
        self,
        order: RebaseOrder,
        *,
        output: BuildOutput,
        note: Callable[[str], None],
        hold: Callable[[str], Awaitable[None]],
    ) -> Rebased:
        """Rebase and store the image; the arguments are those of `ImageBuilder.build`.

        Raises:
            CannotBuild: The image and the run image do not fit, or the run image cannot be had.
            NotFound: The image is not in the store.
            Unavailable: A registry or the engine does not answer.
        """


class SourceArchive(Protocol):
    """Where archives come from."""

    async def download(self, digest: str, to: Path) -> int:
        """Write the archive to a new file, verified against its digest; its size in bytes.

        Raises:
            NotFound: There is no such archive.
            Unavailable: It cannot be had now, or arrived damaged.
            StorageFull: The disk has no room left.
        """


class BuildVariables(Protocol):
    """Where the config vars come from that a build gets."""

    async def of(self, app_id: str) -> Mapping[str, str]:
        """Return the newest config vars of the app with the scope `build` or `both`; none for an unknown app.

        Raises:
            Unavailable: They cannot be had now.
        """
