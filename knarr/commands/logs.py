"""`knarr logs`: what an app prints, byte for byte to a pipe."""

from typing import Annotated

import typer

from knarr.command import AppName, Session, command, group

alone = group("Commands that stand alone.")


@command(alone, "logs", examples=["knarr logs shop", "knarr logs shop --follow --lines 20"])
def logs(
    session: Session,
    app: AppName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come; Ctrl-C stops.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=10_000, help="Lines from before.")] = 100,
) -> None:
    """What the app's instances print."""
    following = 1 if follow else None
    with session.platform.stream("deployer", f"/apps/{app}/logs", lines=lines, follow=following) as answer:
        for piece in answer.iter_text():
            session.terminal.out.out(piece, end="", highlight=False)
