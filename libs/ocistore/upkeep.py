"""Upkeep of an image store while nothing is written: writers are counted, and upkeep waits until there are none.

Within one process, which is where upkeep is knarr's: `knarr up` has all services and starts the registry itself.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from seedwork.errors import Unavailable


class Upkeep:
    """Writers beside each other, or one upkeep alone."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._writers = 0
        self._closed = False

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Enter as a writer; waits for an upkeep that is under way."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._closed)
            self._writers += 1
        try:
            yield
        finally:
            async with self._changed:
                self._writers -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def alone(self, *, wait_s: float) -> AsyncIterator[None]:
        """Enter when nothing is written; writers that come meanwhile wait.

        Writers are not kept out before: a build of minutes would hold up every other one.

        Raises:
            Unavailable: Something is written all the time, for `wait_s` seconds.
        """
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: not self._writers and not self._closed)
                self._closed = True
        except TimeoutError as error:
            raise Unavailable(
                "The registry's garbage is not collected now",
                why=f"builds are under way ({self._writers})",
                todo="Run `knarr disk --reclaim` again later.",
            ) from error
        try:
            yield
        finally:
            async with self._changed:
                self._closed = False
                self._changed.notify_all()


_UPKEEPS: WeakValueDictionary[str, Upkeep] = WeakValueDictionary()


def upkeep_of(place: str) -> Upkeep:
    """Return the upkeep of the store at that place: the same one for every service of this process."""
    found = _UPKEEPS.get(place) or Upkeep()
    _UPKEEPS[place] = found
    return found
