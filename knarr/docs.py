"""Writes `docs/messages.md` from the contracts: every message with its fields, as the code says them.

python -m knarr.docs            write the page
python -m knarr.docs --check    exit 1 if the page is not what the code says
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from seedwork.chassis.settings import SERVICE_PORTS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "messages.md"

_HEAD = """\
# Messages

Made by `make docs` from each service's `contract.py`; a test fails when it is out of date.

A **command** asks one service for one thing; an **event** tells what happened. Each travels in a CloudEvents 1.0
envelope whose `type` is the name below, with the extensions `correlationid` (the saga), `causationid`, `appid`, `team`,
`sagastep`, `sagaattempt`, `fence` and `traceparent`. A failure event (`FailureEvent`) has `retryable`, `code`,
`message` and `log_tail`; the answer to an undo (`UndoneEvent`) has `found` and `done`.
"""


def page() -> str:
    """The whole page."""
    parts = [
        _HEAD,
        *_section("every service", ROOT / "libs" / "seedwork" / "messages.py", only={"WorkReported", "UndoFailed"}),
    ]
    for service in SERVICE_PORTS:
        parts += _section(f"`{service}`", ROOT / "services" / service / "contract.py")
    return "\n".join(parts) + "\n"


def _section(title: str, path: Path, only: set[str] | None = None) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    yield f"\n## {title}\n"
    if only is None:
        yield (ast.get_docstring(tree) or "").split("\n\n")[0] + "\n"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and (only is None or node.name in only):
            yield from _message(node)


def _message(node: ast.ClassDef) -> Iterator[str]:
    base = ast.unparse(node.bases[0]) if node.bases else ""
    yield f"### {node.name}\n"
    yield f"*{_KINDS.get(base, 'part of a message')}*. {ast.get_docstring(node) or ''}\n"
    rows = list(_fields(node))
    if rows:
        yield "| field | type | default | meaning |\n|---|---|---|---|"
        yield from rows
        yield ""


_KINDS = {"Command": "Command", "Event": "Event", "FailureEvent": "Failure event", "UndoneEvent": "Answer to an undo"}


def _fields(node: ast.ClassDef) -> Iterator[str]:
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        kind = ast.unparse(statement.annotation)
        if kind.startswith("ClassVar"):
            continue
        default = f"`{ast.unparse(statement.value)}`" if statement.value is not None else "required"
        meaning = _text(following).replace("\n", " ").replace("|", "\\|")
        yield f"| `{statement.target.id}` | `{kind.replace('|', chr(92) + '|')}` | {default} | {meaning} |"


def _text(statement: ast.stmt | None) -> str:
    """The docstring that stands under a field."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return str(statement.value.value).strip()
    return ""


def main(arguments: list[str]) -> int:
    """Write or check; the exit code."""
    if "--check" in arguments:
        if PAGE.read_text() == page():
            return 0
        sys.stderr.write(f"{PAGE.name} is not what the contracts say. Run: make docs\n")
        return 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
