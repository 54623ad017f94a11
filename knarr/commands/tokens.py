"""`knarr tokens …`: who may do what over HTTP."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from knarr.command import Session, command, group, usage
from knarr.terminal import escape, styled, table

tokens = group("Tokens: who may do what, for which teams, until when.")

_DURATION = re.compile(r"(\d{1,5})([hdwy])", re.ASCII)
_HOURS = {"h": 1, "d": 24, "w": 24 * 7, "y": 24 * 365}


@command(
    tokens,
    "create",
    examples=[
        "knarr tokens create ci --scope read --scope deploy",
        "knarr tokens create shop-ci --team shop --scope deploy --expires 30d",
        "knarr tokens create watcher --scope read --scope platform --expires never",
    ],
)
def create_token(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called.", show_default=False)],
    *,
    team: Annotated[
        list[str] | None,
        typer.Option("--team", help="Whose rows it sees; the first one owns what it creates. [default: your own]"),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            help="read, deploy, admin (both, and tokens of the team), reveal (values of config vars), "
            "platform (for every team). [default: read]",
        ),
    ] = None,
    expires: Annotated[str, typer.Option("--expires", help="Such as 12h, 30d, 1y, or never.")] = "90d",
) -> None:
    """Make a token and print it. It is shown once: only its digest is kept."""
    body = {
        "name": name,
        "teams": list(team or ()),
        "scopes": list(scope or ("read",)),
        "expires_at": _expiry(expires),
    }
    made = session.platform.post("webhook", "/tokens", body)
    until = f"until {made['expires_at']}" if made["expires_at"] else "without an end"
    session.terminal.say(
        f"[quiet]{escape(made['name'])} may {', '.join(made['scopes'])} for {', '.join(made['teams'])}, {until}. "
        "Keep it: it is not shown again.[/]"
    )
    session.terminal.data(made, styled(made["token"]))


@command(tokens, "list", examples=["knarr tokens list", "knarr tokens list --json"])
def list_tokens(session: Session) -> None:
    """Tokens with their teams, scopes and expiry, also those that have expired."""
    found = session.platform.get("webhook", "/tokens")["items"]
    now = datetime.now(UTC)
    rows = [
        (
            styled(each["name"], "name"),
            ", ".join(each["teams"]),
            ", ".join(each["scopes"]),
            _shown_expiry(each["expires_at"], now),
            each["created_by"],
            each["created_at"],
        )
        for each in found
    ]
    columns = ("NAME", "TEAMS", "SCOPES", "EXPIRES", "BY", "CREATED")
    empty = "There is no token besides the operator's. Make one: knarr tokens create ci --scope deploy"
    session.terminal.data(found, table(columns, rows, empty=empty))


@command(tokens, "revoke", examples=["knarr tokens revoke ci"])
def revoke_token(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name or id.", show_default=False)],
) -> None:
    """Make a token useless. All services refuse it within seconds."""
    if not re.fullmatch(r"[\w.-]{1,100}", name, re.ASCII):
        raise usage(f"{name[:60]!r} is no name of a token", todo="Run `knarr tokens list` to list the tokens.")
    session.platform.delete("webhook", f"/tokens/{name}")
    session.terminal.data({"revoked": name}, styled(f"The token {name} is revoked."))


def _expiry(text: str) -> str | None:
    if text == "never":
        return None
    match = _DURATION.fullmatch(text)
    if match is None:
        raise usage(
            f"--expires: {text[:60]!r} is no time", todo="Write a number with h, d, w or y, such as 30d, or never."
        )
    hours = int(match[1]) * _HOURS[match[2]]
    return (datetime.now(UTC) + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _shown_expiry(at: str | None, now: datetime) -> str:
    if at is None:
        return "never"
    return f"{at} (expired)" if datetime.fromisoformat(at) <= now else at
