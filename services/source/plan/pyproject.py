"""`pyproject.toml`, the Pipfile, `setup.py` and `setup.cfg`: a Python project, read without running it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from services.source.errors import AppInvalid
from services.source.plan.formats import table, text, texts, toml_of
from services.source.plan.requirements import Requirement, normal, requirement
from services.source.plan.tree import Tree
from services.source.plan.versions import Asked, caret_free

PYPROJECT = "pyproject.toml"
PIPFILE = "Pipfile"
SETUP_PY = "setup.py"
SETUP_CFG = "setup.cfg"
_MAIN_GROUPS = ("main", "default", "prod", "production", "app", "web", "server", "runtime")
"""Names of dependency groups that hold the packages of an app, where a file has nothing but groups."""


@dataclass(frozen=True, slots=True)
class Pyproject:
    """A Python project in `pyproject.toml`."""

    is_project: bool = False
    """False: the file only configures tools, as it does in repositories of other languages too."""
    name: str = ""
    dependencies: tuple[Requirement, ...] = ()
    is_dynamic: bool = False
    """True: the dependencies are computed by the build backend."""
    reads: tuple[str, ...] = ()
    """Requirements files from which the build backend takes the dependencies."""
    python: Asked | None = None
    scripts: tuple[str, ...] = ()
    """Commands that the installed project has."""
    has_backend: bool = False
    is_package: bool | None = None
    """What a tool's table says (`package = false`, `package-mode = false`, `distribution = false`)."""
    tools: frozenset[str] = frozenset()
    """Which of `poetry`, `pdm`, `uv` and `hatch` have a table of their own."""
    uv_version: str | None = None
    local: tuple[str, ...] = ()
    """Folders or files of the app that are dependencies, or a workspace."""
    groups: tuple[str, ...] = ()
    """Dependency groups (PEP 735, Poetry), which are not installed by themselves."""
    main_group: str | None = None
    """The group that holds the app's packages, where there is no `[project]`."""


def read_pyproject(tree: Tree) -> Pyproject:
    """Read the file; the empty project where it is not there.

    Raises:
        AppInvalid: It cannot be read.
    """
    if not tree.has(PYPROJECT):
        return Pyproject()
    content = toml_of(tree, PYPROJECT)
    project, tool = table(content.get("project")), table(content.get("tool"))
    poetry, uv, pdm = table(tool, "poetry"), table(tool, "uv"), table(tool, "pdm")
    poetry_packages = table(poetry, "dependencies")
    dynamic = texts(project.get("dynamic"))
    declared = [each for line in texts(project.get("dependencies")) if (each := requirement(line))]
    declared += [_poetry(name, value) for name, value in poetry_packages.items() if name.lower() != "python"]
    setuptools = table(tool, "setuptools", "dynamic", "dependencies")
    reads = setuptools.get("file", ())
    groups = table(content.get("dependency-groups"))
    has_project = "project" in content.names or "build-system" in content.names or bool(poetry)
    main_group = next((name for name in _MAIN_GROUPS if not has_project and texts(groups.get(name))), None)
    declared += [each for line in texts(groups.get(main_group or "")) if (each := requirement(line))]
    return Pyproject(
        is_project=has_project or main_group is not None,
        name=text(project.get("name")) or text(poetry.get("name")) or "",
        dependencies=tuple(declared),
        is_dynamic="dependencies" in dynamic,
        reads=(reads,) if isinstance(reads, str) else texts(reads) if isinstance(reads, list) else (),
        python=_python(project, poetry_packages),
        scripts=(*table(project, "scripts"), *table(poetry, "scripts")),
        has_backend="build-system" in content.names,
        is_package=_flag(uv.get("package"), poetry.get("package-mode"), pdm.get("distribution")),
        tools=frozenset(name for name in ("poetry", "pdm", "uv", "hatch") if table(tool, name)),
        uv_version=text(uv.get("required-version")),
        local=tuple(_local(table(uv, "sources"), poetry_packages, uv)),
        groups=tuple(name for name in (*groups, *table(poetry, "group")) if name not in {main_group, "main"}),
        main_group=main_group,
    )


