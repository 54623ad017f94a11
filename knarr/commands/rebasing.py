"""`knarr apps rebase`: one app, or every app that buildpacks built."""

from collections.abc import Mapping
from typing import Any

import typer

from knarr.command import Session
from knarr.commands.outcome import finish, running_of
from knarr.exit_codes import Exit
from knarr.terminal import escape, styled, table
from seedwork.errors import Conflict, NotFound

_NOT_BUILDPACKS = "not_buildpacks"
"""Code of the answer for an app that buildpacks did not build, or that was never deployed."""


def rebase_one(session: Session, app: str, *, wait: bool, timeout_s: float | None) -> None:
    """Rebase an app and show how it goes."""
    started = session.platform.post("deployer", f"/apps/{app}/rebase")
    finish(session, started["saga_id"], wait=wait, timeout_s=timeout_s, app=app)


def rebase_all(session: Session, *, wait: bool, timeout_s: float | None) -> None:
    """Rebase one app after the other. One that fails is undone, and the others are still rebased.

    Raises:
        typer.Exit: A rebase did not succeed; the code is that of the first one.
    """
    from knarr.watch import follow_to_the_end, verdict

    rows: list[tuple[str, str, str | None]] = []
    code = Exit.DONE
    for app in (each["name"] for each in session.platform.pages("webhook", "/apps", limit=10_000)):
        try:
            started = session.platform.post("deployer", f"/apps/{app}/rebase")
        except NotFound:  # it was never deployed
            continue
        except Conflict as error:
            if error.reason_code != _NOT_BUILDPACKS:
                raise
            continue
        session.terminal.say(f"[name]{escape(app)}[/]")
        saga = follow_to_the_end(session.platform, session.terminal, started["saga_id"], wait=wait, timeout_s=timeout_s)
        ended = verdict(saga) if saga else Exit.DONE
        code = code if code is not Exit.DONE else ended
        rows.append((app, _word(session, app, saga, ended), started["saga_id"]))
    session.terminal.data(
        [{"app": app, "result": word, "saga_id": saga_id} for app, word, saga_id in rows],
        table(
            ("APP", "RESULT", "DEPLOYMENT"),
            [(styled(app, "name"), word, saga_id) for app, word, saga_id in rows],
            empty="No app was built by buildpacks.",
        ),
    )
    if code is not Exit.DONE:
        raise typer.Exit(code)


def _word(session: Session, app: str, saga: Mapping[str, Any] | None, ended: Exit) -> str:
    if saga is None:
        return "started"
    if ended is not Exit.DONE:
        return f"{saga['state'].lower()}: {saga.get('reason') or 'needs attention'}"
    if saga.get("reason") == "unchanged":
        return "nothing to rebase"
    return f"release {running_of(session, app).get('release')}"
