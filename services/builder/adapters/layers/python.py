"""Python apps: packages installed by the project's own tool into a virtual environment, `/layers/python`.

    /layers/python/bin/                      python, python3, python3.X: start the interpreter of this machine as the
                                             environment's own; scripts of packages
    /layers/python/lib/python3.X/site-packages/    the packages, compiled
    /layers/python/share/, etc/              data files of packages
    /layers/project/                         the app's own project in the same form, where it is a package

The environment knows neither packages of the machine nor of its users. It is relocatable: no file names the folder in
which the image is unpacked. Python finds the environment by the path under which it is started, so the wrappers in
`bin` pass that path on.

What the app's processes get: `PATH` with both `bin` folders in front; `PYTHONPATH=/app`, so that modules of the app are
found whatever starts them; `PYTHONUNBUFFERED=1`, since a log line must be seen when it is printed;
`PYTHONDONTWRITEBYTECODE=1`, since a release's files do not change while it runs.

The layer's key: the content of the files that name dependencies, the lock file included, the commands with their
tools, the interpreter (path, version, platform), the config vars that installers read and the cache's format. The
project's layer depends on the whole source; see `project_reuse` for a change of a few files. Packages that are not
locked are resolved when the key is new: lock them, or they stay as they were.

Reproducible: two fresh installs give the same bytes (see `services.builder.install.settle_python`).
"""

import asyncio
import importlib.metadata
import shlex
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import uv

from services.builder.adapters.layers.image import HOST_PATH, Prepared, ReadyLayer
from services.builder.adapters.layers.installed import unpack
from services.builder.adapters.layers.interpreters import Interpreter, Interpreters
from services.builder.adapters.layers.project_reuse import NOT_COPIED, ProjectReuse
from services.builder.adapters.layers.sandbox import ToolFailed
from services.builder.adapters.layers.workshop import Workshop, layer_key
from services.builder.errors import BuildFailed, CannotBuild
from services.builder.install import pkg_resources, settle_python
from services.builder.install.python import (
    SCRIPT_PYTHON,
    SCRIPT_PYTHON_OF_PROJECT,
    Command,
    Installation,
    plan_installation,
)
from services.builder.install.python_environment import (
    PROJECT_ENVIRONMENT,
    foreign_indexes,
    index_environment,
    tool_environment,
)
from services.builder.install.python_faults import explained, reason_of
from services.builder.install.python_runner import RUNNERS, runner_script
from services.builder.install.python_versions import understood
from services.builder.install.variables import install_variables
from services.source.contract import Packages

SETTLE = Path(settle_python.__file__)

ENVIRONMENT = {
    "PATH": f"/layers/python/bin:{HOST_PATH}",
    "PYTHONPATH": "/app",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
}
PROJECT_PATH = f"/layers/project/bin:/layers/python/bin:{HOST_PATH}"


async def prepare(
    shop: Workshop, interpreters: Interpreters, packages: Packages | None, *, mirror: str | None = None
) -> Prepared:
    """The layers and the environment of a Python app.

    Args:
        shop: The build.
        interpreters: The Pythons of this machine.
        packages: How the packages are installed; None: the app has none.
        mirror: Where interpreters are fetched from, in place of their publisher.

    Raises:
        CannotBuild: No such interpreter, or a file that cannot be read; the text says what to change.
        BuildFailed: A tool could not install the packages.
        RegistryUnavailable: The package index did not answer.
    """
    interpreter = await _interpreter(shop, interpreters, packages, mirror)
    installation = await asyncio.to_thread(partial(plan_installation, packages, shop.read, uv_version=_own_uv()))
    await shop.say(f"Python {interpreter.version}: {installation.title}")
    for line in installation.notes:
        await shop.say(line)
    builder = _Environments(
        shop, interpreter, interpreters.own, installation, runner=packages.tool if packages else None
    )
    layers = [await builder.packages()]
    if not installation.project:
        return Prepared(layers=tuple(layers), env=ENVIRONMENT)
    layers.append(await builder.project())
    return Prepared(layers=tuple(layers), env={**ENVIRONMENT, "PATH": PROJECT_PATH})


async def bare(shop: Workshop, interpreters: Interpreters) -> Prepared:
    """The layer with an interpreter and no packages, for apps that start Python beside their own language."""
    interpreter = await interpreters.for_version(None)
    layer = await _Environments(shop, interpreter, interpreters.own, Installation(file=None)).packages()
    return Prepared(layers=(layer,), env=ENVIRONMENT)


