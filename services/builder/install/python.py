"""`Packages` of Python in; the commands that install them, and the files that these commands read, out. Pure.

Each tool installs from its own lock file, frozen. Where there is no lock file the tool resolves versions; uv does so
as pip does, for this machine only. The packages
go into a virtual environment; the app's own project goes into a second one, so that a change of the app's code leaves
the first one as it is.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from seedwork import bounded_toml
from services.builder.errors import CannotBuild
from services.builder.install.python_versions import satisfies, understood
from services.builder.install.requirements import MANIFEST_BYTES, ReadFile, Requirements, read_requirements, text_of
from services.source.contract import Packages

_VERSIONS = {"poetry": "2.5.1", "pdm": "2.29.4", "pipenv": "2026.10.3"}
"""Versions of tools for projects that name none."""
_POETRY_1 = "1.8.5"
"""Poetry for lock files of Poetry 1, which Poetry 2 reads in part only."""
_CONSTRAINTS = {"pdm==2.29.4": ("hishel>=1.4,<2",)}
"""Limits on the packages that a tool itself depends on, where a newer one breaks it."""
_LOCK_COMMANDS = {"uv": "uv lock", "poetry": "poetry lock", "pdm": "pdm lock", "pipenv": "pipenv lock"}
VENV_PYTHON = "/layers/python/bin/python"
"""In the arguments of commands: the interpreter of the virtual environment that is filled."""
SCRIPT_PYTHON = "${0%/*}/python"
"""The interpreter of a script of the environment, as its shell header names it."""
SCRIPT_PYTHON_OF_PROJECT = "${0%/*/*/*}/python/bin/python"
"""The interpreter of a script of the project."""
_LOCAL_IN_PYLOCK = re.compile(rb"^[ \t]*+(directory|path)[ \t]*+=|\[packages\.directory", re.MULTILINE)
_BUILT_FROM_SOURCE = ("setup.py", "setup.cfg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A program of the package index that uv runs."""

    program: str
    requirement: str
    """`poetry==2.5.1`"""

    def arguments(self, python: str) -> tuple[str, ...]:
        """Arguments of uv that run the program under the interpreter `python`; the program's own come after them."""
        limits = (part for each in _CONSTRAINTS.get(self.requirement, ()) for part in ("--with", each))
        source = ("--from", self.requirement)
        return ("tool", "run", "--isolated", "--quiet", "--python", python, *source, *limits, self.program)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One run of an install tool, in the folder that holds `Installation.files` or the whole source."""

    arguments: tuple[str, ...]
    tool: Tool | None = None
    """None: the builder's own uv."""
    compares: bool = False
    """True: it installs nothing, and fails where the lock file does not fit its manifest."""

    def arguments_for(self, python: str) -> tuple[str, ...]:
        """Return the arguments, with the interpreter of a virtual environment in place."""
        return tuple(python if each == VENV_PYTHON else each for each in self.arguments)

    @property
    def shown(self) -> str:
        """The command as a developer would type it."""
        words = [each for each in self.arguments if each not in {"--no-ansi", "--no-interaction"}]
        for option in ("--python", "--preview-features"):
            if option in words:
                at = words.index(option)
                del words[at : at + 2]
        return " ".join([self.tool.program if self.tool else "uv", *words])


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """How the packages of a Python app are installed."""

    file: str | None
    """The file that counts; None: nothing is installed."""
    manifest: str | None = None
    """The file that a lock file must fit."""
    frozen: bool = False
    tool: str = "pip"
    commands: tuple[Command, ...] = ()
    """Installs the packages into the virtual environment."""
    project: tuple[Command, ...] = ()
    """Installs the app's own project alone into a second virtual environment; empty: it is not installed."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files that the commands read, by path; they replace those of the source where they differ."""
    whole_source: bool = False
    """True: the commands run in a copy of the source; False: in a folder with `files` only."""
    keyed_by_source: bool = False
    """True: every change of the source may change the packages."""
    own_config: bool = False
    """True: the project configures uv itself (`uv.toml` or `[tool.uv]`)."""
    notes: tuple[str, ...] = ()
    """Lines for the build log."""

    @property
    def title(self) -> str:
        """What is installed and from which file, for the log and the layer's history."""
        if self.file is None:
            return "no packages"
        return f"packages from {self.file}" + (", frozen" if self.frozen else "")

    @property
    def lock_command(self) -> str:
        """The command that makes the lock file again."""
        return _LOCK_COMMANDS.get(self.tool, "")

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Everything that decides what the commands install, except the source itself: part of the layer's key."""
        return {
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()},
            "commands": [[*(each.tool.arguments("") if each.tool else ()), *each.arguments] for each in self.commands],
            "own_config": self.own_config,
        }


