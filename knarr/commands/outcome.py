"""How a command that started a saga ends: the saga's verdict as words, as JSON and as the exit code."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import typer

from knarr.command import Session
from knarr.exit_codes import Exit
from knarr.status import FAULTS, command_for, state_of, words_of
from knarr.terminal import escape, sentence
from seedwork.errors import NotFound, RetryableError

_AT_ONCE = 8
"""Requests at the same time: a list of apps asks for each of them."""


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
    running = running_of(session, app) if app and code is Exit.DONE else {}
    url = running.get("url")
    if session.terminal.as_json:
        session.terminal.data({**saga, "url": url} if app else saga)
    session.terminal.say(_words(saga, code, running=running, done=done))
    if url and not session.terminal.as_json:
        session.terminal.out.print(url, style="address")
    if code is not Exit.DONE:
        raise typer.Exit(code)


def running_of(session: Session, app: str) -> dict[str, Any]:
    """What the deployer knows of an app; empty where nothing was deployed yet."""
    try:
        found: dict[str, Any] = session.platform.get("deployer", f"/apps/{app}")
    except NotFound:
        return {}
    return found


def running_of_all(session: Session, apps: Sequence[str]) -> list[dict[str, Any]]:
    """The same for several apps in their order; where the deployer does not answer, all are empty after one error."""
    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(partial(running_of, session), apps))
    except RetryableError as error:
        session.terminal.error(error)
        return [{} for _ in apps]


def _words(saga: Mapping[str, Any], code: Exit, *, running: Mapping[str, Any], done: str | None) -> str:
    if code is Exit.DONE:
        return _success(saga, running, done)
    if code is Exit.UNDONE:
        return "\n".join(_how_it_was_undone(saga))
    name, saga_id = escape(saga["app"]), saga["id"]
    blocked = next((step for step in saga["steps"] if step["state"] in {"STUCK", "UNKNOWN", "FAILED"}), None)
    verbs = ("retry", "skip") if saga["state"] == "STUCK" else ("retry", "cancel")
    return (
        f"[bad]{name} needs a decision[/]: the saga is {saga['state']}"
        + (f" at {blocked['name']}. {escape(_error(blocked))}" if blocked else ".")
        + f"\n  [quiet]→ All steps: `knarr sagas log {saga_id}`[/]"
        + f"\n  [quiet]→ Then decide: {', or '.join(f'`knarr sagas {verb} {saga_id}`' for verb in verbs)}[/]"
    )


def _success(saga: Mapping[str, Any], running: Mapping[str, Any], done: str | None) -> str:
    """How it ended, and no better than what runs."""
    name = escape(saga["app"])
    if done:
        return f"[good]{escape(done)}[/]"
    if state_of(running) in {"stopped", "no_process"} and (todo := command_for(saga["app"], running)):
        what = "no process runs" if state_of(running) == "stopped" else "no web process runs"
        return f"[undo]{name} is deployed, and {what}[/]: `{escape(todo)}`"
    if saga.get("reason") == "unchanged":
        release = f"release {running['release']}" if running.get("release") else "its release"
        if saga["saga"] == "rebase":
            return f"[good]There is nothing to rebase[/]: {release} of {name} stands on the current run image already."
        return f"[good]{name} is unchanged[/], {release} runs already{_colon(running)}"
    if state_of(running) in FAULTS:
        todo = command_for(saga["app"], running)
        what = f"[bad]{name} is deployed, and is in trouble[/]: {escape(running.get('reason') or words_of(running))}"
        return f"{what}: `{escape(todo)}`" if todo else what
    return f"[good]{name} is live[/]{_colon(running)}"


def _colon(running: Mapping[str, Any]) -> str:
    return ":" if running.get("url") else "."


def _how_it_was_undone(saga: Mapping[str, Any]) -> list[str]:
    """The end of what was shown step by step: where, why, and what is left."""
    failed = next((step["name"] for step in saga["steps"] if step.get("error")), None)
    why = {
        "cancelled": "it was cancelled",
        "superseded": f"a newer deployment superseded it ({saga.get('superseded_by')})",
        "timed_out": f"{failed or 'a step'} did not answer in time",
        "failed": f"{failed} failed" if failed else "a step failed",
    }.get(saga.get("reason") or "", str(saga.get("reason")))
    what = "was not deployed" if saga["saga"] == "deploy" else f"has no new {saga['saga']}"
    lines = [f"[undo]{escape(saga['app'])} {what}[/]: {escape(why)}, and everything is as it was."]
    if saga.get("left_over"):
        left = "; ".join(f"{each['what']} in {each['where']}" for each in saga["left_over"])
        lines = [f"[undo]{escape(saga['app'])} {what}[/]: {escape(why)}. [bad]Left over[/]: {escape(left)}"]
    lines.append(f"  [quiet]→ All steps: `knarr sagas log {saga['id']}`[/]")
    return lines


def _error(step: Mapping[str, Any] | None) -> str:
    error = (step or {}).get("error")
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("code")
    return sentence(str(error)) if error else ""
