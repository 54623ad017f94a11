"""Who follows a saga is woken when its log grows: at once by this process, within `LOOK_S` by another coordinator."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from seedwork.clock import Clock

LOOK_S = 0.2
"""Between two looks for what another coordinator wrote: one query for all sagas that are followed here. Four times as
many were the most that a coordinator did while a deployment was followed, on the processors that its build wants."""

Versions = Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]
"""By the id of a saga, a number that grows with each change; without those that there are none of."""


class Feed:
    """Rings for those who wait for news of a saga."""

    def __init__(self) -> None:
        self._bells: dict[str, set[asyncio.Event]] = {}
        self._anybody = asyncio.Event()

    def ring(self, saga_ids: Sequence[str]) -> None:
        """The logs of these sagas have grown."""
        if not self._bells:
            return
        for saga_id in saga_ids:
            for bell in self._bells.get(saga_id, ()):
                bell.set()

    async def watch(self, versions: Versions, clock: Clock) -> None:
        """Ring for what other coordinators write, for ever; without a query while nobody follows a saga."""
        seen: Mapping[str, int] = {}
        while True:
            await self._anybody.wait()
            found = await versions(list(self._bells))
            self.ring([saga_id for saga_id, version in found.items() if seen.get(saga_id) != version])
            seen = found
            await clock.sleep(LOOK_S)

    @contextmanager
    def listening(self, saga_id: str) -> Iterator[asyncio.Event]:
        """An event that is set at each news of that saga; clear it before looking."""
        bell = asyncio.Event()
        self._bells.setdefault(saga_id, set()).add(bell)
        self._anybody.set()
        try:
            yield bell
        finally:
            bells = self._bells[saga_id]
            bells.discard(bell)
            if not bells:
                del self._bells[saga_id]
            if not self._bells:
                self._anybody.clear()
