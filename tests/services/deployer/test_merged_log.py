"""What several instances printed, together: in order, bounded, and honest where something is left out."""

from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial

import pytest

from services.deployer.adapters import merged_log
from services.deployer.adapters.merged_log import Source, Sources, merged


def printed(instances: Mapping[str, Sequence[str]]) -> Sources:
    """Instances that printed these lines `<second> <text>`."""

    async def read(label: str, *, lines: int | None, follow: bool, after: str) -> AsyncIterator[bytes]:
        assert not follow
        assert not after
        assert lines is not None
        for each in instances[label][-lines:]:
            second, _, text = each.partition(" ")
            yield f"2026-11-22T10:00:{second}.5Z {text}".encode()

    async def sources() -> Sequence[Source]:
        return [Source(id=label, label=label, read=partial(read, label)) for label in instances]

    return sources


async def shown(instances: Mapping[str, Sequence[str]], lines: int) -> list[str]:
    pieces = [piece async for piece in merged(printed(instances), lines=lines, follow=False)]
    return b"".join(pieces).decode().splitlines()


async def test_lines_are_in_the_order_of_time() -> None:
    """Whoever printed them; the last ones of all together."""
    found = await shown({"web.1": ["01 a", "03 c"], "web.2": ["02 b", "04 d"]}, 3)
    assert found == [
        "2026-11-22T10:00:02.500Z web.2 | b",
        "2026-11-22T10:00:03.500Z web.1 | c",
        "2026-11-22T10:00:04.500Z web.2 | d",
    ]


async def test_no_instance_prints_nothing() -> None:
    assert await shown({}, 10) == []


async def test_what_is_too_much_for_memory_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no line of another instance stands where the ones before it are missing."""
    monkeypatch.setattr(merged_log, "TAIL_BYTES", 2 * 100)
    long = "x" * 30
    found = await shown({"web.1": [f"0{n} {long}" for n in range(1, 6)], "web.2": ["01 old", "05 new"]}, 100)
    said, *rest = found
    assert said.startswith("2026-11-22T10:00:05.500Z knarr | [knarr] lines before this are left out")
    assert rest == [f"2026-11-22T10:00:05.500Z web.1 | {long}", "2026-11-22T10:00:05.500Z web.2 | new"]


async def test_nothing_is_said_where_nobody_asked_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged_log, "TAIL_BYTES", 200)
    found = await shown({"web.1": [f"0{n} {'x' * 30}" for n in range(1, 10)]}, 2)
    assert [line[:24] for line in found] == ["2026-11-22T10:00:08.500Z", "2026-11-22T10:00:09.500Z"]
