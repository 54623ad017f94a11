"""Who serves an app: its instances, each in its turn, and the requests that each one has under way."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from seedwork.chassis.server_connections import Connections
from services.deployer.adapters.counts import Counts


class Backend:
    """One instance that takes requests."""

    __slots__ = ("_idle", "counts", "cut_after_s", "host", "port", "requests")

    def __init__(self, host: str, port: int, *, counts: Counts | None = None) -> None:
        self.host = host
        self.port = port
        self.requests = 0
        """Under way."""
        self.counts = counts or Counts()
        """Of its release."""
        self.cut_after_s: float | None = None
        """Drain time in seconds, once it is over: requests that are open now are cut by the platform."""
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Count a request while it is under way."""
        self.requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.requests -= 1
            if not self.requests:
                self._idle.set()

    def cut(self, drain_s: float) -> int:
        """Count the requests that are open now as cut; return how many they are."""
        self.cut_after_s = drain_s
        self.counts.cut += self.requests
        return self.requests

    async def idle(self) -> None:
        """Wait until no request is under way; tunnels last as long as their client likes, and are not waited for."""
        await self._idle.wait()


class Route:
    """One app's port, and who serves it.

    Args:
        app_id: The app.
        app: Its name.
        port: Its port.
        max_connections: Of its clients, at the same time.
    """

    def __init__(self, app_id: str, app: str, port: int, *, max_connections: int) -> None:
        self.app_id = app_id
        self.app = app
        self.port = port
        self.backends: Sequence[Backend] = ()
        self.note = "It has no release yet."
        """Why there is no backend, for people."""
        self.server: asyncio.Server | None = None
        self.connections = Connections(
            f"app {app}", most=max_connections, most_of_client=max_connections, settings="KNARR_APP_MAX_CONNECTIONS"
        )
        self._turn = 0

    def serve(self, backends: Sequence[Backend], note: str = "") -> None:
        """From now on new requests go to these."""
        self.backends = tuple(backends)
        self.note = note.replace("`knarr logs APP`", f"`knarr logs {self.app}`").replace(
            "`knarr scale APP web=1`", f"`knarr scale {self.app} web=1`"
        )

    def in_turn(self) -> Sequence[Backend]:
        """All of them, each time beginning with the next one."""
        if not self.backends:
            return ()
        self._turn = (self._turn + 1) % len(self.backends)
        return (*self.backends[self._turn :], *self.backends[: self._turn])
