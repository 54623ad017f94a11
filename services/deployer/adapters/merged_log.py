"""The output of several instances in, one log out: ordered by time, each line with its time and who printed it.

Engines and clusters keep what their containers print, as lines that begin with a time; it is read from there. A
follower also gets what instances print that came later; it never misses a line of an instance that it knows, and sees
each once.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

LOOK_AGAIN_S = 1.0
"""How often a follower looks for instances that came."""
TAIL_BYTES = 32 * 1024 * 1024
"""Of the last lines that are read before the first one is shown, all instances together: a line may have a mebibyte."""
_PIECE_LINES = 500
_WAITING_LINES = 64
"""Read ahead of a slow reader; then the engine waits."""


class Read(Protocol):
    """Lines of one instance, each with its time in front."""

    def __call__(self, *, lines: int | None, follow: bool, after: str) -> AsyncIterator[bytes]:
        """The last `lines` (None: all) after the time `after` (empty: of all times)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One instance that prints."""

    id: str
    label: str
    """`web.1`"""
    read: Read


Sources = Callable[[], Awaitable[Sequence[Source]]]


@dataclass(frozen=True, slots=True)
class _Tail:
    """The last lines of one instance, with their times."""

    lines: Sequence[tuple[str, bytes]]
    cut: bool
    """Whether lines before them were let go, for their size."""

    @property
    def newest(self) -> str:
        return self.lines[-1][0] if self.lines else ""


async def merged(sources: Sources, *, lines: int, follow: bool) -> AsyncIterator[bytes]:
    """The last `lines` of all together, at most `TAIL_BYTES`; with `follow` what comes, until the caller closes it."""
    known = await sources()
    tails = await asyncio.gather(*(_tail(each, lines, TAIL_BYTES // len(known)) for each in known))
    first = max((each.lines[0][0] for each in tails if each.cut), default="")  # before it lines are missing
    together = sorted((line for tail in tails for line in tail.lines if line[0] >= first), key=lambda line: line[0])
    if first and len(together) < lines:
        what = f"lines before this are left out: more than {TAIL_BYTES // 1024**2} MiB are not shown at once"
        yield _split("knarr", f"{first} [knarr] {what}".encode())[1]
    last = together[max(0, len(together) - lines) :]
    for begin in range(0, len(last), _PIECE_LINES):
        yield b"".join(shown for _, shown in last[begin : begin + _PIECE_LINES])
    if follow:
        newest = {each.id: tail.newest for each, tail in zip(known, tails, strict=True)}
        async for line in _followed(sources, newest):
            yield line


async def _tail(source: Source, lines: int, most_bytes: int) -> _Tail:
    kept: deque[tuple[str, bytes]] = deque()
    size_bytes, cut = 0, False
    async for line in source.read(lines=lines, follow=False, after=""):
        kept.append(_split(source.label, line))
        size_bytes += len(kept[-1][1])
        while size_bytes > most_bytes and len(kept) > 1:
            size_bytes -= len(kept.popleft()[1])
            cut = True
    return _Tail(kept, cut)


async def _followed(sources: Sources, newest: Mapping[str, str]) -> AsyncIterator[bytes]:
    queue: asyncio.Queue[bytes] = asyncio.Queue(_WAITING_LINES)
    times = dict(newest)
    readers: dict[str, asyncio.Task[None]] = {}
    looking = asyncio.create_task(_look(sources, times, readers, queue))
    getting = asyncio.create_task(queue.get())
    try:
        while True:
            await asyncio.wait({looking, getting}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                yield getting.result()
                getting = asyncio.create_task(queue.get())
            elif looking.done():
                looking.result()
    finally:
        tasks = [looking, getting, *readers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _look(
    sources: Sources, times: dict[str, str], readers: dict[str, asyncio.Task[None]], queue: asyncio.Queue[bytes]
) -> None:
    """Have a reader for each instance, again where one ended with its connection."""
    while True:
        for source in await sources():
            reader = readers.get(source.id)
            if reader is None or reader.done():
                readers[source.id] = asyncio.create_task(_read(source, times, queue))
        await asyncio.sleep(LOOK_AGAIN_S)


async def _read(source: Source, times: dict[str, str], queue: asyncio.Queue[bytes]) -> None:
    after = times.get(source.id, "")
    async for line in source.read(lines=None, follow=True, after=after):
        time, shown = _split(source.label, line)
        if time > after:
            times[source.id] = time
            await queue.put(shown)


def _split(label: str, line: bytes) -> tuple[str, bytes]:
    """Its time, comparable as text, and the line as it is shown."""
    time, _, text = line.partition(b" ")
    seconds, _, fraction = time.decode(errors="replace").removesuffix("Z").partition(".")
    fraction = fraction.ljust(9, "0")
    return f"{seconds}.{fraction}Z", b"%s.%sZ %s | %s\n" % (
        seconds.encode(),
        fraction[:3].encode(),
        label.encode(),
        text,
    )
