"""Requests of each release as the router sees them: statuses in, counts out."""

from services.deployer.ports import Traffic

_REMEMBERED = 1_000
"""Releases whose counts are kept: they are read for a while after the release was stopped."""
_ERROR = 500


class Counts:
    """Of one release, all its instances together."""

    __slots__ = ("cut", "errors", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.cut = 0
        """Requests that were still open when the drain time was over."""

    def answered(self, status: int) -> None:
        """Count a request by the status of its answer; 502 and 504: it had none."""
        self.requests += 1
        self.errors += status >= _ERROR

    @property
    def traffic(self) -> Traffic:
        """As the port wants it."""
        return Traffic(requests=self.requests, errors=self.errors, cut_requests=self.cut)


class CountsBySaga:
    """Counts of the releases of one router; those of the oldest are forgotten."""

    def __init__(self) -> None:
        self._known: dict[str, Counts] = {}

    def of(self, saga_id: str) -> Counts:
        """The counts of a release, from zero where they are new."""
        if saga_id not in self._known:
            self._known[saga_id] = Counts()
            for old in list(self._known)[:-_REMEMBERED]:
                del self._known[old]
        return self._known[saga_id]

    def traffic(self, saga_id: str) -> Traffic | None:
        """The counts of a release, or None: it had no instance that took requests."""
        known = self._known.get(saga_id)
        return known.traffic if known else None
