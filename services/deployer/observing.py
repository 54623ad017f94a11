"""Stage 5 of 5: a release that has the traffic in, the same release proved in use out, and the one before stopped.

While the window lasts the instances of the release before keep running. An end of an instance, a failed liveness check,
or answers of 500 and above fail the step: the undo of the saga then moves the traffic back at once. The end of the
window is in the database, so a restart of this service goes on where it was. A newer saga of the app ends it early.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.participant import Work
from seedwork.unit_of_work import database_now_ms
from services.deployer import apps, observations, releases
from services.deployer.apps import App
from services.deployer.contract import ObservationStopped, ObserveRelease, ReleaseObserved, StopObserving
from services.deployer.deployer import Deployer, retire_old, stop_others
from services.deployer.errors import FailsInUse, Undone
from services.deployer.ports import Instance
from services.deployer.releases import KnownRelease

LONGEST_S = 3600.0
"""Longest observation in seconds, whatever an app asks for: it holds up the next deployment."""
POLL_S = 0.25
"""Interval between two looks at the instances. A crash is visible for half a second at least."""
_SHARE_OF_ERRORS = 10
"""One of so many answers must be an error before errors fail a release."""
_NONE_BEFORE = 100
"""A release with at most one error in so many answers counts as one that had none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """The observation as it stands in the database."""

    known: KnownRelease
    until_ms: int
    now_ms: int
    superseded: bool
    """A newer saga of the app was requested."""

    @property
    def is_over(self) -> bool:
        return self.now_ms >= self.until_ms


async def observe_release(_command: ObserveRelease, *, work: Work, deployer: Deployer) -> ReleaseObserved:
    """Observe the release until the window is over; then stop the release before.

    Raises:
        FailsInUse: An instance ended, failed its liveness check or did not come back; or errors exceeded the threshold.
        Undone: The release does not serve any more.
    """
    known = await deployer.db.read(lambda conn: releases.of_saga(conn, work.saga_id))
    if known is None:
        return await _nothing_to_observe(work, deployer)
    window_s = await _window_s(known, deployer)
    began = await deployer.db.write(lambda conn: _begun(conn, known, window_s))
    before = await deployer.db.read(lambda conn: releases.before(conn, work.app_id, work.saga_id))
    has_passed = await deployer.db.read(lambda conn: observations.is_closed(conn, work.saga_id))
    ended_early = await _watch(began, before, work, deployer) if window_s and not has_passed else ""
    work.note("stopping the release before")
    last = await deployer.db.write(lambda conn: _close(conn, work))
    warm = {before.saga_id} if before else set()
    await stop_others(work.app_id, deployer.runtime, keep={work.saga_id}, also=warm)
    traffic = await deployer.runtime.traffic(work.app_id, before.saga_id) if before else None
    app = App(app_id=work.app_id, name=work.app, team=work.team)

    async def finish(conn: AsyncConnection) -> None:
        await observations.end(conn, work.saga_id)
        await retire_old(conn, app, work, deployer)

    work.with_outcome(finish)
    return ReleaseObserved(
        number=known.number,
        observed_s=round(max(0.0, window_s - max(0, last.until_ms - last.now_ms) / 1000), 1),
        ended_early=ended_early,
        cut_requests=traffic.cut_requests if traffic else 0,
    )


async def stop_observing(_command: StopObserving, *, work: Work) -> ObservationStopped:  # noqa: ARG001  a handler's signature
    """Nothing is left to do: the observation of this saga has ended before its undo begins."""
    return ObservationStopped()


async def _nothing_to_observe(work: Work, deployer: Deployer) -> ReleaseObserved:
    """Handle a saga that changed nothing: the current release is not its own."""
    live = await deployer.db.read(lambda conn: releases.live(conn, work.app_id))
    if live is None or await deployer.db.read(lambda conn: releases.is_undone(conn, work.saga_id)):
        raise Undone("The release is not observed", why="its saga was undone")
    return ReleaseObserved(number=live.number, observed_s=0.0, ended_early="nothing changed")


async def _window_s(known: KnownRelease, deployer: Deployer) -> float:
    asked = await deployer.db.read(lambda conn: apps.observe_s(conn, known.app_id))
    if not any(known.formation.values()):
        return 0.0
    return min(LONGEST_S, max(0.0, deployer.observation.default_s if asked is None else asked))


