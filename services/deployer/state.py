"""The state of an app in one word with its reason: what its release wants, and what the runtime observes.

A crash loop is shown as such also in the seconds in which its instance answers.
"""

from collections.abc import Sequence
from typing import Literal

from services.deployer.ports import Instance
from services.deployer.releases import KnownRelease

AppState = Literal["live", "starting", "down", "drifted", "crash_loop", "stopped", "no_process", "no_release"]
"""`stopped`: no instance of any process is wanted. `no_process`: instances are wanted, but none of `web`."""

CRASH_LOOP_STARTS = 2
"""Restarts within `CRASH_LOOP_S` that make a loop: one crash may be an accident."""
CRASH_LOOP_S = 300
"""Seconds that an instance must run before its crashes are history: longer than the longest wait between two."""


def state_of(
    live: KnownRelease | None, instances: Sequence[Instance], trouble: str, *, now_ms: int
) -> tuple[AppState, str]:
    """State and reason; the reason is empty where the state says everything.

    Args:
        live: The current release.
        instances: As the runtime observes them, of all releases.
        trouble: Why the app cannot be reached, from the runtime; empty: nothing is known.
        now_ms: Time of the observation.
    """
    if live is None:
        return "no_release", trouble or "nothing was deployed yet"
    if not any(live.formation.values()):
        return "stopped", "nothing runs"
    if trouble:
        return "down", trouble
    ours = [each for each in instances if each.saga_id == live.saga_id]
    return _fault(ours, now_ms) or _shortage(live, ours) or ("live", "")


def _shortage(live: KnownRelease, ours: Sequence[Instance]) -> tuple[AppState, str] | None:
    wanted, up = sum(live.formation.values()), sum(each.state == "up" for each in ours)
    if up < wanted:
        note = next((each.note for each in ours if each.note and each.state != "up"), "")
        return "starting", note or f"{up} of {wanted} instances are up"
    if "web" in live.processes and not live.formation.get("web"):
        return "no_process", "no instance of web is wanted, so the address does not answer"
    return None


def _fault(ours: Sequence[Instance], now_ms: int) -> tuple[AppState, str] | None:
    looping = [each for each in ours if _is_looping(each, now_ms)]
    if looping:
        return "crash_loop", "; ".join(_crashes(each) for each in looping)
    for each in ours:
        if each.state in {"drifted", "down"}:
            return each.state, each.note or f"{each.process} is {each.state}"
    return None


def has_address(live: KnownRelease | None) -> bool:
    """Whether a `web` instance is wanted, so that the app's address can answer."""
    return live is not None and bool(live.formation.get("web"))


def _is_looping(instance: Instance, now_ms: int) -> bool:
    if instance.state == "crashed":
        return True
    recent = now_ms - instance.since_ms < CRASH_LOOP_S * 1000
    return instance.restarts >= CRASH_LOOP_STARTS and recent


def _crashes(instance: Instance) -> str:
    times = "once" if instance.restarts <= 1 else f"{instance.restarts} times"
    why = f": {instance.note}" if instance.note else ""
    return f"{instance.process} crashed {times}{why}"
