"""Differences between what a release wants and what runs: recorded once, repaired at a growing interval."""

from collections.abc import Collection

from services.deployer.ports import Drift

FIRST_AGAIN_MS = 1_000
LONGEST_AGAIN_MS = 60_000
_FORGOTTEN_MS = 300_000
"""After so long without a repair the next one is made at once."""
_KEPT = 1_000
"""Drifts that wait to be taken; the oldest are dropped beyond it."""


class Ledger:
    """Drifts since the last time that they were taken; one that stays is in it once."""

    def __init__(self) -> None:
        self._new: list[Drift] = []
        self._open: dict[tuple[str, str], set[str]] = {}

    def add(self, drift: Drift) -> None:
        """Record it, unless it is known and still there."""
        known = self._open.setdefault((drift.app_id, drift.saga_id), set())
        if drift.repaired:
            known.discard(drift.what)
        elif drift.what in known:
            return
        else:
            known.add(drift.what)
        self._new = [*self._new[1 - _KEPT :], drift]

    def keep_only(self, app_id: str, saga_id: str, there: Collection[str]) -> None:
        """These are all that are there: others have gone without a repair."""
        known = self._open.get((app_id, saga_id), set())
        known.intersection_update(there)
        if not known:
            self._open.pop((app_id, saga_id), None)

    def take(self) -> list[Drift]:
        """Return what was recorded since the last call."""
        taken, self._new = self._new, []
        return taken


class Pace:
    """When an app may be repaired again: at once, then after 1 s, 2 s, 4 s, at last once a minute."""

    def __init__(self) -> None:
        self._made = 0
        self._last_ms = 0

    def due_ms(self, now_ms: int) -> int:
        """Time of the next repair in milliseconds; `now_ms` or earlier: at once."""
        if not self._made or now_ms - self._last_ms > _FORGOTTEN_MS:
            return now_ms
        return self._last_ms + min(LONGEST_AGAIN_MS, FIRST_AGAIN_MS << (self._made - 1))

    def made(self, now_ms: int) -> None:
        """Count a repair."""
        if now_ms - self._last_ms > _FORGOTTEN_MS:
            self._made = 0
        self._made = min(self._made + 1, 10)
        self._last_ms = now_ms