async def _interpreter(
    shop: Workshop, interpreters: Interpreters, packages: Packages | None, mirror: str | None
) -> Interpreter:
    """The interpreter that the app asks for, fetched if it is not here."""
    wanted = (
        shop.order.description.runtime.version if packages is None or packages.version is None else packages.version
    )
    file = packages.version_file if packages else None

    async def fetch(request: str, folder: Path) -> None:
        shop.note(f"fetching Python {request}")
        env = shop.environment(
            {
                "UV_CACHE_DIR": str(shop.caches / "uv"),
                "UV_PYTHON_INSTALL_DIR": str(folder),
                "UV_NO_PROGRESS": "1",
                "UV_NO_CONFIG": "1",
                **({"UV_PYTHON_INSTALL_MIRROR": mirror} if mirror else {}),
            },
            variables={},
        )
        try:
            await shop.run(
                [uv.find_uv_bin(), "python", "install", "--no-bin", request],
                env=env,
                cwd=shop.scratch,
                shown=f"uv python install {shlex.quote(request)}",
            )
        except ToolFailed as error:
            raise CannotBuild(
                f"Python {request} could not be fetched", why=reason_of(error.lines) or error.ending
            ) from error

    interpreter = await interpreters.for_version(wanted, file=file, fetch=fetch)
    asked = understood(wanted) if wanted else None
    if asked is not None and not asked.fits(interpreter.numbers):
        await shop.say(f"Python {wanted} is not here; {interpreter.version} of the same minor version is used")
    return interpreter


class _Environments:
    """Makes the virtual environments of one build."""

    def __init__(
        self,
        shop: Workshop,
        interpreter: Interpreter,
        own: Path,
        installation: Installation,
        *,
        runner: str | None = None,
    ) -> None:
        self._shop = shop
        self._interpreter = interpreter
        self._own = own
        self._plan = installation
        self._runner = runner if runner in RUNNERS else None
        whole = installation.whole_source or installation.keyed_by_source
        variables = shop.order.variables
        self._variables = variables if whole else install_variables(variables, installation.files.values())
        """What the installation of the packages gets of the build-time variables; the app's own code gets all."""

    async def packages(self) -> ReadyLayer:
        """The layer with everything that the app depends on."""
        return await self._shop.layer(
            "python",
            {
                **self._inputs(self._variables if self._plan.commands else {}),
                **self._plan.inputs,
                "source": self._shop.order.source_digest if self._plan.keyed_by_source else None,
                "project": bool(self._plan.project),
                "runner": runner_script(self._runner) if self._runner else None,
            },
            partial(self._make, commands=self._plan.commands, project=False),
            created_by=f"Python {self._interpreter.version}, {self._plan.title}",
        )

    async def project(self) -> ReadyLayer:
        """The layer with the app's own project."""
        inputs = {**self._inputs(self._shop.order.variables), "source": self._shop.order.source_digest}
        reuse = ProjectReuse(self._shop, {**inputs, "source": None, "uv": _own_uv()})

        async def make(folder: Path) -> None:
            base = await reuse.find()
            if base is None:
                await self._make(folder, commands=self._plan.project, project=True)
                await reuse.remember(layer_key("project", inputs), folder)
                return
            await self._shop.say(f"The project as built before, with {len(base.changed)} changed files")
            await unpack(self._shop, base.layer)
            await reuse.apply(base, folder)
            self._shop.note("compiling the project")
            env = self._shop.environment({})
            await self._settle(folder, self._shop.scratch / "project", env, project=True)

        return await self._shop.layer("project", inputs, make, created_by="the project itself")

    def _inputs(self, variables: Mapping[str, str]) -> Mapping[str, object]:
        each = self._interpreter
        return {
            "interpreter": [each.implementation, each.version, each.platform, str(each.path)],
            "settle": SETTLE.read_text(encoding="utf-8"),
            "setuptools": pkg_resources.REQUIREMENT,
            "wrapper": _wrapper(Path("python")),
            "variables": self._shop.variables_key(variables),
        }

    async def _make(self, folder: Path, *, commands: Sequence[Command], project: bool) -> None:
        given = self._shop.environment({}, variables=None if project else self._variables)
        env = {
            **given,
            **index_environment(given.get),
            **tool_environment(self._plan, venv=str(folder), caches=str(self._shop.app_cache.tools)),
            **(PROJECT_ENVIRONMENT if project else {}),
        }
        venv = [uv.find_uv_bin(), "venv", "--quiet", "--relocatable", "--no-project"]
        await self._shop.run(
            [*venv, "--python", self._interpreter.path, folder], env=env, cwd=self._shop.scratch, shown=None
        )
        work = self._shop.scratch / ("project" if project else "packages")
        if commands:
            self._shop.note("installing the project" if project else "installing dependencies")
            whole = project or self._plan.whole_source
            await asyncio.to_thread(_lay_out_work, self._shop.app, work, whole, self._plan.files)
            for command in commands:
                await self._run(command, env=env, work=work, python=folder / "bin" / "python")
            if self._plan.tool == "pip" and not project:
                await self._add_setuptools(folder, work, env)
            self._shop.note("compiling dependencies")
        await self._settle(folder, work, env, project=project)
        await asyncio.to_thread(_complete, folder, self._interpreter, project, bool(self._plan.project))
        if self._runner and not project:
            await asyncio.to_thread(_add_program, folder / "bin" / self._runner, runner_script(self._runner))

    async def _run(self, command: Command, *, env: Mapping[str, str], work: Path, python: Path) -> None:
        if command.compares and self._plan.tool == "uv":
            unknown = foreign_indexes(env, self._plan.files.get(self._plan.file or "", b""))
            env = {name: value for name, value in env.items() if name not in unknown}
        before = command.tool.arguments(str(self._own)) if command.tool else ()
        try:
            await self._shop.run(
                [uv.find_uv_bin(), *before, *command.arguments_for(str(python))], env=env, cwd=work, shown=command.shown
            )
        except ToolFailed as error:
            raise explained(self._plan, command, error.lines, error.ending) from error

    async def _add_setuptools(self, folder: Path, work: Path, env: Mapping[str, str]) -> None:
        """Install setuptools where packages import a part of it without requiring it."""
        if not await asyncio.to_thread(pkg_resources.is_needed, folder, self._interpreter.numbers):
            return
        await self._shop.say(
            f"A package imports pkg_resources without requiring it: {pkg_resources.REQUIREMENT} is added"
        )
        options = ("pip", "install", "--quiet", "--python", folder / "bin" / "python", pkg_resources.REQUIREMENT)
        try:
            await self._shop.run([uv.find_uv_bin(), *options], env=env, cwd=work, shown=None)
        except ToolFailed as error:
            await self._shop.say(f"Warning: {pkg_resources.REQUIREMENT} could not be installed: {error.ending}")

    async def _settle(self, folder: Path, work: Path, env: Mapping[str, str], *, project: bool) -> None:
        argv: list[str | Path] = [
            *(self._interpreter.path, "-s", "-S", SETTLE, folder, f"/layers/{folder.name}"),
            *(SCRIPT_PYTHON_OF_PROJECT if project else SCRIPT_PYTHON, work),
        ]
        try:
            await self._shop.run(argv, env={**env, "PYTHONHASHSEED": "0"}, cwd=self._shop.scratch, shown=None)
        except ToolFailed as error:
            raise BuildFailed(
                f"The packages of {self._plan.file or 'the project'} cannot be part of an image",
                why=reason_of(error.lines) or error.ending,
            ) from error


