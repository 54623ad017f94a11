"""An app's description and a few of its files in; the Dockerfile that builds it, and what that needs, out. Pure.

What every generated image has: the app in `/app`, owned by the user that runs it, who is not root; its dependencies in
a layer below, made in a stage of their own from nothing but the files that name them, so that a change of the app
reuses it. Secrets and caches are mounted for the one step that needs them and are in no layer.

Two builds from nothing give the same layers as far as the engine lets: files get a fixed time, and whole trees are
copied onto `/`, since a folder that the engine makes itself has the time of its making.

For the Dockerfile frontend of BuildKit 0.8 (Docker 20.10): no here-documents, no `# syntax=`, no named contexts.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from services.builder.adapters.layers import knarr_static
from services.builder.adapters.layers.node import Package, read_package
from services.builder.adapters.layers.node_versions import satisfies
from services.builder.adapters.layers.requirements import ReadFile, Requirements, read_requirements
from services.builder.errors import CannotBuild
from services.builder.ports import BuildOrder

USER = "10001:10001"
"""By number, so that a cluster can see that it is not root; above the ids that distributions give."""
_EPOCH = 315532800
"""1980-01-01, the time of `seedwork.archives.NORMAL_MTIME`."""
_TOUCH = f"find /out -exec touch -h -d @{_EPOCH} {{}} +"
_SECRETS = 'for f in /run/secrets/*; do if [ -f "$f" ]; then export "${f##*/}=$(cat "$f")"; fi; done'
_PTH = "import site; site.addsitedir('/layers/python/lib')"
_PYTHON_ENV = (
    "PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/app PATH=/layers/python/lib/bin:$PATH "
    "PYTHONPATH=/layers/python/site:/app:/layers/python/lib"
)
_PIP_INSTALL = (
    "python -m pip install --no-input --no-compile --disable-pip-version-check --root-user-action=ignore "
    "--target /out/layers/python/lib"
)
_COMPILE = (
    "PYTHONHASHSEED=0 python -m compileall -q -s /out -p / --invalidation-mode unchecked-hash /out/layers/python/lib"
)
_STATIC_SERVER = Path(knarr_static.__file__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseImages:
    """What generated Dockerfiles stand on."""

    python: str = "python:{version}-slim"
    python_version: str = "3.11"
    """For an app that does not say."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to build an app that has no Dockerfile of its own."""

    dockerfile: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    """More files of the build context, by their path in it; the app itself stands in `root/app`."""
    ignore: tuple[str, ...] = ()
    processes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Where the description names none of that type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kitchen:
    """What all recipes of a builder share."""

    images: BaseImages
    secrets: Sequence[str] = ()
    """Names of secrets that steps which install packages get as environment variables."""
    memory_bytes: int = 2048 * 1024 * 1024
    """Private bytes of each process of such a step: what also an engine without other limits keeps to."""


def recipe_for(order: BuildOrder, read: ReadFile, kitchen: Kitchen) -> Recipe:
    """The recipe for an app of that kind.

    Args:
        order: What to build.
        read: Reads a file of the app; blocks.
        kitchen: Base images and limits.

    Raises:
        CannotBuild: A file cannot be read, or no base image fits what the app asks for.
    """
    cook: Mapping[str, Callable[[BuildOrder, ReadFile, Kitchen], Recipe]] = {
        "python": _python,
        "node": _node,
        "static": _static,
        "procfile": _procfile,
    }
    return cook[order.description.runtime.kind](order, read, kitchen)


# --- Python -----------------------------------------------------------------------------------------------------------


def _python(order: BuildOrder, read: ReadFile, kitchen: Kitchen) -> Recipe:
    image = _python_image(order.description.runtime.version, kitchen.images)
    requirements = read_requirements(read)
    final = [f"FROM {image}", f"ENV {_PYTHON_ENV}"]
    if requirements.file is None:
        return Recipe(dockerfile=_text([*final, *_app()]))
    files, source, target = _python_inputs(requirements, read)
    install = _run(
        kitchen,
        cache=f"id=knarr-pip-{order.app_id},target=/root/.cache/pip",
        steps=[
            f"{_PIP_INSTALL} {target}",
            f"{_COMPILE} || echo 'some packages have files that are no Python'",
            "mkdir -p /out/layers/python/site",
            f"printf '%s\\n' {shlex.quote(_PTH)} > /out/layers/python/site/sitecustomize.py",
            _TOUCH,
        ],
    )
    stage = [f"FROM {image} AS dependencies", "WORKDIR /work", f"COPY {source} /work/", install]
    return Recipe(dockerfile=_text([*stage, *final, "COPY --from=dependencies /out/ /", *_app()]), files=files)


def _python_image(wanted: str | None, images: BaseImages) -> str:
    """The newest patch of the minor version that the app asks for."""
    parts = (wanted or images.python_version).split(".")
    if not all(part.isdecimal() for part in parts):
        raise CannotBuild(
            f"The Python version {wanted!r} is not understood",
            todo="Write digits and dots, such as 3.11, to .python-version.",
            code="no_interpreter",
        )
    return images.pinned(images.python.format(version=".".join(parts[:2])))


