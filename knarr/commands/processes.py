"""What one does with the processes of an app: scale, restart."""

from typing import Annotated

import typer

from knarr.command import AppName, Session, TimeoutOption, WaitOption, command, group, usage
from knarr.commands.outcome import finish

alone = group("Commands that stand alone.")


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


@command(alone, "restart", examples=["knarr restart shop"])
def restart(session: Session, app: AppName, wait: WaitOption = True, timeout: TimeoutOption = None) -> None:
    """Start the running release again: new instances first, then the old ones stop."""
    started = session.platform.post("deployer", f"/apps/{app}/restart")
    finish(session, started["saga_id"], wait=wait, timeout_s=timeout, app=app)