async def _begun(conn: AsyncConnection, known: KnownRelease, window_s: float) -> _Window:
    """Store the end of the window, once."""
    now_ms = await database_now_ms(conn)
    until_ms = await releases.observed_until(conn, known.saga_id, now_ms + int(window_s * 1000))
    return _Window(known=known, until_ms=until_ms, now_ms=now_ms, superseded=False)


async def _look(conn: AsyncConnection, work: Work) -> _Window:
    """Read the window again.

    Raises:
        Undone: The release does not serve any more.
    """
    known = await releases.of_saga(conn, work.saga_id)
    if known is None or known.state != "live":
        raise Undone("The release is not observed any more", why="it has lost the traffic")
    newest = await apps.newest_saga(conn, work.app_id)
    return _Window(
        known=known,
        until_ms=await releases.observing_until(conn, work.saga_id) or 0,
        now_ms=await database_now_ms(conn),
        superseded=newest is not None and newest > work.saga_id,
    )


async def _close(conn: AsyncConnection, work: Work) -> _Window:
    """Nothing is warm any more: from now on a restart does not start the release before again.

    Raises:
        Undone: The release does not serve any more.
    """
    window = await _look(conn, work)
    await observations.close(conn, work.saga_id)
    return window


async def _watch(began: _Window, before: KnownRelease | None, work: Work, deployer: Deployer) -> str:
    """Look until the window is over; return why it ended early, or an empty text.

    Raises:
        FailsInUse: See `observe_release`.
    """
    window = began
    wanted = sum(began.known.formation.values())
    while True:
        instances = await deployer.runtime.instances(work.app_id)
        ours = [each for each in instances if each.saga_id == work.saga_id]
        await _judge(ours, before, window, work, deployer)
        up = sum(each.state == "up" for each in ours)
        if up >= wanted and window.superseded:
            return "a newer release was requested"
        if up >= wanted and window.is_over:
            return ""
        if window.now_ms >= window.until_ms + int(deployer.observation.start_s * 1000):
            raise _does_not_come_back(ours, wanted)
        left_s = max(0, window.until_ms - window.now_ms) / 1000
        work.note(f"observing release {window.known.number}, {left_s:.0f} s left")
        await asyncio.sleep(POLL_S)
        window = await deployer.db.read(lambda conn: _look(conn, work))


async def _judge(
    ours: Sequence[Instance], before: KnownRelease | None, window: _Window, work: Work, deployer: Deployer
) -> None:
    """Raise `FailsInUse` if an instance has ended or errors exceed the threshold."""
    todo = f"Read its output: `knarr logs {work.app}`."
    ended = next((each for each in ours if each.restarts or each.state == "crashed"), None)
    if ended is not None:
        said = ended.note.partition("; it starts again")[0] if ended.state == "crashed" else ""
        why = said or "it was started again"
        raise FailsInUse(f"{ended.process} ended soon after its start", why=why, todo=todo, log_tail=ended.log_tail)
    if errors := await _errors(window.known, before, deployer):
        raise FailsInUse("The release answers with errors", why=errors, todo=todo)


async def _errors(known: KnownRelease, before: KnownRelease | None, deployer: Deployer) -> str:
    """Say which errors exceed the threshold; an empty text: none do, or there is no release to compare with."""
    if before is None:
        return ""
    ours = await deployer.runtime.traffic(known.app_id, known.saga_id)
    theirs = await deployer.runtime.traffic(known.app_id, before.saga_id)
    if ours is None or theirs is None or theirs.errors * _NONE_BEFORE > theirs.requests:
        return ""
    if ours.errors < deployer.observation.errors or ours.errors * _SHARE_OF_ERRORS < ours.requests:
        return ""
    return (
        f"{ours.errors} of {ours.requests} requests were answered with a status of 500 or above;"
        f" release {before.number} had {theirs.errors} of {theirs.requests}"
    )


def _does_not_come_back(ours: Sequence[Instance], wanted: int) -> FailsInUse:
    note = next((each.note for each in ours if each.note and each.state != "up"), "")
    up = sum(each.state == "up" for each in ours)
    return FailsInUse(f"{up} of {wanted} instances are up at the end of the observation", why=note)
