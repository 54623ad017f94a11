"""What a Python app installs: which of its files counts, with which tool, and whether two of them agree.

A lock file is stronger than a list without versions. Two sources that cannot be shown to agree are an error that
names both files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from services.source.contract import Packages
from services.source.errors import AppInvalid
from services.source.plan.findings import Findings, listed
from services.source.plan.pyproject import (
    PIPFILE,
    PYPROJECT,
    SETUP_CFG,
    SETUP_PY,
    Pipfile,
    Pyproject,
    read_pipfile,
    read_pyproject,
    setup_names,
)
from services.source.plan.python_agreement import check_agreement
from services.source.plan.python_locks import LOCKS, Locked, disagreement, lock_disagreement, read_lock
from services.source.plan.requirements import Requirement, Requirements, read_requirements
from services.source.plan.tree import Tree
from services.source.plan.versions import PYTHON_VERSION, RUNTIME_TXT, Asked, python_version

PythonTool = Literal["pip", "uv", "poetry", "pdm", "pipenv", "pylock"]
REQUIREMENTS = (
    *("requirements.txt", "requirements/production.txt", "requirements/prod.txt", "requirements-prod.txt"),
    *(
        "requirements-production.txt",
        "requirements/base.txt",
        "requirements/requirements.txt",
        "requirements.pip",
        "requirements.in",
    ),
)
"""Files that say what to install; the first that is there counts."""
CONDA = ("environment.yml", "environment.yaml", "conda.yml", "conda-lock.yml", "pixi.toml")
_MISSPELT = ("requirement.txt", "Requirements.txt", "requirments.txt", "requeriments.txt", "requirements.text")
_CONFIGS = ("uv.toml", "poetry.toml", "pdm.toml", "pip.conf", SETUP_PY, SETUP_CFG)
"""Files that change what the tools install."""


@dataclass(frozen=True, slots=True)
class PythonApp:
    """The Python side of an app."""

    packages: Packages
    dependencies: frozenset[str] = frozenset()
    """Names of packages that the app asks for, or that its lock file holds."""
    extras: frozenset[str] = frozenset()
    """`package[extra]`, as `fastapi[standard]`."""
    scripts: tuple[str, ...] = ()
    """Commands that the installed project has."""
    file: str | None = None
    """File that the packages come from, for advice; null: none."""


@dataclass(slots=True)
class _Sources:
    """Everything in the app that says what to install."""

    tree: Tree
    findings: Findings
    pyproject: Pyproject = field(default_factory=Pyproject)
    pipfile: Pipfile = field(default_factory=Pipfile)
    requirements: Requirements | None = None
    locks: list[Locked] = field(default_factory=list)


def is_python(tree: Tree) -> bool:
    """Whether a file says that the app is, or has, a Python project."""
    named = (*REQUIREMENTS, PIPFILE, *LOCKS, SETUP_PY, PYTHON_VERSION, RUNTIME_TXT, *CONDA[:2])
    if tree.first(*named):
        return True
    try:
        return read_pyproject(tree).is_project
    except AppInvalid:
        return True


def read_python(tree: Tree, findings: Findings, version: str | None = None) -> PythonApp:
    """Return what the app installs; refusals and notes are collected.

    Args:
        tree: The app.
        findings: Where lines and refusals go.
        version: The version that `.cupaas.yml` asks for, or None.
    """
    sources = _read(tree, findings)
    _refuse_conda(sources)
    if sources.pyproject.groups:
        findings.note(
            f"not installed: the dependency groups {listed(list(sources.pyproject.groups)[:10])} of {PYPROJECT}"
        )
    lock = _lock(sources)
    check_agreement(findings, lock, _lists(sources, lock))
    asked = Asked(version, ".cupaas.yml", "`runtime` of .cupaas.yml") if version else None
    asked = asked or python_version(tree, findings, project=sources.pyproject.python, pipfile=sources.pipfile.python)
    packages, dependencies = _chosen(sources, lock)
    packages = packages.model_copy(
        update={"version": asked.version if asked else None, "version_file": asked.file if asked else None}
    )
    names = {each.name for each in dependencies} | set(lock.versions if lock else ())
    file = packages.lock or (packages.manifests[0] if packages.manifests else None)
    said = f"Python{' ' + asked.version if asked else ''}" + (f" ({asked.where})" if asked else "")
    findings.found(f"{said}: {_how(packages)}")
    return PythonApp(
        packages=packages,
        dependencies=frozenset(names),
        extras=frozenset(f"{each.name}[{extra}]" for each in dependencies for extra in each.extras),
        scripts=sources.pyproject.scripts if sources.pyproject.has_backend else (),
        file=file,
    )


def _read(tree: Tree, findings: Findings) -> _Sources:
    sources = _Sources(tree, findings)
    with findings.collecting():
        sources.pyproject = read_pyproject(tree)
    with findings.collecting():
        sources.pipfile = read_pipfile(tree)
    if file := tree.first(*REQUIREMENTS):
        with findings.collecting():
            sources.requirements = read_requirements(tree, file)
    elif wrong := tree.first(*_MISSPELT):
        findings.note(f"{wrong} is not read: the file's name is requirements.txt")
    for name in filter(tree.has, LOCKS):
        with findings.collecting():
            sources.locks.append(read_lock(tree, name))
    _name_others(sources)
    return sources


def _name_others(sources: _Sources) -> None:
    """Name the files that ask for packages and do not count."""
    taken = set(sources.requirements.files) if sources.requirements else set()
    patterns = ("requirements*.txt", "requirements*.in", "requirements/*.txt", "*requirements.txt", "pylock.*.toml")
    others = [name for name in sources.tree.matching(*patterns) if name not in taken]
    if others:
        sources.findings.note(f"{listed(others[:10])}: passed over, not the file that says what to install")


def _refuse_conda(sources: _Sources) -> None:
    conda = sources.tree.first(*CONDA)
    if conda is None:
        return
    counts = sources.requirements or sources.locks or sources.pyproject.is_project or sources.pipfile.dependencies
    if counts or sources.tree.has(SETUP_PY):
        sources.findings.note(f"{conda}: passed over, other files say what to install")
    else:
        sources.findings.refuse(
            f"{conda} lists the packages for conda, and no builder of knarr has conda",
            todo="Commit a requirements.txt (`pip list --format=freeze > requirements.txt`), or a Dockerfile.",
        )


def _lock(sources: _Sources) -> Locked | None:
    """The lock file that counts; several must agree with it."""
    if not sources.locks:
        return None
    first, *others = sources.locks
    for other in others:
        if reason := lock_disagreement(first, other):
            sources.findings.refuse(
                f"{first.file} and {other.file} do not agree",
                why=reason,
                todo=f"Remove the one that is not used: git rm {other.file}",
            )
        else:
            sources.findings.note(f"{other.file}: passed over, it agrees with {first.file}")
    return first


def _lists(sources: _Sources, lock: Locked | None) -> dict[str, Sequence[Requirement]]:
    """The lists of packages, the strongest first; without the manifest of the lock file, which is compared apart."""
    found: dict[str, Sequence[Requirement]] = {}
    own = None if lock is None else PIPFILE if lock.file == "Pipfile.lock" else PYPROJECT
    if sources.requirements is not None:
        found[sources.requirements.file] = sources.requirements.entries
    if sources.pipfile.dependencies and own != PIPFILE:
        found[PIPFILE] = sources.pipfile.dependencies
    is_installed = sources.requirements is not None and sources.requirements.has_project
    if sources.pyproject.dependencies and own != PYPROJECT and not sources.pyproject.is_dynamic and not is_installed:
        found[PYPROJECT] = sources.pyproject.dependencies
    return found


def _chosen(sources: _Sources, lock: Locked | None) -> tuple[Packages, tuple[Requirement, ...]]:
    if lock is not None:
        return _from_lock(sources, lock)
    if sources.requirements is not None:
        return _from_requirements(sources, sources.requirements)
    if sources.pipfile.dependencies or sources.tree.has(PIPFILE):
        sources.findings.note("no Pipfile.lock: versions are chosen at each build. Commit one: pipenv lock")
        return _packages(sources, "pipenv", (PIPFILE,), local=sources.pipfile.local), sources.pipfile.dependencies
    project = sources.pyproject
    is_setup = sources.tree.has(SETUP_PY) or (sources.tree.has(SETUP_CFG) and bool(setup_names(sources.tree)))
    if project.is_project and (project.dependencies or project.is_dynamic or not is_setup):
        return _from_pyproject(sources)
    if is_setup and (sources.tree.has(SETUP_PY) or project.is_project):
        names = tuple(Requirement(name) for name in setup_names(sources.tree))
        manifests = tuple(filter(sources.tree.has, (SETUP_PY, SETUP_CFG, PYPROJECT)))
        return _packages(sources, "pip", manifests, project=True, local=True), names
    return Packages(language="python", tool="pip"), ()


def _from_lock(sources: _Sources, lock: Locked) -> tuple[Packages, tuple[Requirement, ...]]:
    tool = cast("PythonTool", LOCKS[lock.file])
    manifest = PIPFILE if tool == "pipenv" else PYPROJECT
    if not sources.tree.has(manifest) and tool != "pylock":
        sources.findings.refuse(
            f"{lock.file} stands without {manifest}",
            todo=f"Commit {manifest}, which {lock.file} was made from, or remove {lock.file}.",
        )
    declared = sources.pipfile.dependencies if tool == "pipenv" else sources.pyproject.dependencies
    if reason := disagreement(lock, manifest, declared):
        sources.findings.refuse(
            f"{lock.file} does not fit {manifest}",
            why=reason,
            todo=f"Write {lock.file} anew and commit it: {_LOCK_COMMANDS[tool]}",
        )
    packages = _packages(
        sources,
        tool,
        tuple(filter(sources.tree.has, (lock.file, manifest))),
        lock=lock.file,
        project=tool not in {"pipenv", "pylock"} and _is_package(sources),
        local=sources.pipfile.local if tool == "pipenv" else bool(sources.pyproject.local),
        version=sources.pyproject.uv_version if tool == "uv" else None,
    )
    return packages, declared


_LOCK_COMMANDS = {
    "uv": "uv lock",
    "poetry": "poetry lock",
    "pdm": "pdm lock",
    "pipenv": "pipenv lock",
    "pylock": "uv export --format pylock.toml -o pylock.toml",
}


def _from_requirements(sources: _Sources, found: Requirements) -> tuple[Packages, tuple[Requirement, ...]]:
    if not found.is_locked and found.entries:
        sources.findings.note(
            f"{found.file} does not name one version of each package: versions are chosen at each build"
        )
    if sources.tree.has(SETUP_PY) and not found.has_project:
        sources.findings.note(f"{SETUP_PY}: passed over. A line `.` in {found.file} installs the project")
    packages = _packages(
        sources,
        "pip",
        tuple(found.files),
        lock=found.file if found.is_locked else None,
        project=False,
        local=found.has_local,
    )
    more = sources.pyproject.dependencies if found.has_project else ()
    return packages, (*found.entries, *more)


def _from_pyproject(sources: _Sources) -> tuple[Packages, tuple[Requirement, ...]]:
    project = sources.pyproject
    if project.main_group is not None:
        found = _packages(sources, "pip", (PYPROJECT,))
        return found.model_copy(update={"groups": (project.main_group,)}), project.dependencies
    tool: PythonTool = "poetry" if "poetry" in project.tools and not sources.tree.has("uv.toml") else "uv"
    if project.dependencies:
        sources.findings.note(
            f"no lock file: the versions of {PYPROJECT} are chosen at each build. Commit one: {_LOCK_COMMANDS[tool]}"
        )
    packages = _packages(
        sources,
        tool,
        (PYPROJECT, *(name for name in project.reads if sources.tree.has(name))),
        project=_is_package(sources),
        local=bool(project.local) or project.is_dynamic,
        version=project.uv_version if tool == "uv" else None,
    )
    return packages, project.dependencies


def _packages(
    sources: _Sources,
    tool: PythonTool,
    manifests: tuple[str, ...],
    *,
    lock: str | None = None,
    project: bool = False,
    local: bool = False,
    version: str | None = None,
) -> Packages:
    files = dict.fromkeys((*manifests, *(name for name in _CONFIGS if sources.tree.has(name))))
    if sources.tree.has(PYPROJECT):
        files[PYPROJECT] = None  # it may hold settings of the tools
    return Packages(
        language="python",
        tool=tool,
        tool_version=version,
        lock=lock,
        manifests=tuple(files),
        project=project,
        needs_source=local,
    )


def _is_package(sources: _Sources) -> bool:
    """Whether the app itself is a package that its tool installs."""
    project, tree = sources.pyproject, sources.tree
    if project.is_package is not None or not project.has_backend:
        return project.is_package is True and (project.has_backend or "uv" in project.tools)
    name = project.name.lower().replace("-", "_").replace(".", "_")
    places = (f"src/{name}", name, f"src/{project.name}", project.name)
    return (
        bool(project.scripts)
        or any(tree.has_folder(place) for place in places if place)
        or tree.has(f"{name}.py")
        or bool(tree.matching("src/*/__init__.py"))
    )


def _how(packages: Packages) -> str:
    """The installation in words."""
    if not packages.manifests:
        return "no packages"
    source = packages.lock or packages.manifests[0]
    frozen = f"{packages.tool} installs {source}" + ("" if packages.lock else ", not locked")
    return frozen + (", and the project itself" if packages.project else "")


def adding(package: str, app: PythonApp) -> str:
    """The command that adds a package to the app's own list."""
    if app.packages.tool in {"uv", "poetry", "pdm"}:
        return f"{app.packages.tool} add {package}"
    if app.packages.tool == "pipenv":
        return f"pipenv install {package}"
    return f"echo {package} >> {app.file or 'requirements.txt'}"
