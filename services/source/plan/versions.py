"""Which version of an interpreter the app asks for, and in which file: in the syntax of the language."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from services.source.errors import AppInvalid
from services.source.plan.findings import Findings
from services.source.plan.formats import lines_of, table, text, toml_of
from services.source.plan.ranges import allows_pep440
from services.source.plan.tree import Tree

TOOL_VERSIONS = ".tool-versions"
MISE = ("mise.toml", ".mise.toml", "mise/config.toml", ".config/mise.toml")
PYTHON_VERSION = ".python-version"
RUNTIME_TXT = "runtime.txt"
_ASDF_NAMES = {"python": ("python",), "node": ("nodejs", "node"), "go": ("golang", "go")}
_ANY = frozenset({"", "*", "latest", "lts", "lts/*", "node", "stable", "current", "system", "default"})
"""Versions that leave the choice to the builder."""
_MAX_PARTS = 8
_MAX_TEXT = 100
"""Characters of a version or a range."""
_SAFE = re.compile(r"[0-9A-Za-z.,<>=!~^*|\- /+]{1,120}", re.ASCII)
_PEP440 = re.compile(r"(?:(?:===|==|!=|>=|<=|~=|>|<)\s*)?\d{1,4}(?:\.\d{1,4}){0,3}(?:\.\*)?(?:[abrc]+\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Asked:
    """A version that a file asks for."""

    version: str
    file: str
    where: str
    """For people: `engines.node of package.json`."""


def from_tool_files(tree: Tree, language: str, findings: Findings) -> Iterator[Asked]:
    """Versions in the files of asdf and mise, which name many tools."""
    if tree.has(TOOL_VERSIONS):
        with findings.collecting():
            for line in lines_of(tree, TOOL_VERSIONS):
                words = line.partition("#")[0].split()
                if len(words) > 1 and words[0] in _ASDF_NAMES[language] and words[1] not in _ANY:
                    yield Asked(_checked(TOOL_VERSIONS, words[1]), TOOL_VERSIONS, TOOL_VERSIONS)
    for file in filter(tree.has, MISE):
        with findings.collecting():
            tools = table(toml_of(tree, file).object("tools"))
            for name in _ASDF_NAMES[language]:
                value = tools.get(name)
                value = value[0] if isinstance(value, list) and value else value
                value = value.get("version") if isinstance(value, dict) else value
                version = text(str(value)) if isinstance(value, str | int | float) else None
                if version and version not in _ANY:
                    yield Asked(_checked(file, version), file, f"`tools.{name}` of {file}")


def _checked(file: str, version: str) -> str:
    if not _SAFE.fullmatch(version):
        raise AppInvalid(f"{file} asks for the version {version[:80]!r}", todo="A version is digits and dots.")
    return version


def python_version(tree: Tree, findings: Findings, *, project: Asked | None, pipfile: Asked | None) -> Asked | None:
    """Return the Python version that counts.

    Args:
        tree: The app.
        findings: Where refusals go: a file without a version, two files that contradict each other.
        project: What `requires-python` says, or Poetry's constraint.
        pipfile: What `[requires]` of the Pipfile says.
    """
    asked: list[Asked] = []
    for file in (PYTHON_VERSION, RUNTIME_TXT):
        if tree.has(file):
            with findings.collecting():
                asked += _python_file(tree, file)
    asked += from_tool_files(tree, "python", findings)
    asked += [each for each in (pipfile, project) if each is not None]
    if not asked:
        return None
    first = asked[0]
    if project is not None and first is not project and allows_pep440(first.version, project.version) is False:
        findings.refuse(
            f"{first.where} and {project.where} contradict each other",
            why=f"{first.file} asks for Python {first.version}, {project.file} for {project.version}",
            todo=f"Change one of them; {first.file} is the stronger one.",
        )
    for other in asked[1:]:
        if other is not project and other.version != first.version:
            findings.note(f"{other.where} asks for Python {other.version}: passed over, since {first.where} counts")
    return first


def _python_file(tree: Tree, file: str) -> list[Asked]:
    line = next((each for each in lines_of(tree, file) if each and not each.startswith("#")), "")
    version = re.sub(r"^(c?python)[-@]?(?=[0-9<>=~!])", "", line.partition("#")[0].strip())
    version = re.sub(r"^(\d+\.\d+\.\d+)[-+](linux|macos|windows)\S*$", r"\1", version)
    parts = [part.strip() for part in version.split(",")][:_MAX_PARTS]
    if len(version) > _MAX_TEXT or not version or not all(_PEP440.fullmatch(part) for part in parts):
        raise _no_python_version(file, line)
    return [Asked(",".join(parts), file, file)]


def _no_python_version(file: str, line: str) -> AppInvalid:
    example = "python-3.11" if file == RUNTIME_TXT else "3.11"
    return AppInvalid(
        f"{file} asks for {line[:80]!r}",
        todo=f"A version is digits and dots (`{example}`), or a range of them (`>=3.11`).",
    )


def caret_free(constraint: str) -> str | None:
    """Poetry's constraint as PEP 440 specifiers: `^3.11` becomes `>=3.11,<4`; None where it cannot be said."""
    if len(constraint) > _MAX_TEXT:
        return None
    parts: list[str] = []
    for part in filter(None, (each.strip() for each in constraint.split(","))):
        match = re.fullmatch(r"([\^~])\s*(\d{1,4})(?:\.(\d{1,4}))?((?:\.\d{1,4})*)", part, re.ASCII)
        if part == "*":
            continue
        if match is None:
            plain = f"=={part}" if re.fullmatch(r"[\d.*]+", part, re.ASCII) else part
            if not _PEP440.fullmatch(plain):
                return None
            parts.append(plain)
            continue
        major, minor = int(match[2]), int(match[3] or 0)
        low = match[2] + (f".{match[3]}" if match[3] else "") + match[4]
        high = f"{major}.{minor + 1}" if match[1] == "~" and match[3] else f"{major + 1}"
        parts += [f">={low}", f"<{high}"]
    return ",".join(parts) or None


_NODE_NAMES = {
    "argon": "4",
    "boron": "6",
    "carbon": "8",
    "dubnium": "10",
    "erbium": "12",
    "fermium": "14",
    "gallium": "16",
    "hydrogen": "18",
    "iron": "20",
    "jod": "22",
    "krypton": "24",
}


def node_version_files(tree: Tree, findings: Findings) -> list[Asked]:
    """Return the Node versions that version files ask for, the strongest first."""
    asked: list[Asked] = []
    for file in (".nvmrc", ".node-version"):
        if tree.has(file):
            with findings.collecting():
                line = next((each for each in lines_of(tree, file) if each and not each.startswith("#")), "")
                version = _node(line.partition("#")[0].strip())
                if version:
                    asked.append(Asked(_checked(file, version), file, file))
    asked += [
        Asked(version, each.file, each.where)
        for each in from_tool_files(tree, "node", findings)
        if (version := _node(each.version))
    ]
    return asked


def _node(version: str) -> str:
    """Without `v` and `node-`, release names as numbers; empty: any."""
    version = version.lower().removeprefix("node-").removeprefix("node@").removeprefix("v")
    if version in _ANY:
        return ""
    return _NODE_NAMES.get(version.removeprefix("lts/").removeprefix("lts-"), version)


def node_range(value: str) -> str | None:
    """The text of an npm range where it is one that can be passed on; None: any version."""
    version = _node(value.strip())
    return version if version and _SAFE.fullmatch(version) else None
