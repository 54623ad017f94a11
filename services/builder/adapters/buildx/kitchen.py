"""What all generated Dockerfiles share: base images, mounts, limits, and the lines around the app. Pure."""

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from seedwork.errors import KnarrError
from services.builder.install.requirements import ReadFile

USER = "10001:10001"
"""By number, so that a cluster can see that it is not root; above the ids that distributions give."""
EPOCH = 315532800
"""1980-01-01, the time of `seedwork.archives.NORMAL_MTIME`."""
TOUCH = f"find /out -exec touch -h -d @{EPOCH} {{}} +"
_SECRETS = 'for f in /run/secrets/*; do if [ -f "$f" ]; then export "${f##*/}=$(cat "$f")"; fi; done'


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseImages:
    """What generated Dockerfiles stand on."""

    python: str = "python:{version}-slim"
    python_version: str = "3.11"
    """For an app that does not say."""
    python_versions: tuple[str, ...] = ("3.11", "3.12", "3.13", "3.14", "3.10", "3.9")
    """Minor versions to choose from for a range; the first one that fits."""
    node: str = "node:{version}-slim"
    node_versions: tuple[str, ...] = ("20", "22", "24")
    """Major versions to choose from; the first one that the app's range allows."""
    other: str = "debian:bookworm-slim"
    pins: Mapping[str, str] = field(default_factory=dict)
    """`sha256:…` by image name."""

    def pinned(self, image: str) -> str:
        """The image with its digest, where one is set."""
        digest = self.pins.get(image)
        return f"{image}@{digest}" if digest else image


Explain = Callable[[Sequence[bytes], str], KnarrError]
"""The last lines of a step and how it ended, in; why packages could not be installed, out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to build an app that has no Dockerfile of its own."""

    dockerfile: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    """More files of the build context, by their path in it; the app itself stands in `root/app`."""
    ignore: tuple[str, ...] = ()
    processes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Where the description names none of that type."""
    explain: Explain | None = None
    """The error for a failed step of a stage whose name ends with `-packages`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kitchen:
    """What all recipes of a builder share."""

    images: BaseImages
    secrets: Sequence[str] = ()
    """Names of secrets that steps which install packages get as environment variables."""
    memory_bytes: int = 2048 * 1024 * 1024
    """Private bytes of each process of such a step: what also an engine without other limits keeps to."""


def app_lines(copied: str = f"--chown={USER} root/ /") -> list[str]:
    """The app on top, and who runs it."""
    return [f"COPY {copied}", "WORKDIR /app", f"USER {USER}"]


def run_line(kitchen: Kitchen, *, cache: str | None, steps: Sequence[str]) -> str:
    """A step with its mounts and limits; it ends with the first command that fails."""
    mounts = [f"--mount=type=cache,{cache}"] if cache else []
    mounts += [f"--mount=type=secret,id={name}" for name in kitchen.secrets]
    script = "; ".join(["set -eu", _SECRETS, f"ulimit -d {kitchen.memory_bytes // 1024}", *steps])
    return " ".join(["RUN", *mounts, orjson.dumps(["/bin/sh", "-c", script]).decode()])


def text(lines: Sequence[str]) -> str:
    """Join the lines of a Dockerfile."""
    return "\n".join(lines) + "\n"


def ignored_by_app(read: ReadFile, prefix: str) -> tuple[str, ...]:
    """Patterns of the app's `.dockerignore` for a build context in which the app stands below `prefix`.

    The rules of patterns: https://docs.docker.com/build/concepts/context/#dockerignore-files
    """
    content = read(".dockerignore")
    patterns = []
    for line in (content or b"").decode("utf-8-sig", "replace").split("\n"):
        if line.startswith("#") or not (pattern := line.strip()):
            continue
        exception = "!" if pattern.startswith("!") else ""
        cleaned = posixpath.normpath(pattern.removeprefix("!").strip().lstrip("/") or ".")
        if cleaned != "." and not re.match(r"\.\.(/|$)", cleaned):
            patterns.append(f"{exception}{prefix}/{cleaned}")
    return tuple(patterns)
