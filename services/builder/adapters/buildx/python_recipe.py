"""The Dockerfile of a Python app: the same commands as the builder `layers` runs, in stages of their own. Pure.

    python-tools    the base image with uv
    dependencies    /layers/python, a virtual environment with the packages
    project         /layers/project, the app's own project, where it is a package

uv comes from the package index in the version that the builder itself has.
"""

import importlib.metadata
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.builder.adapters.buildx.kitchen import (
    TOUCH,
    BaseImages,
    Kitchen,
    Part,
    compiler_lines,
    library_steps,
    run_line,
)
from services.builder.errors import CannotBuild
from services.builder.install import pkg_resources, settle_python
from services.builder.install.python import (
    SCRIPT_PYTHON,
    SCRIPT_PYTHON_OF_PROJECT,
    Command,
    Installation,
    plan_installation,
)
from services.builder.install.python_environment import INDEX_NAMES, PIP_NAMES, PROJECT_ENVIRONMENT, tool_environment
from services.builder.install.python_faults import explained
from services.builder.install.python_runner import RUNNERS, runner_script
from services.builder.install.python_versions import understood
from services.builder.install.requirements import ReadFile
from services.builder.ports import BuildOrder
from services.source.contract import Packages

_SETTLE = Path(settle_python.__file__)
_PKG_RESOURCES = Path(pkg_resources.__file__)
_CACHES = "/knarr/caches"
_BASE_PYTHON = "\0python"
"""The interpreter of the base image among the arguments of a command."""
_UV = "/knarr/uv/bin/uv"
_RUNNERS = (
    'for tool in /knarr/tools/run/*; do if [ -f "$tool" ] && [ ! -e "/layers/python/bin/${tool##*/}" ]; then '
    'cp "$tool" /layers/python/bin/; chmod 755 "/layers/python/bin/${tool##*/}"; fi; done'
)
"""Puts the stand-in of the project's tool into the environment, unless a package brings the tool."""
_ENV = "PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1 HOME=/app PYTHONPATH=/app"


def python_part(order: BuildOrder, packages: Packages | None, read: ReadFile, kitchen: Kitchen) -> Part:
    """Return the stages that install the packages of a Python app.

    Raises:
        CannotBuild: A file cannot be read, or no base image fits what the app asks for.
    """
    wanted = (packages.version if packages else None) or order.description.runtime.version
    image = python_image(wanted, kitchen.images)
    uv_version = importlib.metadata.version("uv")
    plan = plan_installation(packages, read, uv_version=uv_version)
    if plan.file is None and not plan.project:
        return Part(image=image, ready=image, env=_ENV)
    stages = _tools(image, uv_version, kitchen, order.app_id)
    copies: list[str] = []
    path = ""
    whole = plan.whole_source or plan.keyed_by_source
    installing = kitchen if whole else kitchen.for_install(plan.files.values())
    for name, commands, used in (("python", plan.commands, installing), ("project", plan.project, kitchen)):
        if commands or name == "python":
            stages += _stage(name, commands, plan, used, order.app_id)
            copies.append(f"COPY --from={name}-packages /out/ /")
            path = f"/layers/{name}/bin:{path}"
    files: dict[str, bytes] = {f"knarr/dependencies/{name}": content for name, content in plan.files.items()}
    env = f"{_ENV} PATH={path}$PATH"
    runner = packages.tool if packages and packages.tool in RUNNERS else None
    if runner:
        files[f"knarr/tools/run/{runner}"] = runner_script(runner).encode()
    last = (plan.commands or plan.project)[-1]
    return Part(
        image=image,
        ready="python-ready",
        stages=[*stages, f"FROM {image} AS python-ready", f"ENV {env}", *copies],
        env=env,
        copies=copies,
        explain=lambda lines, ending: explained(plan, last, lines, ending),
        files={
            **files,
            f"knarr/tools/{_SETTLE.name}": _SETTLE.read_bytes(),
            f"knarr/tools/{_PKG_RESOURCES.name}": _PKG_RESOURCES.read_bytes(),
        },
    )


