"""Who follows a saga is woken when its log grows: in this process at once, else after a slow look into the database."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Feed:
    """Rings for those who wait for news of a saga."""

    def __init__(self) -> None:
        self._bells: dict[str, set[asyncio.Event]] = {}

    def ring(self, saga_ids: Sequence[str]) -> None:
        """The logs of these sagas have grown."""
        if not self._bells:
            return
        for saga_id in saga_ids:
            for bell in self._bells.get(saga_id, ()):
                bell.set()

    @contextmanager
    def listening(self, saga_id: str) -> Iterator[asyncio.Event]:
        """An event that is set at each news of that saga; clear it before looking."""
        bell = asyncio.Event()
        self._bells.setdefault(saga_id, set()).add(bell)
        try:
            yield bell
        finally:
            bells = self._bells[saga_id]
            bells.discard(bell)
            if not bells:
                del self._bells[saga_id]