def _python_inputs(requirements: Requirements, read: ReadFile) -> tuple[dict[str, bytes], str, str]:
    """The files of the stage that installs, where they stand in the context, and what pip is asked for."""
    if requirements.file == "pyproject.toml":
        if requirements.needs_source:
            return {}, "root/app/", "."
        listed = requirements.inputs["project.dependencies"].encode() + b"\n"
        return {"knarr/dependencies/requirements.txt": listed}, "knarr/dependencies/", "-r requirements.txt"
    if requirements.needs_source:
        return {}, "root/app/", "-r requirements.txt"
    files = {f"knarr/dependencies/{name}": content for name in requirements.inputs if (content := read(name))}
    return files, "knarr/dependencies/", "-r requirements.txt"


# --- Node -------------------------------------------------------------------------------------------------------------


def _node(order: BuildOrder, read: ReadFile, kitchen: Kitchen) -> Recipe:
    package = read_package(read)
    image = _node_image(order.description.runtime.version, package, kitchen.images)
    names = ("package.json", package.lock, ".npmrc")
    files = {f"knarr/dependencies/{name}": content for name in names if name and (content := read(name))}
    source = "root/app/" if package.needs_source else "knarr/dependencies/"
    text = [
        f"FROM {image} AS dependencies",
        "WORKDIR /out/app",
        f"COPY {source} /out/app/",
        _npm(order, kitchen, package, "--omit=dev", ["mkdir -p node_modules", _ONLY_PACKAGES, _TOUCH]),
    ]
    if package.scripts.get("build"):
        built = ["npm run build", "rm -rf node_modules", f"find /app -exec touch -h -d @{_EPOCH} {{}} +"]
        text += [
            f"FROM {image} AS build",
            "WORKDIR /app",
            f"COPY {source} /app/",
            _npm(order, kitchen, package, "--include=dev", []),
            "COPY root/app/ /app/",
            _run(kitchen, cache=None, steps=built),
        ]
    text += [
        f"FROM {image}",
        "ENV NODE_ENV=production HOME=/app PATH=/app/node_modules/.bin:$PATH",
        "COPY --from=dependencies /out/ /",
        *(_app(f"--from=build --chown={USER} /app/ /app/") if package.scripts.get("build") else _app()),
    ]
    return Recipe(dockerfile=_text(text), files=files, ignore=("root/app/node_modules",))


_ONLY_PACKAGES = "find . -mindepth 1 -maxdepth 1 ! -name node_modules -exec rm -rf {} +"


def _npm(order: BuildOrder, kitchen: Kitchen, package: Package, packages: str, then: Sequence[str]) -> str:
    verb = "npm ci" if package.lock else "npm install --no-package-lock"
    heap_mib = max(64, kitchen.memory_bytes * 3 // 4 // 1024**2)
    install = f"{verb} {packages} --no-audit --no-fund --no-update-notifier"
    return _run(
        kitchen,
        cache=f"id=knarr-npm-{order.app_id},target=/root/.npm",
        steps=[f"export NODE_OPTIONS=--max-old-space-size={heap_mib}", install, *then]
        if package.has_dependencies
        else then,
    )


def _node_image(wanted: str | None, package: Package, images: BaseImages) -> str:
    engines = package.manifest.get("engines")
    asked = wanted or (engines.get("node") if isinstance(engines, dict) else None)
    for version in images.node_versions:
        # the tag is the newest of its major version, so a range that begins anywhere in it is satisfied
        if not asked or satisfies(f"{version}.9999.9999", str(asked)) or str(asked).split(".")[0] == version:
            return images.pinned(images.node.format(version=version))
    raise CannotBuild(
        f"The app asks for node {str(asked)[:60]!r}",
        why=f"base images are there for {', '.join(images.node_versions)}",
        todo="Ask for one of these (`engines.node` in package.json), or set KNARR_BUILDX_NODE_VERSIONS.",
        code="no_interpreter",
    )


# --- others -----------------------------------------------------------------------------------------------------------


def _static(_order: BuildOrder, _read: ReadFile, kitchen: Kitchen) -> Recipe:
    text = [
        f"FROM {_python_image(None, kitchen.images)}",
        "ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/app PYTHONPATH=/layers/static/lib",
        "COPY knarr/static/ /",
        *_app(),
    ]
    return Recipe(
        dockerfile=_text(text),
        files={f"knarr/static/layers/static/lib/{_STATIC_SERVER.name}": _STATIC_SERVER.read_bytes()},
        processes={"web": ("python", "-m", _STATIC_SERVER.stem)},
    )


def _procfile(_order: BuildOrder, _read: ReadFile, kitchen: Kitchen) -> Recipe:
    image = kitchen.images.pinned(kitchen.images.other)
    return Recipe(dockerfile=_text([f"FROM {image}", "ENV HOME=/app", *_app()]))


# --- lines ------------------------------------------------------------------------------------------------------------


def _app(copied: str = f"--chown={USER} root/ /") -> list[str]:
    """The app on top, and who runs it."""
    return [f"COPY {copied}", "WORKDIR /app", f"USER {USER}"]


def _run(kitchen: Kitchen, *, cache: str | None, steps: Sequence[str]) -> str:
    """A step with its mounts and limits; it ends with the first command that fails."""
    mounts = [f"--mount=type=cache,{cache}"] if cache else []
    mounts += [f"--mount=type=secret,id={name}" for name in kitchen.secrets]
    script = "; ".join(["set -eu", _SECRETS, f"ulimit -d {kitchen.memory_bytes // 1024}", *steps])
    return " ".join(["RUN", *mounts, orjson.dumps(["/bin/sh", "-c", script]).decode()])


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