def python_image(wanted: str | None, images: BaseImages) -> str:
    """Return the base image with the newest patch of the minor version that the app asks for.

    Raises:
        CannotBuild: The version is not understood, or no base image has it.
    """
    asked = understood(wanted or images.python_version)
    if asked is None or asked.implementation != "cpython":
        raise CannotBuild(
            f"The Python version {str(wanted)[:60]!r} is not understood, or has no base image",
            todo="Write a version such as 3.12, or a range such as >=3.11,<3.14.",
            code="no_interpreter",
        )
    if asked.exact is not None and len(asked.exact) > 1:
        return images.pinned(images.python.format(version=".".join(map(str, asked.exact[:2]))))
    for version in (images.python_version, *images.python_versions):
        if asked.fits_minor(tuple(map(int, version.split(".")[:2]))):
            return images.pinned(images.python.format(version=version))
    raise CannotBuild(
        f"The app asks for Python {str(wanted)[:60]}",
        why=f"base images are there for {', '.join(images.python_versions)}",
        todo="Ask for one of these (.python-version or requires-python).",
        code="no_interpreter",
    )


def _tools(image: str, uv_version: str, kitchen: Kitchen, app_id: str) -> list[str]:
    options = "--no-input --no-compile --disable-pip-version-check --root-user-action=ignore"
    install = f"python -m pip install {options} --target /knarr/uv uv=={uv_version}"
    mount = f"id=knarr-pip-{app_id},target=/root/.cache/pip"
    return [
        *compiler_lines(image, "python-tools", kitchen),
        run_line(kitchen, cache=mount, steps=[install], variables=False),
        "COPY knarr/tools/ /knarr/tools/",
        "WORKDIR /work",
    ]


def _setuptools(venv: str) -> str:
    """Install setuptools where packages import a part of it without requiring it."""
    needed = f"python3 -s -S /knarr/tools/{_PKG_RESOURCES.name} {venv}"
    install = f"{_UV} pip install --quiet --python {venv}/bin/python {shlex.quote(pkg_resources.REQUIREMENT)}"
    return f"if {needed}; then {install} || echo 'setuptools could not be installed'; fi"


def _stage(name: str, commands: Sequence[Command], plan: Installation, kitchen: Kitchen, app_id: str) -> list[str]:
    project = name == "project"
    venv = f"/layers/{name}"
    copies = ["COPY root/app/ /work/"] if commands and (project or plan.whole_source) else []
    if commands and plan.files and not project:
        copies.append("COPY knarr/dependencies/ /work/")
    env = tool_environment(plan, venv=venv, caches=_CACHES) | {"UV_LINK_MODE": "copy"}
    script = SCRIPT_PYTHON_OF_PROJECT if project else SCRIPT_PYTHON
    steps = [
        *_exports({**env, **(PROJECT_ENVIRONMENT if project else {})}),
        *(_index_from_pip(name, pip) for name, pip in PIP_NAMES),
        'export KNARR_PYTHON="$(command -v python3)"',
        f'{_UV} venv --quiet --no-project --python "$KNARR_PYTHON" {venv}',
        *(_line(command, plan, venv) for command in commands),
        *([_setuptools(venv)] if commands and plan.tool == "pip" and not project else []),
        f"export PYTHONHASHSEED=0; python3 -s -S /knarr/tools/{_SETTLE.name} {venv} {venv} {shlex.quote(script)} /work",
        *([f"rm {venv}/pyvenv.cfg {venv}/bin/python*"] if project else [_link_project(plan)]),
        *([] if project else [_RUNNERS]),
        f"mkdir -p /out/layers; mv {venv} /out/layers/",
        *library_steps(kitchen),
        TOUCH,
    ]
    cache = f"id=knarr-python-{app_id},target={_CACHES}"
    return [
        f"FROM python-tools AS {name}-packages",
        *copies,
        run_line(kitchen, cache=cache, steps=[step for step in steps if step]),
    ]


def _line(command: Command, plan: Installation, venv: str) -> str:
    """A command of the plan for a shell; every foreign word is quoted."""
    before = command.tool.arguments(_BASE_PYTHON) if command.tool else ()
    words = [_UV, *before, *command.arguments_for(f"{venv}/bin/python")]
    line = " ".join('"$KNARR_PYTHON"' if word == _BASE_PYTHON else shlex.quote(word) for word in words)
    if command.compares and plan.tool == "uv":  # the lock file may not know the platform's index
        return f"(unset {' '.join(INDEX_NAMES)}; {line}) || {line}"
    return line


def _exports(env: Mapping[str, str]) -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())]


def _index_from_pip(name: str, pip: str) -> str:
    return f'if [ -n "${{{pip}-}}" ] && [ -z "${{{name}-}}" ]; then export {name}="${pip}"; fi'


def _link_project(plan: Installation) -> str:
    """The packages' environment finds the project beside it."""
    if not plan.project:
        return ""
    return (
        'for site in /layers/python/lib/*/site-packages; do version="$(basename "$(dirname "$site")")"; '
        'echo "../../../../project/lib/$version/site-packages" > "$site/knarr_project.pth"; done'
    )
