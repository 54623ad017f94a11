"""An app's description and a few of its files in; the Dockerfile that builds it, and what that needs, out. Pure.

What every generated image has: the app in `/app`, owned by the user that runs it, who is not root; its dependencies in
a layer below, made in a stage of their own from nothing but the files that name them, so that a change of the app
reuses it. Build steps run in stages of their own, one after the other; their caches, the secrets and the build-time
variables are mounted for the step that needs them and are in no layer.

Two builds from nothing give the same layers as far as the engine lets: files get a fixed time, and whole trees are
copied onto `/`, since a folder that the engine makes itself has the time of its making.

For the Dockerfile frontend of BuildKit 0.8 (Docker 20.10): no here-documents, no `# syntax=`, no named contexts.
"""

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import orjson

from services.builder.adapters.buildx.go_recipe import go_part
from services.builder.adapters.buildx.kitchen import (
    STEP_MARK,
    USER,
    BaseImages,
    Kitchen,
    Part,
    Recipe,
    file_time,
    run_line,
)
from services.builder.adapters.buildx.kitchen import app_lines as _app
from services.builder.adapters.buildx.kitchen import text as _text
from services.builder.adapters.buildx.node_recipe import node_part
from services.builder.adapters.buildx.python_recipe import python_image, python_part
from services.builder.adapters.layers import knarr_static
from services.builder.errors import CannotBuild
from services.builder.install.requirements import ReadFile
from services.builder.ports import BuildOrder
from services.source.contract import BuildStep, Packages

__all__ = ["BaseImages", "Kitchen", "Recipe", "recipe_for"]
_STATIC_SERVER = Path(knarr_static.__file__)
_CACHE_PATH = re.compile(r"(?!/)(?!.*(?:^|/)\.\.(?:/|$))[\w./@+-]{1,200}", re.ASCII)


def recipe_for(order: BuildOrder, read: ReadFile, kitchen: Kitchen) -> Recipe:
    """The recipe for an app of that kind.

    Args:
        order: What to build.
        read: Reads a file of the app; blocks.
        kitchen: Base images and limits.

    Raises:
        CannotBuild: A file cannot be read, or no base image fits what the app asks for.
    """
    kind = order.description.runtime.kind
    parts: dict[str, Part] = {}
    for packages in order.description.packages:
        parts[packages.language] = _part(order, packages, read, kitchen)
    if kind == "python" and "python" not in parts:
        parts["python"] = python_part(order, None, read, kitchen)
    stages, app = _build_stages(order, order.description.build, parts, kitchen)
    stages = [line for part in parts.values() for line in part.stages] + stages
    files = {name: content for part in parts.values() for name, content in part.files.items()}
    final = _static(order, kitchen, app) if kind == "static" else _final(kind, parts, kitchen, app)
    return Recipe(
        dockerfile=_text([*stages, *final]),
        files={**files, **(_static_files() if kind == "static" else {})},
        ignore=("root/app/node_modules",) if "node" in parts else (),
        processes={"web": ("python", "-m", _STATIC_SERVER.stem)} if kind == "static" else {},
        explain=(parts.get(kind) or next(iter(parts.values()), Part(image="", ready=""))).explain,
    )


def _part(order: BuildOrder, packages: Packages, read: ReadFile, kitchen: Kitchen) -> Part:
    match packages.language:
        case "python":
            return python_part(order, packages, read, kitchen)
        case "node":
            in_image = order.description.runtime.kind in {"node", "procfile"}
            return node_part(order, packages, read, kitchen, in_image=in_image)
        case "go":
            return go_part(order, packages, kitchen)


def _build_stages(
    order: BuildOrder, steps: Sequence[BuildStep], parts: Mapping[str, Part], kitchen: Kitchen
) -> tuple[list[str], str | None]:
    """The lines of the stages in which build steps run, and the stage whose `/app` is the app; None: the source is."""
    lines: list[str] = []
    previous: str | None = None
    groups = [(language, list(group)) for language, group in groupby(steps, key=lambda step: step.language)]
    in_steps = {language for language, _ in groups}
    groups[:0] = [(name, []) for name, part in parts.items() if part.writes_app and name not in in_steps]
    for number, (language, group) in enumerate(groups):
        part = parts.get(language)
        if part is None:
            raise CannotBuild(f"A build step needs {language}, which the description does not install")
        name = f"build-{number}"
        source = "root/app/" if previous is None else f"--from={previous} /app/"
        lines += [f"FROM {part.ready} AS {name}", "WORKDIR /app", f"COPY {source} /app/"]
        lines += [_step_line(order, step, part, kitchen) for step in group]
        if part.after_steps:
            lines.append(run_line(kitchen, cache=None, steps=part.after_steps))
        previous = name
    if previous is not None:
        touch = f"find /app -exec touch -h -d @{file_time(order.source_digest)} {{}} +"
        lines.append(run_line(kitchen, cache=None, steps=[touch]))
    return lines, previous


def _step_line(order: BuildOrder, step: BuildStep, part: Part, kitchen: Kitchen) -> str:
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(step.env.items())]
    kept = [
        f"id=knarr-step-{order.app_id}-{hashlib.sha256(path.encode()).hexdigest()[:16]},target=/app/{path}"
        for path in step.caches
        if _CACHE_PATH.fullmatch(path)
    ]
    name = re.sub(r"[^\w.:/ -]", "", step.name)[:80]
    command = [f"{STEP_MARK}'{name}'", *part.before_steps, *exports, shlex.join(step.command)]
    return run_line(kitchen, cache=None, caches=[*part.caches, *kept], steps=command)


def _final(kind: str, parts: Mapping[str, Part], kitchen: Kitchen, app: str | None) -> list[str]:
    part = parts.get(kind)
    if part is None:
        part = Part(image=kitchen.images.pinned(kitchen.images.other), ready="", env="HOME=/app")
    copied = f"--from={app} --chown={USER} /app/ /app/" if app else f"--chown={USER} root/ /"
    return [f"FROM {part.image}", f"ENV {part.env}", *part.copies, *_app(copied)]


def _static(order: BuildOrder, kitchen: Kitchen, app: str | None) -> list[str]:
    """The site with its server: the output folder, where there is one, else all files of the app."""
    description = order.description
    output = (description.output or "").strip("/")
    if any(part == ".." for part in output.split("/")):
        raise CannotBuild(f"The output folder {output} leads out of the app", todo="Name a folder of the app.")
    folder = f"{output}/" if output and output != "." else ""
    source = orjson.dumps([f"/app/{folder}" if app else f"root/app/{folder}", "/app/"]).decode()
    origin = f"--from={app} " if app else ""
    fallback = f" {knarr_static.FALLBACK}={_quoted(description.fallback)}" if description.fallback else ""
    return [
        f"FROM {python_image(None, kitchen.images)}",
        f"ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/app PYTHONPATH=/layers/static/lib{fallback}",
        "COPY knarr/static/ /",
        *(_app(f"{origin}--chown={USER} {source}") if app or folder else _app()),
    ]


def _static_files() -> dict[str, bytes]:
    return {f"knarr/static/layers/static/lib/{_STATIC_SERVER.name}": _STATIC_SERVER.read_bytes()}


def _quoted(value: str) -> str:
    """A word of an ENV line in which nothing is replaced."""
    return orjson.dumps(value).decode().replace("$", "\\$")
