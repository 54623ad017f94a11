"""`knarr logs`: what an app prints. A pipe gets the bytes, a terminal the text with its colours."""

import re
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from knarr.command import AppName, Session, command, group, usage
from knarr.terminal import escape, visible

alone = group("Commands that stand alone.")

MOST_LINES = 10_000
"""Lines that the platform gives or searches at once."""

_AGO = re.compile(r"(\d{1,6})(s|m|h|d)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LINE = re.compile(rb"(\d{4}-\S{1,40}) (\S{1,200}) \| ")
_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")


@command(
    alone,
    "logs",
    examples=[
        "knarr logs shop",
        "knarr logs shop --follow --lines 20",
        "knarr logs shop --process web.1 --since 10m",
        "knarr logs shop --json | jq .text",
    ],
)
def logs(
    session: Session,
    app: AppName,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come; Ctrl-C stops.")] = False,
    lines: Annotated[
        int | None,
        typer.Option(
            "--lines", "-n", min=0, max=MOST_LINES, help="Lines from before. [default: 100; all with --since]"
        ),
    ] = None,
    process: Annotated[
        str | None, typer.Option("--process", "-p", help="Only of this instance (web.1) or process (web).")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="TIME", help="Only from then on: 30s, 10m, 2h, 1d ago, or 2026-12-01T10:00:00Z."
        ),
    ] = None,
) -> None:
    """What the app's instances print. With --json, one JSON object a line.

    --process and --since search the last 10,000 lines.
    """
    asked: dict[str, Any] = {
        "lines": lines if lines is not None else MOST_LINES if since else 100,
        "follow": 1 if follow else None,
        "process": process,
        "since": moment(since) if since else None,
    }
    with session.platform.stream("deployer", f"/apps/{app}/logs", **asked) as answer:
        printed = _print(session, answer.iter_bytes())
    if not printed and not session.terminal.as_json:
        of = f" of {process}" if process else ""
        session.terminal.say(
            f"[quiet]{escape(app)} has printed nothing{escape(of)}{' since then' if since else ''}.[/]"
        )


def _print(session: Session, pieces: Iterable[bytes]) -> bool:
    """Print as objects, as text for a terminal, or as the bytes that they are; whether there was anything."""
    printed = False
    if session.terminal.as_json or sys.stdout.isatty():
        for line in whole_lines(pieces):
            printed = True
            if session.terminal.as_json:
                session.terminal.row(parsed(line))
            else:
                sys.stdout.write(for_terminal(line, colours=not session.terminal.out.no_color) + "\n")
                sys.stdout.flush()
        return printed
    for piece in pieces:
        printed = True
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    return printed


def moment(text: str, *, now: datetime | None = None) -> str:
    """A time as RFC 3339: `10m` is ten minutes ago; a time without a zone is this machine's.

    Raises:
        InvalidInput: It is no time.
    """
    ago = _AGO.fullmatch(text)
    if ago:
        at = (now or datetime.now(UTC)) - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
    else:
        try:
            at = datetime.fromisoformat(text)
        except ValueError as error:
            raise usage(
                f"{text!r} is no time", todo="Write 30s, 10m, 2h or 1d, or a time: 2026-12-01T10:00:00Z"
            ) from error
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def whole_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends, whatever the pieces."""
    rest = bytearray()
    for piece in pieces:
        rest += piece
        if b"\n" in piece:
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            yield from lines
    if rest:
        yield bytes(rest)


def parsed(line: bytes) -> dict[str, str | None]:
    """A line as data: `{at, process, text}`; bytes that are no UTF-8 are written as escapes."""
    prefix = _LINE.match(line)
    if prefix is None:
        return {"at": None, "process": None, "text": line.decode(errors="backslashreplace")}
    text = line[prefix.end() :].decode(errors="backslashreplace")
    return {"at": prefix[1].decode(), "process": prefix[2].decode(errors="backslashreplace"), "text": text}


def for_terminal(line: bytes, *, colours: bool) -> str:
    """A line for a terminal: its colours end with it, and every other control character is shown."""
    text = line.removesuffix(b"\r").decode(errors="replace")
    if not colours:
        text = _COLOURS.sub("", text)
    return visible(text, colours=colours) + ("\x1b[0m" if _COLOURS.search(text) else "")
