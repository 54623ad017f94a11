"""The bus inside one process: `publish` returns when every subscriber has the messages in its own inbox.

Nothing is kept here. The sender's outbox row stays until all subscribers have committed, so a kill at any moment only
means that the messages come again. Messages flow after `open`, when every subscription exists.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from seedwork.bus import Handle
from seedwork.errors import RetryableError, Unavailable
from seedwork.messages import Envelope, Message


@dataclass(frozen=True, slots=True)
class _Subscription:
    name: str
    types: frozenset[str]
    handle: Handle


class InProcessBus:
    """A `Bus` whose subscribers live in this process."""

    def __init__(self) -> None:
        self._subscriptions: dict[str, _Subscription] = {}
        self._open = asyncio.Event()

    async def subscribe(self, name: str, types: Sequence[type[Message]], handle: Handle) -> None:
        """Begin a subscription; the same name again takes the place of the earlier one."""
        self._subscriptions[name] = _Subscription(name, frozenset(each.__name__ for each in types), handle)

    async def open(self) -> None:
        """Let messages flow."""
        self._open.set()

    async def close(self) -> None:
        """Hold back what is published from now on."""
        self._open.clear()

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Deliver to every subscriber.

        Raises:
            Unavailable: One of them could not take them now; the others may have.
        """
        await self._open.wait()
        deliveries = []
        for subscription in self._subscriptions.values():
            batch = [each for each in envelopes if each.type in subscription.types]
            if batch:
                deliveries.append(subscription.handle(batch))
        results = await asyncio.gather(*deliveries, return_exceptions=True)
        for result in results:
            if isinstance(result, RetryableError):
                raise Unavailable("A subscriber could not take its messages", why=result.message) from result
            if isinstance(result, BaseException):
                raise result
