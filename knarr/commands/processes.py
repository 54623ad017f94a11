"""What one does with the processes of an app: ps, run, scale, stop, start, restart."""

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from knarr.command import AppName, OptionalAppName, Session, TimeoutOption, WaitOption, command, group, usage
from knarr.commands.outcome import finish, running_of, running_of_all
from knarr.status import command_for, until
from knarr.terminal import age, styled, table
from seedwork.errors import Unavailable

alone = group("Commands that stand alone.")

_STYLES = {"up": "good", "starting": "quiet", "stopping": "quiet"}


@command(alone, "ps", examples=["knarr ps", "knarr ps shop", "knarr ps shop --json"])
def ps(session: Session, app: OptionalAppName = None) -> None:
    """The instances of an app, or of all apps: state, restarts, next start."""
    if app is not None:
        found = {app: session.platform.get("deployer", f"/apps/{app}")}
    else:
        names = [each["name"] for each in session.platform.pages("webhook", "/apps", limit=1000)]
        found = dict(zip(names, running_of_all(session, names), strict=True))
    instances = [{"app": name, **each} for name, one in found.items() for each in one.get("instances") or ()]
    columns = ["APP", "INSTANCE", "STATE", "RESTARTS", "NEXT START", "SINCE", "RELEASE", "NOTE"]
    rows = [_row(each) for each in instances]
    if app is not None:
        columns, rows = columns[1:], [row[1:] for row in rows]
    empty = f"Nothing of {app} runs." if app else "Nothing runs."
    session.terminal.data(instances, table(columns, rows, empty=empty))
    for name, one in found.items():
        _say_what_to_do(session, name, one)


def _row(instance: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        styled(instance["app"], "name"),
        instance["process"],
        styled(instance["state"], _STYLES.get(instance["state"], "bad")),
        instance["restarts"],
        until(instance.get("next_start")),
        age(instance["since"]),
        instance["release"],
        instance.get("note") or None,
    )


def _say_what_to_do(session: Session, app: str, running: Mapping[str, Any]) -> None:
    todo = command_for(app, running)
    if todo and not session.terminal.as_json:
        session.terminal.say(f"[quiet]→ {app}: {running.get('reason') or 'nothing runs'}: `{todo}`[/]")


@command(
    alone,
    "run",
    examples=["knarr run shop python manage.py migrate", "knarr run shop -- sh -c 'echo $DATABASE_URL'"],
    passes_arguments=True,
)
def run(
    session: Session,
    app: AppName,
    words: Annotated[list[str], typer.Argument(metavar="COMMAND…", help="Program and arguments.", show_default=False)],
) -> None:
    """Run one command in the environment of the app's release; its exit code is passed on.

    The command is a process of its own beside the app, without standard input. Ctrl-C ends it. Options of knarr
    stand before APP; everything after it belongs to the command. No shell reads it.
    """
    import base64

    import orjson

    argv = words[1:] if words[0] == "--" else words
    if not argv:
        raise usage("No command is given", todo=f"Write it after the name: `knarr run {app} python -V`")
    code: int | None = None
    with session.platform.stream("deployer", f"/apps/{app}/runs", method="POST", json={"command": argv}) as answer:
        for line in answer.iter_lines():
            said = orjson.loads(line)
            code = said.get("exit_code", code)
            if session.terminal.as_json:
                session.terminal.row(said)
            elif "output" in said:
                sys.stdout.buffer.write(base64.b64decode(said["output"]))
                sys.stdout.buffer.flush()
    if code is None:
        raise Unavailable(
            "The command was ended before it was done",
            why="the platform stopped, or the release was removed",
            todo="Run `knarr doctor`, then run the command again",
        )
    if code:
        raise typer.Exit(code)


@command(alone, "scale", examples=["knarr scale shop web=2 worker=1"])
def scale(
    session: Session,
    app: AppName,
    formation: Annotated[list[str], typer.Argument(metavar="PROCESS=COUNT…", show_default=False)],
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Run more or fewer instances of a process."""
    wanted = {}
    for pair in formation:
        process, _, count = pair.partition("=")
        if not process or not count.isdecimal():
            raise usage(f"{pair!r} says no count", todo="Write PROCESS=COUNT, such as web=2 worker=1.")
        wanted[process] = int(count)
    started = session.platform.patch("deployer", f"/apps/{app}/formation", wanted)
    finish(session, started["saga_id"], wait=wait, timeout_s=timeout, app=app)


@command(alone, "stop", examples=["knarr stop shop"])
def stop(session: Session, app: AppName, wait: WaitOption = True, timeout: TimeoutOption = None) -> None:
    """Stop all instances of an app. Its releases, config and address stay."""
    started = session.platform.post("deployer", f"/apps/{app}/stop")
    if started["saga_id"] is None:
        session.terminal.data(started, f"Nothing changed: {app} is stopped already.")
        return
    done = f"{app} is stopped. `knarr start {app}` starts it again."
    finish(session, started["saga_id"], wait=wait, timeout_s=timeout, done=done)


@command(alone, "start", examples=["knarr start shop"])
def start(session: Session, app: AppName, wait: WaitOption = True, timeout: TimeoutOption = None) -> None:
    """Start a stopped app with the instances that it had."""
    started = session.platform.post("deployer", f"/apps/{app}/start")
    if started["saga_id"] is None:
        session.terminal.data(started, f"Nothing changed: {app} is started already.")
        _say_what_to_do(session, app, running_of(session, app))
        return
    finish(session, started["saga_id"], wait=wait, timeout_s=timeout, app=app)


@command(alone, "restart", examples=["knarr restart shop"])
def restart(session: Session, app: AppName, wait: WaitOption = True, timeout: TimeoutOption = None) -> None:
    """Start the running release again: new instances first, then the old ones stop."""
    started = session.platform.post("deployer", f"/apps/{app}/restart")
    finish(session, started["saga_id"], wait=wait, timeout_s=timeout, app=app)