def plan_installation(packages: Packages | None, read: ReadFile, *, uv_version: str) -> Installation:
    """Decide how the packages are installed.

    Args:
        packages: What the description says; None: the app has no Python packages.
        read: Reads a file of the app; blocks.
        uv_version: Version of the builder's own uv.

    Raises:
        CannotBuild: A file is missing, cannot be read, or asks for what no image can hold. The text names the file.
    """
    file = (packages.lock or next(iter(packages.manifests), None)) if packages else None
    if packages is None or file is None:
        return Installation(file=None)
    facts = _Facts(packages=packages, read=read, file=file, uv_version=uv_version)
    if packages.tool == "pip" or (packages.tool == "uv" and packages.lock is None):
        return _pip(facts)
    commands: Mapping[str, Callable[[_Facts], tuple[Command, ...]]] = {
        "uv": _uv,
        "poetry": _poetry,
        "pdm": _pdm,
        "pipenv": _pipenv,
        "pylock": _pylock,
    }
    if packages.tool not in commands:
        raise CannotBuild(f"Packages of Python cannot be installed with {packages.tool}", code="cannot_build")
    files = facts.files()
    lock = files.get(packages.lock or "", b"")
    by_source = packages.needs_source or bool(packages.tool == "pylock" and _LOCAL_IN_PYLOCK.search(lock))
    return Installation(
        file=file,
        manifest=_manifest(packages),
        frozen=packages.lock is not None,
        tool=packages.tool,
        commands=commands[packages.tool](facts),
        project=_project() if packages.project else (),
        files=files,
        whole_source=by_source or bool(facts.dynamic),
        keyed_by_source=by_source or (packages.lock is None and "dependencies" in facts.dynamic),
        own_config=facts.own_config,
        notes=() if packages.lock else (f"Warning: no lock file; {packages.tool} chooses versions. Commit one.",),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What the rules of all tools look at."""

    packages: Packages
    read: ReadFile
    file: str
    uv_version: str

    @property
    def pyproject(self) -> Mapping[str, Any]:
        return _toml(self.read, "pyproject.toml")

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Parts of the project that its build backend computes from the source."""
        project = self.pyproject.get("project")
        found = project.get("dynamic") if isinstance(project, dict) else None
        return tuple(map(str, found)) if isinstance(found, list) else ()

    @property
    def static(self) -> bool:
        """Whether pyproject.toml itself lists what the project depends on."""
        sources = (self.pyproject.get("tool") or {}).get("uv") or {}
        computed = {"dependencies", "optional-dependencies"} & {*self.dynamic}
        return "project" in self.pyproject and not computed and not sources.get("sources")

    @property
    def own_config(self) -> bool:
        tool = self.pyproject.get("tool")
        return self.read("uv.toml") is not None or bool(isinstance(tool, dict) and tool.get("uv"))

    def extras(self) -> tuple[list[str], list[str]]:
        """Names of `packages.groups` that are extras, and the others, which are dependency groups."""
        project, tool = self.pyproject.get("project") or {}, self.pyproject.get("tool") or {}
        extras = {*(project.get("optional-dependencies") or {}), *((tool.get("poetry") or {}).get("extras") or {})}
        groups = self.packages.groups
        return [each for each in groups if each in extras], [each for each in groups if each not in extras]

    def files(self) -> dict[str, bytes]:
        """The manifests as an image can hold what they install."""
        names = dict.fromkeys((*self.packages.manifests, *filter(None, (self.packages.lock,)), "uv.toml"))
        found = {name: content for name in names if (content := self.read(name)) is not None}
        if self.file not in found:
            raise CannotBuild(f"There is no {self.file}", todo="Commit it and push again.")
        return {name: _not_editable(name, content) for name, content in found.items()}


def _not_editable(name: str, content: bytes) -> bytes:
    """A lock file whose local packages are installed as regular ones: the folder of the build is gone later."""
    match name.rpartition("/")[2]:
        case "Pipfile.lock":
            return re.sub(rb'"editable":\s*true', b'"editable": false', content)
        case "poetry.lock":
            return re.sub(rb"(?m)^develop = true$", b"develop = false", content)
        case file if re.fullmatch(r"pylock(\..+)?\.toml", file):
            return re.sub(rb"\beditable\s*=\s*true", b"editable = false", content)
        case _:
            return content


def _pip(facts: _Facts) -> Installation:
    """Install with uv's implementation of pip from a requirements file, pyproject.toml or setup.py."""
    packages, file = facts.packages, facts.file
    project = _project() if packages.project else ()
    if file == "pyproject.toml" or file in _BUILT_FROM_SOURCE:
        return _pip_project(facts, project)
    requirements = read_requirements(file, facts.read)
    if requirements.itself is not None and facts.static and not requirements.needs_source and not requirements.hashed:
        return _pip_with_itself(facts, requirements)
    by_source = packages.needs_source or requirements.needs_source or requirements.itself is not None
    own = {name: content for name, content in facts.files().items() if name not in requirements.files}
    hashes = ("--require-hashes",) if requirements.hashed else ()
    return Installation(
        file=None if requirements.empty else file,
        frozen=packages.lock is not None,
        commands=()
        if requirements.empty
        else (Command(arguments=("pip", "install", "--python", VENV_PYTHON, *hashes, "-r", file)),),
        project=project,
        files={**own, **{name: text.encode() for name, text in requirements.files.items()}},
        whole_source=by_source,
        keyed_by_source=by_source,
        own_config=facts.own_config,
        notes=_editable_notes(requirements),
    )


def _pip_with_itself(facts: _Facts, requirements: Requirements) -> Installation:
    """Install what the app's own project depends on first: a change of its code leaves these packages as they are."""
    files = {name: content for name, content in facts.files().items() if name not in requirements.files}
    files |= {name: text.encode() for name, text in requirements.without_itself().items()}
    files["pyproject.toml"] = facts.read("pyproject.toml") or b""
    extras = [part for name in requirements.itself or () for part in ("--extra", name)]
    sources = ("-r", facts.file, "-r", "pyproject.toml", *extras)
    return Installation(
        file=facts.file,
        commands=(Command(arguments=("pip", "install", "--python", VENV_PYTHON, *sources)),),
        project=_project(),
        files=files,
        whole_source=bool(facts.dynamic),
        own_config=facts.own_config,
        notes=_editable_notes(requirements),
    )


def _editable_notes(requirements: Requirements) -> tuple[str, ...]:
    return tuple(f"{name}: editable requirements are installed as regular packages" for name in requirements.rewritten)


def _pip_project(facts: _Facts, project: tuple[Command, ...]) -> Installation:
    packages, file = facts.packages, facts.file
    extras, groups = facts.extras()
    options = [part for name in extras for part in ("--extra", name)]
    options += [part for name in groups for part in ("--group", name)]
    table = facts.pyproject.get("project") or {}
    computed = file in _BUILT_FROM_SOURCE or "dependencies" in facts.dynamic
    if not (computed or table.get("dependencies") or options):
        return Installation(file=None, project=project, own_config=facts.own_config)
    return Installation(
        file=file,
        commands=(Command(arguments=("pip", "install", "--python", VENV_PYTHON, "-r", file, *options)),),
        project=project,
        files=facts.files(),
        whole_source=packages.needs_source or computed or bool(facts.dynamic),
        keyed_by_source=packages.needs_source or "dependencies" in facts.dynamic,
        own_config=facts.own_config,
    )


def _project() -> tuple[Command, ...]:
    """Install the app's own project without what it depends on."""
    return (Command(arguments=("pip", "install", "--python", VENV_PYTHON, "--no-deps", ".")),)


def _uv(facts: _Facts) -> tuple[Command, ...]:
    packages = facts.packages
    tool = _named(packages, "uv", facts.uv_version)
    extras, groups = facts.extras()
    options = [] if packages.include_dev else ["--no-dev"]
    options += [part for name in extras for part in ("--extra", name)]
    options += [part for name in groups for part in ("--group", name)]
    sync = ("sync", "--frozen", *options, "--no-editable", "--no-install-project", "--python", VENV_PYTHON)
    check = Command(arguments=("lock", "--check", "--python", VENV_PYTHON), tool=tool, compares=True)
    return (check, Command(arguments=sync, tool=tool))


def _poetry(facts: _Facts) -> tuple[Command, ...]:
    packages = facts.packages
    lock = facts.read(packages.lock) if packages.lock else None
    written_by = re.search(rb"^#.*generated by Poetry (\d+(?:\.\d+)+)", lock or b"")
    version = _VERSIONS["poetry"]
    if lock is not None and packages.tool_version is None:
        version = written_by[1].decode() if written_by else _POETRY_1
        version = _POETRY_1 if version.startswith(("0.", "1.")) else version
    extras, groups = facts.extras()
    options = [part for name in extras for part in ("--extras", name)]
    if packages.include_dev:
        options += [part for name in groups for part in ("--with", name)]
    else:
        options += ["--only", ",".join(["main", *groups])]
    arguments = ("install", "--no-interaction", "--no-ansi", "--no-root", *options)
    return (Command(arguments=arguments, tool=_named(packages, "poetry", version)),)


def _pdm(facts: _Facts) -> tuple[Command, ...]:
    packages = facts.packages
    tool = _named(packages, "pdm", _VERSIONS["pdm"])
    options = [] if packages.include_dev else ["--prod"]
    options += [part for name in packages.groups for part in ("-G", name)]
    verb = ["sync"] if packages.lock else ["install", "--no-lock"]
    install = Command(arguments=(*verb, *options, "--no-self", "--no-editable"), tool=tool)
    lock = facts.read(packages.lock) if packages.lock else None
    if lock is None or b"content_hash" not in lock:
        return (install,)
    return (Command(arguments=("lock", "--check"), tool=tool, compares=True), install)


def _pipenv(facts: _Facts) -> tuple[Command, ...]:
    packages = facts.packages
    tool = _named(packages, "pipenv", _VERSIONS["pipenv"])
    options = ["--dev"] if packages.include_dev else []
    if packages.groups:
        options += ["--categories", " ".join(["packages", *packages.groups])]
    if packages.lock is None:
        return (Command(arguments=("install", "--skip-lock", *options), tool=tool),)
    install = Command(arguments=("sync", *options), tool=tool)
    if not re.search(rb'"sha256":\s*"[0-9a-f]{64}"', facts.read(packages.lock) or b""):
        return (install,)
    return (Command(arguments=("verify",), tool=tool, compares=True), install)


def _pylock(facts: _Facts) -> tuple[Command, ...]:
    options = ("--preview-features", "pylock", "--python", VENV_PYTHON)
    return (Command(arguments=("pip", "install", *options, "-r", facts.file)),)


def _named(packages: Packages, program: str, default: str) -> Tool | None:
    """The tool in the version that the project names, else in the default one; None: the builder's own uv."""
    asked = packages.tool_version
    fits = satisfies(default, asked) if asked else True
    if fits:
        return None if program == "uv" else Tool(program=program, requirement=f"{program}=={default}")
    wanted = understood(asked) if asked else None
    if wanted is None:
        raise CannotBuild(
            f"The version {str(asked)[:60]!r} of {program} is not understood",
            todo="Write a version such as 1.2.3 or a range such as >=1.2,<2.",
        )
    number = ".".join(map(str, wanted.exact)) if wanted.exact is not None else ""
    return Tool(program=program, requirement=f"{program}=={number}" if number else f"{program}{wanted.request}")


def _manifest(packages: Packages) -> str | None:
    """The file that the lock file must fit."""
    names = {"uv": "pyproject.toml", "poetry": "pyproject.toml", "pdm": "pyproject.toml", "pipenv": "Pipfile"}
    return names.get(packages.tool) if packages.lock else None


def _toml(read: ReadFile, name: str) -> Mapping[str, Any]:
    content = read(name)
    if content is None:
        return {}
    if len(content) > MANIFEST_BYTES:
        raise CannotBuild(f"{name} has more than {MANIFEST_BYTES} bytes", todo="Shorten it.")
    try:
        return bounded_toml.loads(text_of(name, content))
    except ValueError as error:
        raise CannotBuild(f"{name} cannot be read", why=str(error)[:300], todo="Correct it and push again.") from error
