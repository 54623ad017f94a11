"""Go: the module, its version, and the programs that `go build` makes of it."""

import re
from dataclasses import dataclass

from services.source.contract import BuildStep, Packages
from services.source.plan.findings import Findings, listed
from services.source.plan.formats import text_of
from services.source.plan.procfile import Command
from services.source.plan.starts import Start
from services.source.plan.tree import Tree
from services.source.plan.versions import Asked, from_tool_files

GO_MOD = "go.mod"
_FRAMEWORKS = {
    "github.com/gin-gonic/gin": "Gin",
    "github.com/labstack/echo": "Echo",
    "github.com/gofiber/fiber": "Fiber",
    "github.com/go-chi/chi": "chi",
}
_MAIN = re.compile(r"^package[ \t]+main\b", re.MULTILINE)
_LIKELY = ("server", "web", "api", "app", "main", "http")
_MAX_PROGRAMS = 20


@dataclass(frozen=True, slots=True)
class GoApp:
    """The Go side of an app."""

    packages: Packages
    build: tuple[BuildStep, ...]
    start: Start | None
    framework: str | None = None


def read_go(tree: Tree, findings: Findings, version: str | None = None, *, has_web: bool = False) -> GoApp:
    """Return the module's packages, a step for each of its programs, and the one that is `web`."""
    text = ""
    with findings.collecting():
        text = text_of(tree, GO_MOD) if tree.has(GO_MOD) else ""
    asked = _version(tree, text, findings, version)
    packages = Packages(
        language="go",
        version=asked.version if asked else None,
        version_file=asked.file if asked else None,
        tool="go",
        lock="go.sum" if tree.has("go.sum") else None,
        manifests=tuple(filter(tree.has, (GO_MOD, "go.sum", "go.work", "go.work.sum"))),
        needs_source=tree.has_folder("vendor") or bool(re.search(r"=>\s*\.", text)) or tree.has("go.work"),
    )
    programs = _programs(tree, text)
    build = tuple(
        BuildStep(name=f"go build {place}", command=("go", "build", "-o", f"bin/{name}", place), language="go")
        for name, place in programs.items()
    )
    findings.found(f"Go{f' {asked.version} ({asked.where})' if asked else ''}: " + _how(programs, tree))
    framework = next((name for path, name in _FRAMEWORKS.items() if path in text), None)
    return GoApp(packages, build, None if has_web else _start(programs, findings), framework)


def _version(tree: Tree, text: str, findings: Findings, version: str | None) -> Asked | None:
    if version:
        return Asked(version, ".cupaas.yml", "`runtime` of .cupaas.yml")
    for asked in from_tool_files(tree, "go", findings):
        return asked
    match = re.search(r"^toolchain[ \t]+go(\d[\w.]{0,30})|^go[ \t]+(\d[\w.]{0,30})", text, re.MULTILINE)
    toolchain = re.search(r"^toolchain[ \t]+go(\d[\w.]{0,30})", text, re.MULTILINE) or match
    if toolchain is None:
        return None
    return Asked(toolchain[1] or toolchain[2], GO_MOD, GO_MOD)


def _programs(tree: Tree, text: str) -> dict[str, str]:
    """Programs by name, with the package that each is made of."""
    module = re.search(r"^module[ \t]+\"?([^\s\"]{1,200})", text, re.MULTILINE)
    base = re.sub(r"/v\d+$", "", module[1] if module else "").rpartition("/")[2] or "app"
    found: dict[str, str] = {}
    if any(_MAIN.search(tree.source(name)) for name in tree.matching("*.go") if not name.endswith("_test.go")):
        found[re.sub(r"[^\w.-]", "-", base)] = "."
    for pattern in ("cmd/*/*.go", "*/main.go", "cmd/*.go"):
        for name in tree.matching(pattern):
            folder = name.rpartition("/")[0]
            if not name.endswith("_test.go") and _MAIN.search(tree.source(name)):
                found.setdefault(re.sub(r"[^\w.-]", "-", folder.rpartition("/")[2]), f"./{folder}")
        if found and pattern != "cmd/*/*.go":
            break
    return dict(list(found.items())[:_MAX_PROGRAMS])


def _start(programs: dict[str, str], findings: Findings) -> Start | None:
    name = next((each for each, place in programs.items() if place == "."), None)
    name = name or next((each for each in _LIKELY if each in programs), None)
    if name is None and len(programs) == 1:
        name = next(iter(programs))
    if name is None:
        if programs:
            findings.refuse(
                f"This Go module has the programs {listed(sorted(programs))}, and nothing says which one is `web`",
                todo=f"Add a Procfile with a line such as `web: bin/{min(programs)}`.",
            )
        else:
            findings.refuse(
                "This Go module has no program",
                why="no file of `package main` is at its root, below cmd/, or in a folder with main.go",
                todo="Set the app's `root` to the folder of the program, or add a Dockerfile.",
            )
        return None
    command: Command = (f"./bin/{name}",)
    return Start(command, f"package {programs[name]}")


def _how(programs: dict[str, str], tree: Tree) -> str:
    where = ", locked by go.sum" if tree.has("go.sum") else ""
    return f"go build makes {listed([f'bin/{name}' for name in programs])}{where}" if programs else "no program"
