"""Granted tokens in SQL: who may do what in which teams, until when. The secret leaves once; its digest stays.

A grant never exceeds its grantor: teams that the grantor sees, scopes that the grantor has. A token whose teams the
caller does not all see is answered like an unknown one.
"""

import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import orjson
import structlog
from pydantic import SecretStr
from sqlalchemy import Row, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import GRANTED, OPERATOR, Access, Caller, Scope
from seedwork.chassis.auth import OPERATOR_NAME, SERVICE_NAME, Known, digest_of
from seedwork.clock import Clock
from seedwork.errors import Conflict, InvalidInput, NotAllowed, NotFound
from seedwork.messages import new_id, rfc3339_ms
from seedwork.unit_of_work import Database
from services.webhook.models import access_tokens

MAX_TOKENS = 2000
"""Number of tokens of an installation: every service keeps all digests in memory and compares them one by one."""
MAX_TEAMS = 20
"""Number of teams of one token."""
LONGEST_MS = 10 * 366 * 86_400_000
"""Longest time to the expiry of a token in milliseconds."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", re.ASCII)
_TEAM = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)
_NO_TEAMS = frozenset({"staging"})
"""Names of folders that image stores have besides those of teams."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a new token is to be; unchecked."""

    name: str
    teams: tuple[str, ...] = ()
    """None: the grantor's own."""
    scopes: tuple[str, ...] = ("read",)
    expires_ms: int | None = None
    """Milliseconds since 1970; None: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A granted token, without its secret."""

    token_id: str
    name: str
    teams: tuple[str, ...]
    scopes: tuple[Scope, ...]
    created_ms: int
    created_by: str
    expires_ms: int | None


