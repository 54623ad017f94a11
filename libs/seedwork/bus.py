"""The port through which messages leave and arrive: at least once, in batches.

`publish` returns when the envelopes are durable for every subscription that exists. `subscribe` names a subscription:
each one gets every envelope of its types, at least once; an envelope is acknowledged when `handle` returns, and comes
again when it raises. Order is kept per saga where nothing fails, and nobody may rely on it.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from seedwork.messages import Envelope, Message

Handle = Callable[[Sequence[Envelope]], Awaitable[None]]
"""Takes a batch (1 to 256 envelopes); returning acknowledges all of it, raising none of it."""


class Bus(Protocol):
    """In process on a laptop, Apache Pulsar in production."""

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Hand over; durable on return.

        Raises:
            Unavailable: Not all of them are known to be durable; publish them again.
        """

    async def subscribe(self, name: str, types: Sequence[type[Message]], handle: Handle) -> None:
        """Begin a subscription; `name` is one per service, and its replicas share it."""

    async def open(self) -> None:
        """Let messages flow: every subscription of this process exists."""

    async def close(self) -> None:
        """Stop delivering; wait for handles that run."""
