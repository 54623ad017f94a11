"""What people and programs see: data on standard output, progress and errors on standard error.

Colour only on a terminal and never with `NO_COLOR`; with `--json` standard output is JSON alone. Text of an app is
shown with its colours; every other control character in it is shown as text (`^[`), so that an app cannot write to
the reader's terminal. `rich` is imported when something is printed with it: its import costs 70 ms.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from seedwork.errors import KnarrError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
    from rich.theme import Theme

STYLES = {
    "good": "green",
    "bad": "red",
    "undo": "yellow",
    "quiet": "dim",
    "name": "bold",
    "address": "cyan underline",
}
PIPE_WIDTH = 240
"""Columns where no terminal says how many: wide enough that a table's line stays one line."""
_CONTROL = re.compile(r"(\x1b\[[0-9;:]*m)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def theme() -> "Theme":
    """The styles as a theme of `rich`."""
    from rich.theme import Theme

    return Theme(STYLES)


def console(*, stderr: bool = False) -> "Console":
    """A console that knows whether it is a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, theme=theme(), highlight=False, width=width, soft_wrap=not stream.isatty())


class Terminal:
    """The two streams of one command."""

    def __init__(self, *, as_json: bool = False) -> None:
        """Name the form of the data.

        Args:
            as_json: Standard output is for a program.
        """
        self.as_json = as_json

    @cached_property
    def out(self) -> "Console":
        """Standard output."""
        return console()

    @cached_property
    def err(self) -> "Console":
        """Standard error."""
        return console(stderr=True)

    def data(self, value: Any, human: "str | Text | Table | None" = None) -> None:
        """The command's result.

        Args:
            value: JSON values, for `--json`.
            human: What a person reads in its place; nothing: only programs want it.
        """
        if self.as_json:
            import orjson

            sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
            sys.stdout.flush()
        elif human is not None:
            self.out.print(human)

    def row(self, value: Mapping[str, Any]) -> None:
        """Print one JSON object on one line, for lists that grow while they are read."""
        import orjson

        sys.stdout.write(orjson.dumps(value).decode() + "\n")
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """A line of progress; `text` may hold markup."""
        self.err.print(text)

    def step(self, mark: str, style: str, name: str, text: str) -> None:
        """A line about a saga's step; on a terminal, what is too long goes on below where it began."""
        if not self.err.is_terminal:
            self.err.print(f"  [{style}]{mark}[/] {name:<8} {text}")
            return
        from rich.padding import Padding
        from rich.table import Table

        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_column(width=1)
        line.add_column(width=8)
        line.add_column(overflow="fold")
        line.add_row(f"[{style}]{mark}[/]", name, text)
        self.err.print(Padding(line, (0, 0, 0, 2)))

    def output(self, line: str) -> None:
        """A line that a tool or an app printed; on a terminal cut where it would wrap."""
        cut = self.err.is_terminal
        overflow = "ellipsis" if cut else "fold"
        self.err.print(_printed("    │ ", line), no_wrap=cut, overflow=overflow, crop=cut)  # type: ignore[arg-type]  # a literal

    def error(self, error: KnarrError) -> None:
        """What happened, why, what to do next."""
        if self.as_json:
            self.data({"error": {"code": error.reason_code, "title": error.title, "detail": error.message}})
        what = error.what.rstrip(".")
        mark = "[quiet]…[/]" if error.reason_code in {"detached", "still_running"} else "[bad]✗[/]"
        self.err.print(f"{mark} {escape(what)}")
        if error.why:
            self.err.print(f"  {escape(sentence(error.why))}")
        for line in error.log_tail:
            self.err.print(_printed("  │ ", line))
        if error.todo:
            self.err.print(f"  [quiet]→[/] {escape(sentence(error.todo))}")


def visible(text: str, *, colours: bool = False) -> str:
    """The text with its control characters shown: `^[` for an escape, `^M` for a carriage return.

    Args:
        text: From outside; tabs and line ends stay.
        colours: Whether sequences that set colours (SGR) stay as they are.
    """

    def shown(match: re.Match[str]) -> str:
        if match[1] and colours:
            return match[1]
        return "".join(_caret(each) for each in match[0])

    return _CONTROL.sub(shown, text)


def _caret(character: str) -> str:
    code = ord(character)
    if code < 0x20 or code == 0x7F:
        return "^" + chr(code ^ 0x40)
    return f"\\x{code:02x}" if 0x80 <= code < 0xA0 else character


def escape(text: str) -> str:
    """Text from outside as part of a line with markup."""
    from rich.markup import escape as of_markup

    return of_markup(visible(text))


def styled(text: object, style: str = "") -> "Text":
    """Text from outside in a style."""
    from rich.text import Text

    return Text(visible(str(text)), style=style)


def _printed(before: str, line: str) -> "Text":
    """A line that an app printed, with its colours, after a quiet mark."""
    from rich.text import Text

    text = Text(before, style="dim")
    text.append_text(Text.from_ansi(visible(line.rstrip("\r\n"), colours=True)))
    return text


def sentence(text: str) -> str:
    """With a full stop, and a capital letter where it begins with a word (and not with `web.1`)."""
    text = text.strip()
    if text.partition(" ")[0].isalpha():
        text = text[:1].upper() + text[1:]
    return text + ("" if text.endswith((".", "!", "?", ":")) else ".")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> "Table | Text":
    """Rows without lines around them; `empty` is said where there are none."""
    from rich.table import Table

    shown = [[_cell(value) for value in row] for row in rows]
    if not shown:
        return styled(empty, "quiet")
    result = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for column in columns:
        result.add_column(column, overflow="fold", no_wrap=column == "ID")  # so that it can be copied
    for row in shown:
        result.add_row(*row)
    return result


def facts(pairs: Mapping[str, object]) -> "Table":
    """Names and values, one pair a line; pairs without a value are left out."""
    from rich.table import Table

    result = Table(box=None, pad_edge=False, show_header=False, padding=(0, 3, 0, 0))
    result.add_column(style="dim")
    result.add_column(overflow="fold")
    for name, value in pairs.items():
        if value not in (None, "", [], {}):
            result.add_row(name, _cell(value))
    return result


def _cell(value: object) -> "Text":
    from rich.text import Text

    if isinstance(value, Text):
        return value
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, Mapping):
        return styled(", ".join(f"{key}={each}" for key, each in value.items()) or "-")
    if isinstance(value, list | tuple):
        return styled(", ".join(str(each) for each in value) or "-")
    return styled(value)


def state(name: str) -> "Text":
    """A saga's or step's state in its colour."""
    styles = {
        "SUCCEEDED": "good",
        "DONE": "good",
        "LIVE": "good",
        "COMPENSATED": "undo",
        "UNDONE": "undo",
        "COMPENSATING": "undo",
        "FAILED": "bad",
        "STUCK": "bad",
        "PAUSED": "magenta",
    }
    return styled(name, styles.get(name.upper(), ""))


def age(at: str | None, *, now: datetime | None = None) -> str:
    """How long ago, in the largest unit that fits: `12 s`, `3 min`, `2 h`, `5 d`."""
    if not at:
        return "-"
    seconds = max(0, int(((now or datetime.now(UTC)) - datetime.fromisoformat(at)).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def size(count: int | None) -> str:
    """Bytes for people: `4.2 kB`."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def short(commit: str | None) -> str | None:
    """The first twelve digits of a commit, the first nineteen characters of a digest."""
    if commit is None:
        return None
    return commit[:19] if commit.startswith("sha256:") else commit[:12]
