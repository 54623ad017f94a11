"""`knarr config …`: config vars of an app. A change makes a release of its own; values are shown masked."""

from typing import Annotated

import typer
from rich.text import Text

from knarr.command import AppName, Session, TimeoutOption, WaitOption, command, group, usage
from knarr.commands.outcome import finish
from knarr.terminal import table
from seedwork.errors import NotFound

config = group("Config vars, secrets included.")

RevealOption = Annotated[bool, typer.Option("--reveal", help="Show values (needs the right `admin`).")]


@command(config, "list", examples=["knarr config list shop", "knarr config list shop --reveal --json"])
def list_config(session: Session, app: AppName, reveal: RevealOption = False) -> None:
    """Every config var of an app, values masked."""
    values = session.platform.get("deployer", f"/apps/{app}/config", reveal=1 if reveal else None)
    rows = [(Text(name, style="name"), value) for name, value in sorted(values.items())]
    session.terminal.data(values, table(("NAME", "VALUE"), rows, empty=f"{app} has no config vars."))


@command(config, "get", examples=["knarr config get shop DATABASE_URL"])
def get(
    session: Session, app: AppName, name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
) -> None:
    """One value, not masked: for scripts."""
    values = session.platform.get("deployer", f"/apps/{app}/config", reveal=1)
    if name not in values:
        raise NotFound(f"{app} has no config var {name}", todo=f"See all: knarr config list {app}")
    session.terminal.data({name: values[name]}, Text(values[name]))


@command(
    config, "set", examples=["knarr config set shop GREETING=hello LIMIT=10", "knarr config set shop KEY=@key.pem"]
)
def set_config(
    session: Session,
    app: AppName,
    pairs: Annotated[list[str], typer.Argument(metavar="NAME=VALUE…", help="=@FILE reads the value from a file.")],
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Set config vars, and release the app with them."""
    _patch(session, app, dict(_pair(pair) for pair in pairs), wait=wait, timeout_s=timeout)


@command(config, "unset", examples=["knarr config unset shop LIMIT"])
def unset(
    session: Session,
    app: AppName,
    names: Annotated[list[str], typer.Argument(metavar="NAME…", show_default=False)],
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Remove config vars, and release the app without them."""
    _patch(session, app, dict.fromkeys(names), wait=wait, timeout_s=timeout)


def _patch(session: Session, app: str, changes: dict[str, str | None], *, wait: bool, timeout_s: float | None) -> None:
    answer = session.platform.patch("deployer", f"/apps/{app}/config", changes)
    if answer.get("saga_id"):
        finish(session, answer["saga_id"], wait=wait, timeout_s=timeout_s, app=app)
        return
    version = answer.get("config_version")
    session.terminal.data(answer, f"Config version {version}; the first deployment of {app} takes it.")


def _pair(pair: str) -> tuple[str, str]:
    name, found, value = pair.partition("=")
    if not found or not name:
        raise usage(f"{pair!r} names no value", todo="Write NAME=VALUE, or NAME=@FILE.")
    if not value.startswith("@"):
        return name, value
    try:
        with open(value[1:], encoding="utf-8") as file:  # noqa: PTH123  a path that the user typed
            return name, file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise usage(f"Cannot read {value[1:]}", why=str(error)) from error
