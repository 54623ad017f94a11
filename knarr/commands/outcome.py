"""How a command that started a saga ends: the saga's verdict as words, as JSON and as the exit code."""

from collections.abc import Mapping
from typing import Any

import typer

from knarr.command import Session
from knarr.exit_codes import Exit
from knarr.terminal import escape, sentence
from seedwork.errors import NotFound


def finish(
    session: Session,
    saga_id: str,
    *,
    wait: bool,
    timeout_s: float | None,
    app: str | None = None,
    done: str | None = None,
) -> None:
    """Watch a saga to its end, say how it ended, and leave with the code that stands for it.

    Args:
        session: The command's.
        saga_id: What it started.
        wait: Whether to watch at all.
        timeout_s: How long.
        app: Whose address is said at the end.
        done: What is said at the end, where it is no address.

    Raises:
        typer.Exit: The saga did not succeed.
    """
    from knarr.watch import follow_to_the_end, verdict

    saga = follow_to_the_end(session.platform, session.terminal, saga_id, wait=wait, timeout_s=timeout_s)
    if saga is None:
        session.terminal.data({"id": saga_id, "saga_id": saga_id}, saga_id)
        return
    code = verdict(saga)
    url = _url(session, app) if code is Exit.DONE and app else None
    if session.terminal.as_json:
        session.terminal.data({**saga, "url": url} if app else saga)
    session.terminal.say(_words(saga, code, url=url, done=done))
    if url and not session.terminal.as_json:
        session.terminal.out.print(url, style="address")
    if code is not Exit.DONE:
        raise typer.Exit(code)


def _url(session: Session, app: str) -> str | None:
    try:
        url: str | None = session.platform.get("deployer", f"/apps/{app}").get("url")
    except NotFound:
        return None
    return url


def _words(saga: Mapping[str, Any], code: Exit, *, url: str | None, done: str | None) -> str:
    name = escape(saga["app"])
    saga_id = saga["id"]
    if code is Exit.DONE:
        return f"[good]{done}[/]" if done else f"[good]{name} is live[/]{':' if url else '.'}"
    if code is Exit.UNDONE:
        return "\n".join(_how_it_was_undone(saga))
    blocked = next((step for step in saga["steps"] if step["state"] in {"STUCK", "UNKNOWN", "FAILED"}), None)
    verbs = ("retry", "skip") if saga["state"] == "STUCK" else ("retry", "cancel")
    return (
        f"[bad]{name} needs a person[/]: the saga is {saga['state']}"
        + (f" at {blocked['name']}. {escape(_error(blocked))}" if blocked else ".")
        + f"\n  [quiet]→ See all of it: knarr sagas log {saga_id}[/]"
        + f"\n  [quiet]→ Then decide: {', or '.join(f'knarr sagas {verb} {saga_id}' for verb in verbs)}[/]"
    )


def _how_it_was_undone(saga: Mapping[str, Any]) -> list[str]:
    """The end of what was shown step by step: where, why, and what is left."""
    failed = next((step["name"] for step in saga["steps"] if step.get("error")), None)
    why = {
        "cancelled": "it was cancelled",
        "superseded": f"a newer push took its place ({saga.get('superseded_by')})",
        "timed_out": f"{failed or 'a step'} did not answer in time",
        "failed": f"{failed} failed" if failed else "a step failed",
    }.get(saga.get("reason") or "", str(saga.get("reason")))
    what = "was not deployed" if saga["saga"] == "deploy" else f"has no new {saga['saga']}"
    lines = [f"[undo]{escape(saga['app'])} {what}[/]: {escape(why)}, and everything is as it was."]
    if saga.get("left_over"):
        left = "; ".join(f"{each['what']} in {each['where']}" for each in saga["left_over"])
        lines = [f"[undo]{escape(saga['app'])} {what}[/]: {escape(why)}. [bad]Left over[/]: {escape(left)}"]
    lines.append(f"  [quiet]→ All of it: knarr sagas log {saga['id']}[/]")
    return lines


def _error(step: Mapping[str, Any] | None) -> str:
    error = (step or {}).get("error")
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("code")
    return sentence(str(error)) if error else ""
