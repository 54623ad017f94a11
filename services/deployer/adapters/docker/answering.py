"""Which containers answer: containers in, backends for the router out, as soon as they do.

An answer counts for one start of a container: started again, it has a new address and must prove itself anew.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection

from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.engine import Container
from services.deployer.adapters.probe import REFUSED, probe
from services.deployer.adapters.router import Backend

_FIRST_WAIT_S = 0.02
_LONGEST_WAIT_S = 0.5

Start = tuple[str, int]
"""A container's id, and when it was started."""


class Answering:
    """Keeps the proofs.

    Args:
        changed: Called with the app's id when a container that was watched begins to answer.
    """

    def __init__(self, changed: Callable[[str], None]) -> None:
        self._changed = changed
        self._proved: dict[str, dict[Start, Backend | None]] = defaultdict(dict)
        self._watched: dict[str, dict[Start, asyncio.Task[None]]] = defaultdict(dict)

    def proved(self, container: Container) -> bool:
        """Whether it has answered since its start (or, without a port, was seen to stay)."""
        return container.runs and _start(container) in self._proved[_app(container)]

    def backend(self, container: Container) -> Backend | None:
        """Where its requests go, if it answers."""
        return self._proved[_app(container)].get(_start(container)) if container.runs else None

    async def ask(self, container: Container) -> str | None:
        """Ask a web process once; None if it answers, else what it does instead."""
        address = next(iter(container.addresses.values()), "")
        port = int(container.labels.get(spec.PORT) or 0)
        if not address or not port:
            return REFUSED
        fault = await probe(address, port, container.labels.get(spec.HEALTH_PATH) or None)
        if fault is None:
            self._proved[_app(container)].setdefault(_start(container), Backend(address, port))
        return fault

    def stays(self, container: Container) -> None:
        """A process without a port has lived long enough."""
        self._proved[_app(container)].setdefault(_start(container), None)

    def watch(self, container: Container) -> None:
        """Go on asking until it answers, or `keep_only` says that it is gone."""
        app, start = _app(container), _start(container)
        if start in self._proved[app] or start in self._watched[app]:
            return
        if container.labels.get(spec.PORT):
            self._watched[app][start] = asyncio.create_task(self._until_it_answers(container))
        else:
            self.stays(container)

    def keep_only(self, app_id: str, containers: Collection[Container]) -> None:
        """These are all of the app's containers: what was known of earlier starts goes."""
        running = {_start(each) for each in containers if each.runs}
        for start in self._proved[app_id].keys() - running:
            del self._proved[app_id][start]
        for start in self._watched[app_id].keys() - running:
            self._watched[app_id].pop(start).cancel()
        if not running:
            del self._proved[app_id], self._watched[app_id]

    async def close(self) -> None:
        """Ask no more."""
        tasks = [task for watched in self._watched.values() for task in watched.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_it_answers(self, container: Container) -> None:
        wait_s = _FIRST_WAIT_S
        while await self.ask(container) is not None:
            await asyncio.sleep(wait_s)
            wait_s = min(_LONGEST_WAIT_S, wait_s * 1.5)
        self._watched[_app(container)].pop(_start(container), None)
        self._changed(_app(container))


def _start(container: Container) -> Start:
    return container.id, container.started_ms


def _app(container: Container) -> str:
    return container.labels[spec.APP_ID]
