"""Who signed a webhook: an arrival in, the secrets that made its signature and the apps as they were known out.

A stranger may send any body without a signature that holds. The work for one body is bounded: its repositories, the
secrets that are tried, the bytes that are hashed, and two rounds, the second with secrets that are new only. A body
that waits for its turn is dropped when its sender has gone, and small bodies never wait for large ones.
"""

import asyncio
from collections.abc import Awaitable, Callable

from seedwork.errors import TooLarge, Unauthenticated
from services.webhook import github
from services.webhook.directory import Directory, Picture
from services.webhook.judging import Arrival

Gone = Callable[[], Awaitable[bool]]
"""Whether the sender has gone."""

KNOWN_BYTES = 256 * 1024 * 1024
"""Bytes of a body times secrets, where the body names a repository that has an app: some 0.5 s of one processor."""

UNKNOWN_BYTES = 4 * 1024 * 1024
"""The same, where it names none: some 10 ms. A push of 8 kB is compared with 512 secrets."""

UNKNOWN_BODY_BYTES = 1024 * 1024
"""A larger body that names no repository with an app is refused without trying a secret."""

_INLINE_BYTES = 64 * 1024
"""Hashing this much takes some 0.1 ms; more of it goes to a thread."""

_SMALL_BYTES = 4 * 1024 * 1024
"""Hashing this much takes some 10 ms."""

_SMALL_AT_ONCE = 2
_LARGE_AT_ONCE = 1
"""Threads that hash: the sender of many bodies keeps no more processors busy."""


class Verifier:
    """Finds the secrets that made a signature."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._small = asyncio.Semaphore(_SMALL_AT_ONCE)
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def verified(self, arrival: Arrival, picture: Picture, gone: Gone) -> tuple[Picture, frozenset[bytes]]:
        """Return the secrets that made the signature, and the picture in which they were found.

        Raises:
            Unauthenticated: No secret made it, or the sender has gone.
            TooLarge: So many secrets are tried with no body of this size.
        """
        digest = github.signature(arrival.headers.get("x-hub-signature-256"))
        if digest is None:
            raise unverified("the header X-Hub-Signature-256 is missing or is not sha256=<64 hex digits>")
        mentioned = github.mentioned_repositories(arrival.body, arrival.content_type)
        tried: frozenset[bytes] = frozenset()
        for last in (False, True):
            candidates = candidates_of(picture, mentioned, len(arrival.body)) - tried
            if holders := await self._signers(candidates, arrival.body, digest, gone):
                return picture, holders
            tried |= candidates
            newer = picture if last else await self._directory.looked_again(picture)
            if newer is picture:
                break
            picture = newer
        raise unverified("no app's secret makes its signature")

    async def _signers(self, candidates: frozenset[bytes], body: bytes, digest: str, gone: Gone) -> frozenset[bytes]:
        hashed_bytes = len(body) * len(candidates)
        if hashed_bytes <= _INLINE_BYTES:
            return github.signers(candidates, body, digest)
        async with self._small if hashed_bytes <= _SMALL_BYTES else self._large:
            if await gone():
                raise unverified("its sender has gone")
            return await asyncio.to_thread(github.signers, candidates, body, digest)


def candidates_of(picture: Picture, mentioned: tuple[str, ...], size_bytes: int) -> frozenset[bytes]:
    """Return the secrets that are tried with a body of this size.

    Raises:
        Unauthenticated: It names no repository that has an app, and it is large.
        TooLarge: So many secrets are tried with no body of this size.
    """
    known = picture.candidates(mentioned)
    if known:
        if size_bytes * len(known) > KNOWN_BYTES:
            raise TooLarge(
                "The webhook is too large to be verified",
                why=f"{size_bytes} bytes, and {len(known)} secrets of its repository's apps would be tried",
                todo="Give the apps of this repository the same webhook secret.",
            )
        return known
    if size_bytes > UNKNOWN_BODY_BYTES:
        raise unverified(f"no app has a repository that it names, and it is larger than {UNKNOWN_BODY_BYTES} bytes")
    return frozenset(picture.others(mentioned)[: UNKNOWN_BYTES // max(size_bytes, 1)])


def unverified(why: str) -> Unauthenticated:
    """Return the error of a webhook whose signature does not hold."""
    return Unauthenticated(
        "The webhook's signature is not verified",
        why=why,
        todo="Give the hook on GitHub the app's secret;"
        " `knarr apps update APP --webhook-secret SECRET` sets another one.",
    )
