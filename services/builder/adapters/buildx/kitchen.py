"""What all generated Dockerfiles share: base images, mounts, limits, and the lines around the app. Pure."""

import posixpath
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import orjson

from seedwork.errors import KnarrError
from services.builder.adapters.layers.limits import private_bytes
from services.builder.install.requirements import ReadFile
from services.builder.install.variables import install_variables

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
    go: str = "golang:{version}"
    go_version: str = "1.24"
    """For an app that does not say."""
    other: str = "debian:bookworm-slim"
    compilers: tuple[str, ...] = ()
    """Debian packages for a build that compiles native packages; empty: such a build fails."""
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
class Part:
    """What one language brings to a Dockerfile."""

    image: str
    """What the final image stands on, where the language runs in it."""
    ready: str
    """Stage or image on which the build steps of the language run."""
    stages: Sequence[str] = ()
    """Lines of the stages that install packages."""
    env: str = ""
    """Variables of the final image, as ENV takes them."""
    copies: Sequence[str] = ()
    """Lines that bring the packages into the final image."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    before_steps: Sequence[str] = ()
    """Commands of the shell before a build step, in the same line."""
    caches: Sequence[str] = ()
    """Cache mounts of build steps."""
    after_steps: Sequence[str] = ()
    """Commands after the last build step of the language."""
    explain: Explain | None = None
    """The error for a failed step of a stage that installs these packages."""
    writes_app: bool = False
    """True: the installation may write into the app's folder, so the image has that folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kitchen:
    """What all recipes of a builder share."""

    images: BaseImages
    secrets: Sequence[str] = ()
    """Names of secrets that steps which install packages get as environment variables."""
    variables: Sequence[str] = ()
    """Names of the app's build-time variables, which are mounted as secrets."""
    variables_key: str | None = None
    """HMAC of their values: a step runs anew when one changes. It is in no line of a final image."""
    key_of: Callable[[Collection[str]], str | None] = field(default=lambda _names: None, compare=False)
    """Returns such a key of the variables with these names."""
    compilers: bool = False
    """True: stages that install packages have compilers."""
    memory_bytes: int = 2048 * 1024 * 1024
    """Memory of such a step; each of its processes may reserve `private_bytes` of it, on any engine."""

    def for_install(self, files: Iterable[bytes]) -> "Kitchen":
        """Return a kitchen whose variables are those that installing from these files depends on."""
        names = tuple(install_variables(dict.fromkeys(self.variables, ""), files))
        return replace(self, variables=names, variables_key=self.key_of(names))


STEP_MARK = ": step "
"""Begins the command that does nothing and names a build step."""
_LIBRARIES = "/knarr-libraries"
"""List of the shared libraries of a base image, in stages with compilers."""


def compiler_lines(image: str, name: str, kitchen: Kitchen) -> list[str]:
    """The stage `name` on `image`, with compilers where the build needs them.

    The lines are the same for all apps on a base image, so an engine installs the compilers once.
    """
    lines = [f"FROM {image} AS {name}"]
    if not kitchen.compilers:
        return lines
    install = shlex.join(kitchen.images.compilers)
    no_apt = "echo 'error: a package is compiled, and the base image has no apt-get'"
    steps = [
        f"command -v apt-get > /dev/null || {{ {no_apt}; exit 1; }}",
        f"find /lib/ /usr/lib/ /usr/local/lib/ -name '*.so*' > {_LIBRARIES}",
        "export DEBIAN_FRONTEND=noninteractive",
        "apt-get update -qq",
        f"apt-get install -qq -y --no-install-recommends {install} > /dev/null",
        "rm -rf /var/lib/apt/lists/*",
    ]
    return [*lines, "RUN " + orjson.dumps(["/bin/sh", "-c", "; ".join(["set -eu", *steps])]).decode()]


def library_steps(kitchen: Kitchen) -> list[str]:
    """Commands that add to `/out` the shared libraries that compiled packages need and the base image lacks."""
    if not kitchen.compilers:
        return []
    add = (
        "find /out -type f \\( -name '*.so*' -o -name '*.node' \\) -exec ldd {} + 2> /dev/null "
        "| sed -n 's/.*=> \\(\\/[^ ]*\\) .*/\\1/p' | sort -u | while read -r library; do "
        f'if ! grep -qxF "$library" {_LIBRARIES}; then folder="$(readlink -f "$(dirname "$library")")"; '
        'case "$folder" in /out|/out/*|/layers/*|/knarr/*) ;; *) mkdir -p "/out$folder"; '
        'cp -L "$library" "/out$folder/";; esac; fi; done'
    )
    return [add]


def app_lines(copied: str = f"--chown={USER} root/ /") -> list[str]:
    """The app on top, and who runs it."""
    return [f"COPY {copied}", "WORKDIR /app", f"USER {USER}"]


def run_line(
    kitchen: Kitchen,
    *,
    cache: str | None,
    steps: Sequence[str],
    caches: Sequence[str] = (),
    variables: bool = True,
) -> str:
    """A step with its mounts and limits; it ends with the first command that fails.

    Args:
        kitchen: Secrets and limits.
        cache: A cache mount, or None.
        steps: Commands of the shell.
        caches: More cache mounts.
        variables: With the app's build-time variables. A stage that becomes a final image must not have them.
    """
    names = [*kitchen.secrets, *(each for each in kitchen.variables if variables and each not in kitchen.secrets)]
    mounts = [f"--mount=type=cache,{each}" for each in (cache, *caches) if each]
    mounts += [f"--mount=type=secret,id={name}" for name in names]
    key = [f": variables {kitchen.variables_key}"] if variables and kitchen.variables_key else []
    script = "; ".join(["set -eu", *key, _SECRETS, f"ulimit -d {private_bytes(kitchen.memory_bytes) // 1024}", *steps])
    return " ".join(["RUN", *mounts, orjson.dumps(["/bin/sh", "-c", script]).decode()])


def file_time(source_digest: str) -> int:
    """Return the time of the app's files in seconds since 1970, between 2000 and 2020: one for each source.

    Two builds of one source are the same, and a browser's copy of the version before is not taken for this one's.
    """
    return 946_684_800 + int(source_digest.removeprefix("sha256:")[:12], 16) % (20 * 365 * 86_400)


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
