"""The state of an app in words: what runs, how often it crashed, and the command that changes it.

Input is the JSON of `GET /apps/{app}` of the deployer, and of the webhook for what concerns pushes.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

App = Mapping[str, Any]

STYLES = {"live": "good", "starting": "quiet", "stopped": "undo", "no_process": "undo", "no_release": "quiet"}
"""Every other state is a fault."""
FAULTS = frozenset({"down", "drifted", "crash_loop"})


def state_of(running: App) -> str:
    """The state as the deployer names it; `no_release` where nothing was deployed yet."""
    return str(running.get("state") or "no_release")


def style_of(running: App) -> str:
    """Style of the state's word."""
    return STYLES.get(state_of(running), "bad")


def words_of(running: App) -> str:
    """The state for people: `crash loop`, `no process`, `live`."""
    return state_of(running).replace("_", " ")


def restarts_of(running: App) -> int:
    """Restarts of all instances together."""
    return sum(int(each.get("restarts") or 0) for each in running.get("instances") or ())


def next_start_of(running: App) -> str | None:
    """Time of the earliest next start of a crashed instance; None: none waits for one."""
    times = [each["next_start"] for each in running.get("instances") or () if each.get("next_start")]
    return min(times) if times else None


def until(at: str | None, *, now: datetime | None = None) -> str | None:
    """`in 12 s`, from a time in the future; `now` where it is over."""
    if not at:
        return None
    seconds = (datetime.fromisoformat(at) - (now or datetime.now(UTC))).total_seconds()
    return f"in {seconds:.0f} s" if seconds >= 0.5 else "now"


def crashes_of(running: App, *, now: datetime | None = None) -> str | None:
    """`4 restarts, next start in 12 s`; None where no instance was restarted."""
    count, at = restarts_of(running), until(next_start_of(running), now=now)
    if not count and not at:
        return None
    restarts = f"{count} restart{'' if count == 1 else 's'}"
    return f"{restarts}, next start {at}" if at else restarts


def command_for(app: str, running: App) -> str | None:
    """The command that a reader of this state needs next; None where there is nothing to do."""
    state = state_of(running)
    formation = running.get("formation") or {}
    if state == "no_process":
        return f"knarr scale {app} web=1"
    if state == "stopped":
        if (running.get("release") or 0) > 1:
            return f"knarr start {app}"
        first = "web" if "web" in formation else next(iter(formation), None)
        return f"knarr scale {app} {first}=1" if first else f"knarr deploy DIR --app {app}"
    if state in {"crash_loop", "down"}:
        return f"knarr logs {app}"
    return None


def notes_of(known: App) -> list[str]:
    """What is wrong with the way from a push to a deployment: a poll that fails, deployments on hold."""
    found = []
    polling = known.get("polling") or {}
    if polling.get("failures"):
        times = "once" if polling["failures"] == 1 else f"{polling['failures']} times"
        found.append(f"polling failed {times}")
    if (known.get("auto_deploy") or {}).get("on") is False:
        found.append("pushes are held")
    return found


def polling_of(known: App) -> str | None:
    """Why the repository cannot be polled; None where polling works or is off."""
    polling = known.get("polling") or {}
    if not polling.get("failures"):
        return None
    times = "once" if polling["failures"] == 1 else f"{polling['failures']} times"
    return f"failed {times}: {polling.get('error') or 'the reason is not known'}"


def hold_of(known: App) -> str | None:
    """Since when pushes are held, why, and the command that ends it; None where pushes are deployed."""
    hold = known.get("auto_deploy") or {}
    if hold.get("on") is not False:
        return None
    since = f" since {hold['since']}" if hold.get("since") else ""
    by = f" by {hold['by']}" if hold.get("by") else ""
    why = f" ({hold['why']})" if hold.get("why") else ""
    waiting = f"; {hold['waiting_commit'][:12]} waits" if hold.get("waiting_commit") else ""
    return f"held{since}{by}{why}{waiting}: `knarr apps release {known['name']}`"