class Tokens:
    """The granted tokens of this installation."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def grant(self, wanted: Grant, caller: Caller) -> tuple[Token, SecretStr]:
        """Make a token; its row and its secret, which is not kept.

        Raises:
            InvalidInput: A field is wrong.
            NotAllowed: The grantor lacks a scope or a team.
            Conflict: The team has a token of this name, or there are too many.
        """
        now_ms = self._clock.now_ms()
        teams = tuple(dict.fromkeys(wanted.teams)) or (caller.team,)
        token = Token(
            token_id=new_id(),
            name=_checked_name(wanted.name),
            teams=_checked_teams(teams, caller),
            scopes=_checked_scopes(wanted.scopes, caller),
            created_ms=now_ms,
            created_by=caller.name,
            expires_ms=_checked_expiry(wanted.expires_ms, now_ms),
        )
        secret = f"knarr_{secrets.token_urlsafe(32)}"

        async def store(conn: AsyncConnection) -> None:
            if ((await conn.execute(select(func.count()).select_from(access_tokens))).scalar_one()) >= MAX_TOKENS:
                raise Conflict("The token is not made", why=f"there are {MAX_TOKENS}", todo="Revoke some first.")
            same = (access_tokens.c.name == token.name) & (access_tokens.c.team == token.teams[0])
            if (await conn.execute(select(access_tokens.c.token_id).where(same))).one_or_none():
                raise Conflict(
                    f"The name {token.name} is taken",
                    why=f"the team {token.teams[0]} has a token of this name",
                    todo=f"Choose another name, or revoke that one: `knarr tokens revoke {token.name}`",
                )
            await conn.execute(insert(access_tokens).values(_row_of(token, digest_of(secret))))

        await self._db.write(store)
        log.info(
            "token.created", token=token.name, teams=token.teams, scopes=token.scopes, expires_ms=token.expires_ms,
            by=caller.name,
        )  # fmt: skip
        return token, SecretStr(secret)

    async def visible(self, access: Access) -> list[Token]:
        """Return the tokens whose teams the caller sees, by team and name, also expired ones."""
        rows = await self._rows()
        return [token for token, _ in rows if _sees(access, token)]

    async def revoke(self, name_or_id: str, caller: Caller) -> Token:
        """Delete a token. Services that know it refuse it within seconds.

        Raises:
            NotFound: There is no such token, or it is another team's.
            InvalidInput: Several teams have a token of that name, and none of them is the caller's.
        """

        async def drop(conn: AsyncConnection) -> Token:
            named = (access_tokens.c.name == name_or_id) | (access_tokens.c.token_id == name_or_id)
            rows = (await conn.execute(select(access_tokens).where(named))).all()
            found = [token for token in map(_token, rows) if _sees(caller.access, token)]
            found = [token for token in found if token.teams[0] == caller.team] or found
            if not found:
                raise NotFound(
                    f"There is no token {name_or_id[:60]!r}", todo="Run `knarr tokens list` to list the tokens."
                )
            if len(found) > 1:
                raise InvalidInput(f"Several teams have a token {name_or_id[:60]!r}", todo="Use the token's id.")
            await conn.execute(delete(access_tokens).where(access_tokens.c.token_id == found[0].token_id))
            return found[0]

        token = await self._db.write(drop)
        log.info("token.revoked", token=token.name, teams=token.teams, by=caller.name)
        return token

    async def known(self) -> Sequence[Known]:
        """Return all tokens as services compare them; expired ones are told apart by their expiry."""
        return [
            Known(
                digest=digest,
                caller=Caller(token.name, token.teams[0], frozenset(token.scopes), frozenset(token.teams[1:])),
                expires_ms=token.expires_ms,
            )
            for token, digest in await self._rows()
        ]

    async def _rows(self) -> list[tuple[Token, str]]:
        query = select(access_tokens).order_by(access_tokens.c.team, access_tokens.c.name)

        async def load(conn: AsyncConnection) -> list[tuple[Token, str]]:
            return [(_token(row), row.hash) for row in (await conn.execute(query)).all()]

        return await self._db.read(load)


def _sees(access: Access, token: Token) -> bool:
    """A token for every team is for callers who see every team; else all its teams must be visible."""
    if "platform" in token.scopes:
        return access.teams is None
    return all(map(access.sees, token.teams))


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name in {OPERATOR_NAME, SERVICE_NAME}:
        raise InvalidInput(
            f"name: {name[:60]!r} is no name of a token",
            todo="Use 1 to 63 lower-case letters, digits, `.`, `-` and `_`; `local` and `service` are taken.",
        )
    return name


def _checked_teams(teams: Sequence[str], caller: Caller) -> tuple[str, ...]:
    if len(teams) > MAX_TEAMS:
        raise InvalidInput(f"teams: {len(teams)} are too many", why=f"a token has {MAX_TEAMS} at most")
    for team in teams:
        if not _TEAM.fullmatch(team) or "--" in team or team in _NO_TEAMS:
            raise InvalidInput(
                f"teams: {team[:60]!r} is no name of a team",
                todo="Use 1 to 40 lower-case letters, digits and single dashes; a letter first, no dash at the end.",
            )
        if not caller.access.sees(team):
            raise NotAllowed(
                f"The token {caller.name!r} may not grant access to the team {team!r}",
                why="it is not one of its teams",
                todo="Use the token of an administrator of that team.",
            )
    return tuple(teams)


def _checked_scopes(scopes: Iterable[str], caller: Caller) -> tuple[Scope, ...]:
    wanted = sorted(set(scopes))
    known = [each for each in get_args(Scope) if each in GRANTED]
    for scope in wanted:
        if scope not in known:
            raise InvalidInput(f"scopes: {scope[:60]!r} is no scope", todo=f"Known scopes: {', '.join(known)}.")
        if not caller.may(cast("Scope", scope)):
            raise NotAllowed(
                f"The token {caller.name!r} may not grant the scope {scope!r}",
                why="it does not have it",
                todo="Use a token that has it.",
            )
    if not wanted:
        raise InvalidInput("scopes: none is named", todo=f"Known scopes: {', '.join(OPERATOR)}.")
    return tuple(cast("list[Scope]", wanted))


def _checked_expiry(expires_ms: int | None, now_ms: int) -> int | None:
    if expires_ms is not None and not now_ms < expires_ms <= now_ms + LONGEST_MS:
        raise InvalidInput(
            f"expires_at: {rfc3339_ms(max(0, min(expires_ms, now_ms + 2 * LONGEST_MS)))} is not possible",
            why="an expiry is in the future, and within ten years",
        )
    return expires_ms


def _row_of(token: Token, digest: str) -> dict[str, Any]:
    return {
        "token_id": token.token_id,
        "name": token.name,
        "team": token.teams[0],
        "more_teams": orjson.dumps(token.teams[1:]).decode(),
        "scopes": " ".join(token.scopes),
        "hash": digest,
        "created_ms": token.created_ms,
        "created_by": token.created_by,
        "expires_ms": token.expires_ms,
    }


def _token(row: Row[Any]) -> Token:
    return Token(
        token_id=row.token_id,
        name=row.name,
        teams=(row.team, *orjson.loads(row.more_teams)),
        scopes=tuple(row.scopes.split()),
        created_ms=row.created_ms,
        created_by=row.created_by,
        expires_ms=row.expires_ms,
    )