def _flag(*values: Any) -> bool | None:
    return next((value for value in values if isinstance(value, bool)), None)


def _python(project: dict[str, Any], poetry: dict[str, Any]) -> Asked | None:
    if wanted := text(project.get("requires-python")):
        if len(wanted) > 100 or not re.fullmatch(r"[0-9A-Za-z.,<>=!~* ]+", wanted, re.ASCII):
            raise AppInvalid(f"{PYPROJECT}: `requires-python` is {wanted[:80]!r}", todo='For example `">=3.11"`.')
        return Asked(",".join(wanted.replace(" ", "").split(",")), PYPROJECT, f"`requires-python` of {PYPROJECT}")
    constraint = text(poetry.get("python"))
    version = caret_free(constraint) if constraint else None
    return Asked(version, PYPROJECT, f"`tool.poetry.dependencies.python` of {PYPROJECT}") if version else None


def _poetry(name: str, value: Any) -> Requirement:
    """A dependency in Poetry's form."""
    constraint = value.get("version") if isinstance(value, dict) else value
    extras = tuple(normal(each) for each in texts(value.get("extras"))) if isinstance(value, dict) else ()
    is_optional = isinstance(value, dict) and (value.get("optional") is True or "markers" in value)
    return Requirement(
        normal(name),
        (caret_free(constraint) or "") if isinstance(constraint, str) else "",
        extras,
        is_conditional=is_optional,
        is_address=not isinstance(constraint, str),
    )


def _local(sources: dict[str, Any], poetry: dict[str, Any], uv: dict[str, Any]) -> Iterable[str]:
    for name, value in (*sources.items(), *poetry.items()):
        entries = value if isinstance(value, list) else [value]
        if any(isinstance(each, dict) and ("path" in each or "workspace" in each) for each in entries):
            yield name
    if table(uv, "workspace"):
        yield "tool.uv.workspace"


@dataclass(frozen=True, slots=True)
class Pipfile:
    """Packages and Python version of a Pipfile."""

    dependencies: tuple[Requirement, ...] = ()
    python: Asked | None = None
    local: bool = False


def read_pipfile(tree: Tree) -> Pipfile:
    """Read the Pipfile; an empty one where it is not there.

    Raises:
        AppInvalid: It cannot be read.
    """
    if not tree.has(PIPFILE):
        return Pipfile()
    content = toml_of(tree, PIPFILE)
    packages = content.object("packages")
    requires = content.object("requires")
    python = next(
        (found for key in ("python_full_version", "python_version") if (found := text(requires.get(key)))), None
    )
    return Pipfile(
        dependencies=tuple(_poetry(name, value) for name, value in packages.items()),
        python=Asked(python, PIPFILE, f"`requires` of {PIPFILE}") if python and python != "*" else None,
        local=any(isinstance(value, dict) and "path" in value for value in packages.values()),
    )


def setup_names(tree: Tree) -> tuple[str, ...]:
    """Names of packages that `setup.py` or `setup.cfg` asks for, as far as they are written out there."""
    source = tree.source(SETUP_PY)
    listed = re.search(r"install_requires\s*=\s*\[([^\]]{0,8000})\]", source)
    found = re.findall(r"[\"']([^\"'\n]{1,200})[\"']", listed[1]) if listed else []
    found += _cfg_lines(tree.source(SETUP_CFG))
    return tuple(each.name for line in found if (each := requirement(line)))


def _cfg_lines(source: str) -> list[str]:
    """Lines of `install_requires` in `setup.cfg`."""
    found: list[str] = []
    inside = False
    for line in source.split("\n"):
        key, equals, value = line.partition("=")
        if line.startswith((" ", "\t")) and inside:
            found.append(line.strip())
        else:
            inside = bool(equals) and key.strip() == "install_requires"
            found += [value.strip()] if inside and value.strip() else []
    return found
