"""How much work a body without a valid signature costs: it is counted, not timed."""

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from seedwork.errors import TooLarge, Unauthenticated
from services.webhook import github
from services.webhook.directory import Picture
from services.webhook.judging import Arrival
from services.webhook.verifying import KNOWN_BYTES, UNKNOWN_BYTES, Verifier

MIB = 1024 * 1024


class Apps:
    """A directory that has another picture at each look."""

    def __init__(self, *pictures: Picture) -> None:
        self.pictures = list(pictures)

    async def looked_again(self, old: Picture) -> Picture:
        """See `Directory`."""
        return self.pictures.pop(0) if self.pictures else old


def picture(*known: tuple[str, bytes]) -> Picture:
    """From repositories and secrets."""
    rows: Any = [
        (
            SimpleNamespace(app_id=str(at), repository_key=key, secret_version=1, team="default", name=f"app-{at}"),
            secret,
        )
        for at, (key, secret) in enumerate(known)
    ]
    return Picture.of(rows)


MANY = picture(*((f"acme/app-{at}", b"secret %d" % at) for at in range(1000)))


def arrival(*names: str, size_bytes: int = 0, secret: bytes = b"guess") -> Arrival:
    """A push that names these repositories, padded to a size."""
    body = orjson.dumps([{"full_name": name} for name in names])
    body += b" " * max(size_bytes - len(body), 0)
    return Arrival({"x-hub-signature-256": github.sign(secret, body)}, body)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that were hashed, by call."""
    counted: list[int] = []
    signers = github.signers

    def counting(secrets: Iterable[bytes], body: bytes, digest: str) -> frozenset[bytes]:
        found = set(secrets)
        counted.append(len(found) * len(body))
        return signers(found, body, digest) if len(found) * len(body) <= 4 * MIB else frozenset()

    monkeypatch.setattr(github, "signers", counting)
    return counted


async def present() -> bool:
    return False


async def verified(sent: Arrival, known: Picture, *later: Picture) -> frozenset[bytes]:
    directory: Any = Apps(*later)
    return (await Verifier(directory).verified(sent, known, present))[1]


@pytest.mark.parametrize("size_bytes", [100, 8_000, 100_000, MIB])
async def test_an_unknown_repository_costs_a_bounded_number_of_bytes(hashed: list[int], size_bytes: int) -> None:
    """However many apps there are."""
    with pytest.raises(Unauthenticated):
        await verified(arrival("stranger/x", size_bytes=size_bytes), MANY)
    assert sum(hashed) <= UNKNOWN_BYTES


async def test_a_large_body_of_an_unknown_repository_is_refused_without_trying_a_secret(hashed: list[int]) -> None:
    """The attack: 25 MB, forty apps."""
    with pytest.raises(Unauthenticated, match="no app has a repository that it names"):
        await verified(arrival("stranger/x", size_bytes=MIB + 1), MANY)
    assert hashed == []


async def test_a_body_that_names_every_repository_tries_the_secrets_of_the_first_ones(hashed: list[int]) -> None:
    """Each name would otherwise add its secrets."""
    names = [f"acme/app-{at}" for at in range(1000)]
    sent = arrival(*names, size_bytes=25 * 1000 * 1000)
    with pytest.raises(Unauthenticated):
        await verified(sent, MANY)
    assert sum(hashed) == 8 * len(sent.body) <= KNOWN_BYTES


async def test_many_secrets_of_one_repository_and_a_huge_body_are_too_much(hashed: list[int]) -> None:
    """Said with the remedy; nothing is hashed."""
    known = picture(*(("acme/mono", b"secret %d" % at) for at in range(40)))
    with pytest.raises(TooLarge, match="the same webhook secret"):
        await verified(arrival("acme/mono", size_bytes=25 * 1000 * 1000), known)
    assert hashed == []


async def test_there_are_two_rounds_and_no_secret_is_tried_twice(hashed: list[int]) -> None:
    """Apps that change all the time do not keep a body alive."""
    pictures = [picture(*(("acme/shop", b"secret %d" % at) for at in range(count))) for count in range(1, 9)]
    sent = arrival("acme/shop")
    with pytest.raises(Unauthenticated):
        await verified(sent, *pictures)
    assert hashed == [len(sent.body), len(sent.body)]


async def test_a_secret_that_is_new_is_found_in_the_second_round() -> None:
    """Another replica made the app a moment ago."""
    assert await verified(arrival("acme/new", secret=b"new"), MANY, picture(("acme/new", b"new"))) == {b"new"}


async def test_a_body_whose_sender_has_gone_is_not_hashed(hashed: list[int]) -> None:
    """It may have waited for its turn."""
    directory: Any = Apps()

    async def gone() -> bool:
        return True

    with pytest.raises(Unauthenticated, match="gone"):
        await Verifier(directory).verified(arrival("acme/app-1", size_bytes=25 * 1000 * 1000), MANY, gone)
    assert hashed == []


async def test_a_small_body_does_not_wait_for_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The large one is still hashed when the small one is verified."""
    going_on, may_end = asyncio.Event(), asyncio.Event()

    async def in_thread(work: Any, secrets: Any, body: bytes, digest: str) -> Any:
        if len(body) > MIB:
            going_on.set()
            await may_end.wait()
        return work(secrets, body, digest)

    monkeypatch.setattr(asyncio, "to_thread", in_thread)
    directory: Any = Apps()
    verifier = Verifier(directory)
    large = [
        asyncio.create_task(verifier.verified(arrival("acme/app-1", size_bytes=20 * MIB), MANY, present))
        for _ in range(4)
    ]
    await going_on.wait()
    small = arrival("acme/app-2", size_bytes=100_000, secret=b"secret 2")
    assert (await verifier.verified(small, MANY, present))[1] == {b"secret 2"}
    assert not any(each.done() for each in large)
    may_end.set()
    assert all(isinstance(each, Unauthenticated) for each in await asyncio.gather(*large, return_exceptions=True))