def _lay_out_work(app: Path, work: Path, whole: bool, files: Mapping[str, bytes]) -> None:
    """The folder in which tools run: they may write there, and the app stays as it is."""
    work.mkdir(parents=True, exist_ok=True)
    if whole:
        shutil.copytree(app, work, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
    for name, content in files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def _complete(folder: Path, interpreter: Interpreter, project: bool, with_project: bool) -> None:
    """Take the links to the interpreter out; put the environment's own starters and configuration in."""
    scripts = folder / "bin"
    for path in list(scripts.iterdir()):
        if path.is_symlink():
            path.unlink()
    (folder / "pyvenv.cfg").unlink(missing_ok=True)
    if project:
        return
    for name in interpreter.names:
        _add_program(scripts / name, _wrapper(interpreter.path))
    numbers = ".".join(map(str, interpreter.numbers))
    (folder / "pyvenv.cfg").write_text(
        f"home = {interpreter.path.parent}\ninclude-system-site-packages = false\nversion = {numbers}\n"
    )
    if with_project:
        for site in (folder / "lib").glob("*/site-packages"):
            (site / "knarr_project.pth").write_text(f"../../../../project/lib/{site.parent.name}/site-packages\n")


def _add_program(path: Path, text: str) -> None:
    """Write an executable, unless a package brings it."""
    if not path.exists():
        path.write_text(text)
        path.chmod(0o755)


def _wrapper(program: Path) -> str:
    """A script that becomes `program` under its own path: by this path Python finds its environment (PEP 405)."""
    quoted = "'" + str(program).replace("'", "'\\''") + "'"
    by_python = "import os, sys; os.execv(sys.argv[1], sys.argv[2:])"
    return (
        "#!/bin/sh\n"
        f'if [ -x /bin/bash ]; then exec /bin/bash -pc \'exec -a "$0" "$@"\' "$0" {quoted} "$@"; fi\n'
        f'exec {quoted} -ISc \'{by_python}\' {quoted} "$0" "$@"\n'
    )


def _own_uv() -> str:
    return importlib.metadata.version("uv")
