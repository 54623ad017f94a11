"""An app's description and a few of its files in; the Dockerfile that builds it, and what that needs, out. Pure.

What every generated image has: the app in `/app`, owned by the user that runs it, who is not root; its dependencies in
a layer below, made in a stage of their own from nothing but the files that name them, so that a change of the app
reuses it. Secrets and caches are mounted for the one step that needs them and are in no layer.

Two builds from nothing give the same layers as far as the engine lets: files get a fixed time, and whole trees are
copied onto `/`, since a folder that the engine makes itself has the time of its making.

For the Dockerfile frontend of BuildKit 0.8 (Docker 20.10): no here-documents, no `# syntax=`, no named contexts.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from services.builder.adapters.buildx.kitchen import EPOCH as _EPOCH
from services.builder.adapters.buildx.kitchen import TOUCH as _TOUCH
from services.builder.adapters.buildx.kitchen import USER, BaseImages, Kitchen, Recipe
from services.builder.adapters.buildx.kitchen import app_lines as _app
from services.builder.adapters.buildx.kitchen import run_line as _run
from services.builder.adapters.buildx.kitchen import text as _text
from services.builder.adapters.buildx.node_package import Package, read_package
from services.builder.adapters.buildx.python_recipe import python_image, python_recipe
from services.builder.adapters.layers import knarr_static
from services.builder.adapters.layers.node_versions import satisfies
from services.builder.errors import CannotBuild
from services.builder.install.requirements import ReadFile
from services.builder.ports import BuildOrder

_STATIC_SERVER = Path(knarr_static.__file__)


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
        "python": python_recipe,
        "node": _node,
        "static": _static,
        "procfile": _procfile,
    }
    return cook[order.description.runtime.kind](order, read, kitchen)


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
        f"FROM {python_image(None, kitchen.images)}",
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
