"""Sentences about a saga and its steps: the one fact about an answer that a reader wants."""

import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from knarr.terminal import escape, sentence, short, size

_DIGEST = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-(?=[0-9a-f]{12})")


def now(saga: Mapping[str, Any]) -> str:
    """What happens at this moment, and for how long."""
    waiting = saga.get("waiting_for") or {}
    working = "undoing" if saga.get("direction") == "undo" else "working"
    verb = "waiting" if waiting.get("what") == "timer" else working
    step = next((each for each in saga["steps"] if each["state"] in {"SENT", "UNDOING"}), None)
    what = f"{step['name']:<8} {verb}" if step else "waiting for its turn" if saga["state"] == "QUEUED" else verb
    note = waiting.get("note")
    since = waiting.get("since")
    seconds = f"  [quiet]{_seconds_since(since):.0f} s[/]" if since else ""
    return f"{what}{f', {escape(note)}' if note else ''}{seconds}"


def _seconds_since(at: str) -> float:
    return max(0.0, time.time() - datetime.fromisoformat(at).timestamp())


def took(step: Mapping[str, Any]) -> str:
    """Duration of a step, empty where it is not known."""
    if not step.get("started_at") or not step.get("ended_at"):
        return ""
    began, ended = (datetime.fromisoformat(step[name]).timestamp() for name in ("started_at", "ended_at"))
    return f"{ended - began:.1f} s"


def why(step: Mapping[str, Any]) -> str:
    """Reason for which a step failed."""
    error = step.get("error") or {}
    return sentence(str(error.get("message") or error.get("code") or "it did not answer"))


def gist(step: str, answer: Mapping[str, Any]) -> str:
    """The one fact about a step that a reader wants."""
    words = _GISTS.get(step)
    return words(answer) if words else ""


def _source_gist(answer: Mapping[str, Any]) -> str:
    commit = short(answer.get("commit") or answer.get("digest")) or ""
    return f"{commit}, {size(answer.get('size_bytes'))}" if "size_bytes" in answer else commit


def _build_gist(answer: Mapping[str, Any]) -> str:
    layers = answer.get("layers") or ()
    cached = sum(bool(layer.get("cached")) for layer in layers)
    parts = f"{len(layers)} layers, {cached} from the cache" if layers else ""
    return _joined(short(answer.get("digest")), parts)


def _rebase_gist(answer: Mapping[str, Any]) -> str:
    where = "stands on it already" if answer.get("unchanged") else short(answer.get("digest"))
    return _joined(answer.get("run_image"), where)


def _publish_gist(answer: Mapping[str, Any]) -> str:
    return _joined(answer.get("repository"), size(answer["size_bytes"]) if "size_bytes" in answer else "")


def _joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _release_gist(answer: Mapping[str, Any]) -> str:
    """The release, its address and the time to its first answer: the traffic has moved."""
    if "number" not in answer:
        return ""
    if answer.get("unchanged"):
        return f"nothing changed: release {answer['number']} runs already"
    formation = answer.get("formation") or {}
    instances = ", ".join(f"{count} {name}" for name, count in formation.items() if count)
    parts = [f"release {answer['number']}", instances or "no instance"]
    if formation.get("web") and answer.get("url"):
        parts.append(str(answer["url"]))
    if answer.get("first_answer_ms") is not None:
        parts.append(f"first answer after {answer['first_answer_ms']} ms")
    return ", ".join(parts)


def _observation_gist(answer: Mapping[str, Any]) -> str:
    if "observed_s" not in answer:
        return ""
    if not answer["observed_s"]:
        return f"not observed: {answer['ended_early']}" if answer.get("ended_early") else "not observed"
    early = f", ended early: {answer['ended_early']}" if answer.get("ended_early") else ""
    return f"observed for {answer['observed_s']:g} s{early}"


_GISTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "source": _source_gist,
    "build": _build_gist,
    "rebase": _rebase_gist,
    "publish": _publish_gist,
    "deploy": _release_gist,
    "observe": _observation_gist,
}


def undone(answer: Mapping[str, Any]) -> str:
    """What an undo found and what it did, with long names cut: the log has them whole."""
    found = "; ".join(answer.get("found") or ())
    done = "; ".join(answer.get("done") or ())
    if not found:
        return "nothing to undo"
    return _DIGEST.sub(r"\1…", _UUID.sub("…", f"{found}: {done}" if done else found))
