"""`knarr config …`: config vars of an app. A change makes a release of its own; values are shown masked."""

import enum
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from knarr.command import (
    AppName,
    LimitOption,
    OptionalAppName,
    Session,
    TimeoutOption,
    WaitOption,
    command,
    group,
    usage,
)
from knarr.commands.outcome import finish
from knarr.terminal import styled, table
from seedwork.errors import NotFound

config = group("Config vars, secrets included.")


class Scope(enum.StrEnum):
    """Who gets a config var."""

    BUILD = "build"
    RUN = "run"
    BOTH = "both"


ScopeOption = Annotated[
    Scope | None,
    typer.Option("--scope", help="Who gets the config vars: builds, running instances, or both (the default)."),
]
RevealOption = Annotated[bool, typer.Option("--reveal", help="Show values (needs the scope `reveal`; it is recorded).")]


@command(config, "list", examples=["knarr config list shop", "knarr config list shop --reveal --json"])
def list_config(session: Session, app: AppName, reveal: RevealOption = False) -> None:
    """Every config var of an app, values masked."""
    values = session.platform.get("deployer", f"/apps/{app}/config", reveal=1 if reveal else None)
    rows = [(styled(name, "name"), value) for name, value in sorted(values.items())]
    session.terminal.data(values, table(("NAME", "VALUE"), rows, empty=f"{app} has no config vars."))


@command(config, "audit", examples=["knarr config audit", "knarr config audit shop"])
def show_audit(session: Session, app: OptionalAppName = None, limit: LimitOption = 50) -> None:
    """Who read values of config vars, newest first (needs the scope `admin`)."""
    found = session.platform.pages("deployer", "/audit", limit=limit, app=app)
    rows = [(each["at"], styled(each["app"], "name"), each["by"], each["what"]) for each in found]
    session.terminal.data(found, table(("TIME", "APP", "BY", "WHAT"), rows, empty="No value was read."))


@command(config, "get", examples=["knarr config get shop DATABASE_URL"])
def get(
    session: Session, app: AppName, name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
) -> None:
    """One value, not masked, byte for byte and with one newline after it: for scripts."""
    values = session.platform.get("deployer", f"/apps/{app}/config", reveal=1)
    if name not in values:
        raise NotFound(f"{app} has no config var {name}", todo=f"Run `knarr config list {app}` to see all")
    if session.terminal.as_json:
        session.terminal.data({name: values[name]})
        return
    sys.stdout.buffer.write(values[name].encode() + b"\n")
    sys.stdout.buffer.flush()


@command(
    config,
    "set",
    examples=[
        "knarr config set shop GREETING=hello LIMIT=10",
        "knarr config set shop KEY=@key.pem        # the content of a file",
        "knarr config set shop HANDLE=@@me         # the value @me",
        "knarr config set shop --literal HANDLE=@me",
        "knarr config set shop --scope build NEXT_PUBLIC_API=https://api.example.org",
    ],
)
def set_config(
    session: Session,
    app: AppName,
    pairs: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=VALUE…",
            help="=@FILE reads the value from a file, without one newline at its end; =@@… is a value that begins "
            "with @.",
        ),
    ],
    *,
    literal: Annotated[bool, typer.Option("--literal", help="Take each value as it is, also one with @.")] = False,
    scope: ScopeOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Set config vars, and release the app with them. The next build gets them too; see `--scope`."""
    changes = dict(_pair(pair, literal=literal) for pair in pairs)
    if scope is not None:
        wanted = dict.fromkeys(changes, scope.value)
        scoped = session.platform.patch("deployer", f"/apps/{app}/config/scopes", wanted)
        answer = session.platform.patch("deployer", f"/apps/{app}/config", changes)
        if scoped.get("changed", True) and not answer.get("changed", True):
            answer = scoped
    else:
        answer = session.platform.patch("deployer", f"/apps/{app}/config", changes)
    _show(session, app, answer, wait=wait, timeout_s=timeout)


@command(config, "unset", examples=["knarr config unset shop LIMIT"])
def unset(
    session: Session,
    app: AppName,
    names: Annotated[list[str], typer.Argument(metavar="NAME…", show_default=False)],
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Remove config vars, and release the app without them."""
    known = session.platform.get("deployer", f"/apps/{app}/config")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise NotFound(
            f"{app} has no config var {', '.join(unknown)}",
            why="nothing was changed",
            todo=f"Run `knarr config list {app}` to see all",
        )
    answer = session.platform.patch("deployer", f"/apps/{app}/config", dict.fromkeys(names))
    _show(session, app, answer, wait=wait, timeout_s=timeout)


def _show(session: Session, app: str, answer: Any, *, wait: bool, timeout_s: float | None) -> None:
    if answer.get("saga_id"):
        finish(session, answer["saga_id"], wait=wait, timeout_s=timeout_s, app=app)
        return
    version = answer.get("config_version")
    text = f"Config version {version} is stored; the next deployment of {app} uses it."
    if not answer.get("changed", True):
        text = f"Nothing changed: {app} has these values already (config version {version})."
    session.terminal.data(answer, text)


def _pair(pair: str, *, literal: bool) -> tuple[str, str]:
    name, found, value = pair.partition("=")
    if not found or not name:
        raise usage(f"{pair!r} has no value", todo="Write NAME=VALUE, or NAME=@FILE")
    if literal or not value.startswith("@"):
        return name, value
    if value.startswith("@@"):
        return name, value[1:]
    return name, _content_of(value[1:], name)


def _content_of(path: str, name: str) -> str:
    try:
        text = Path(path).expanduser().read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise usage(
            f"Cannot read the file {path}",
            why=str(why),
            todo=f"For the value @{path} itself write {name}=@@{path}, or add --literal",
        ) from error
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
