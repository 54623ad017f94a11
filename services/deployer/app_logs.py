"""The log of an app, selected by process and time: lines of the runtime in, those that were asked for out.

Runtimes give the last lines of all processes together, each as `TIME PROCESS | text`. A selection looks at the last
`SEARCHED_LINES` of them.
"""

import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

from services.deployer.ports import Runtime

SEARCHED_LINES = 10_000
"""Lines of the log that a selection looks at: as many as a runtime gives at once."""
_LINE_BYTES = 2 * 1024 * 1024
"""A line without an end is given in parts beyond this: memory is bounded."""
_PREFIX = re.compile(rb"(\S{1,40}) (\S{1,200}) \| ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which lines are wanted."""

    process: str | None = None
    """`web.1`, or `web` for all instances of that type; null: every process."""
    since: datetime | None = None
    """Null: from any time."""

    @property
    def is_all(self) -> bool:
        """Whether it leaves nothing out."""
        return self.process is None and self.since is None

    def has(self, line: bytes) -> bool:
        """Whether it holds this line. A line without a time or a process belongs to none."""
        prefix = _PREFIX.match(line)
        if prefix is None:
            return self.is_all
        name = prefix[2].decode(errors="replace")
        if self.process is not None and self.process not in (name, name.partition(".")[0]):
            return False
        return self.since is None or _is_after(prefix[1], self.since)


def selected(runtime: Runtime, app_id: str, selection: Selection, *, lines: int, follow: bool) -> AsyncIterator[bytes]:
    """The last lines that are wanted; with `follow` those that come, until the caller closes it."""
    if selection.is_all:
        return runtime.logs(app_id, lines=lines, follow=follow)
    return _selected(runtime, app_id, selection, lines=lines, follow=follow)


async def _selected(
    runtime: Runtime, app_id: str, selection: Selection, *, lines: int, follow: bool
) -> AsyncGenerator[bytes, None]:
    kept: deque[bytes] = deque(maxlen=lines)
    count = 0
    async with aclosing(_wanted(runtime, app_id, selection, follow=False)) as found:
        async for line in found:
            kept.append(line)
            count += 1
    if not follow:
        for line in kept:
            yield line
        return
    # The second read begins with the same lines, so that none is lost between the two.
    passed_over = max(0, count - lines)
    async with aclosing(_wanted(runtime, app_id, selection, follow=True)) as found:
        async for line in found:
            if passed_over:
                passed_over -= 1
            else:
                yield line


async def _wanted(runtime: Runtime, app_id: str, selection: Selection, *, follow: bool) -> AsyncGenerator[bytes, None]:
    pieces = runtime.logs(app_id, lines=SEARCHED_LINES, follow=follow)
    async with aclosing(_whole_lines(pieces)) as lines:
        async for line in lines:
            if selection.has(line):
                yield line


async def _whole_lines(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    rest = b""
    try:
        async for piece in pieces:
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line + b"\n"
            if len(rest) > _LINE_BYTES:
                yield rest
                rest = b""
        if rest:
            yield rest
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


def _is_after(at: bytes, since: datetime) -> bool:
    try:
        return datetime.fromisoformat(at.decode()) >= since
    except ValueError:
        return False
