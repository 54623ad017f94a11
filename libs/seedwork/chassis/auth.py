"""Who is calling, and what they may do.

Callers show `Authorization: Bearer …`. A token is the operator's (a setting), the one that services share (a setting),
or a granted one (`knarr tokens create`): a row with teams, scopes, an expiry and the SHA-256 of the token, so that a
reader of the database learns no token. Granted tokens are stored by one service; the others read them over HTTP. Rows
are kept in memory for a few seconds, so that a request costs no query; a revoked token may pass until then.

    @router.get("/apps")
    async def apps(caller: Annotated[Caller, Depends(require("read"))]) -> ...
        rows = await queries.apps(conn, caller.access)
"""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, get_args

import structlog
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import OPERATOR, Caller, Scope
from seedwork.clock import Clock
from seedwork.errors import KnarrError, NotAllowed, Unauthenticated
from seedwork.messages import rfc3339_ms
from seedwork.tables import KernelTables
from seedwork.unit_of_work import Database, database_now_ms

__all__ = ["Auth", "Caller", "Known", "Scope", "digest_of", "require"]

OPERATOR_NAME = "local"
"""Name of the operator's token; no granted token has it."""
SERVICE_NAME = "service"
"""Name of the token that services share; no granted token has it."""

_FRESH_MS = 5_000
"""Age in milliseconds up to which rows are used as they are: bounds how long a revoked token passes."""
_RELOAD_MS = 500
"""Age in milliseconds from which an unknown token makes rows be read again: a new one works at once, and guessing
costs two reads a second."""
_STALE_MS = 60_000
"""Age in milliseconds up to which granted tokens are used while the service that stores them does not answer."""
_ASK_S = 2.0
"""Seconds that this service waits for the granted tokens; requests with such tokens wait as long."""

_BEARER = HTTPBearer(
    auto_error=False, description="A token of this installation; `knarr up` writes one to `<home>/token`."
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A token that is known here, by its digest."""

    digest: str
    """SHA-256 in hex."""
    caller: Caller
    expires_ms: int | None = None
    """Milliseconds since 1970; None: it does not expire."""


Granted = Callable[[], Awaitable[Sequence[Known]]]
"""Reads all granted tokens; raises `KnarrError` where they cannot be read now."""


class Auth:
    """The tokens of one service.

    Args:
        db: The service's database.
        tables: The kernel's tables in it.
        service_token: What services show each other; None: no caller is taken for a service.
        clock: For the age of the rows in memory, and for expiry.
        operator_token: The operator's; None: there is none.
        team: The operator's team.
        granted: Reads the tokens that were granted; None: `read_granted_by` names it, or there are none.
    """

    def __init__(
        self,
        db: Database,
        tables: KernelTables,
        *,
        service_token: SecretStr | None,
        clock: Clock,
        operator_token: SecretStr | None = None,
        team: str = "default",
        granted: Granted | None = None,
    ) -> None:
        self._db = db
        self._tokens = tables.tokens
        self._settings = [
            *_from_setting(service_token, Caller(SERVICE_NAME, "default", frozenset({"service"}))),
            *_from_setting(operator_token, Caller(OPERATOR_NAME, team, frozenset(OPERATOR))),
        ]
        self._clock = clock
        self._granted = granted
        self._rows: Sequence[Known] = ()
        self._granted_rows: Sequence[Known] = ()
        self._granted_ms: int | None = None
        self._read_ms: int | None = None
        self._reading = asyncio.Lock()

    def read_granted_by(self, granted: Granted) -> None:
        """Read granted tokens this way from now on."""
        self._granted = granted
        self.forget()

    async def caller(self, token: str) -> Caller:
        """Return who holds this token.

        Raises:
            Unauthenticated: It is not known, or has expired.
        """
        digest = digest_of(token)
        found = _find(self._settings, digest)
        if found is None:
            await self._load(_FRESH_MS)
            found = self._find(digest)
        if found is None:
            await self._load(_RELOAD_MS)
            found = self._find(digest)
        if found is None:
            raise self.refused("The token is not known here")
        if found.expires_ms is not None and found.expires_ms <= self._clock.now_ms():
            raise self.refused(f"The token {found.caller.name!r} expired at {rfc3339_ms(found.expires_ms)}")
        return found.caller

    def refused(self, what: str) -> Unauthenticated:
        """Return the error of a caller without a valid token. It names no path of the machine."""
        return Unauthenticated(
            what,
            why="this needs `Authorization: Bearer <token>`",
            todo="Set KNARR_TOKEN to a valid token: `knarr tokens create NAME` makes one, `knarr doctor` checks it.",
        )

    async def make_known(self, name: str, token: SecretStr, *, team: str, scopes: Iterable[Scope]) -> None:
        """Store a token in this service's own table under that name, in place of the one that had it."""
        digest = digest_of(token.get_secret_value())
        tokens = self._tokens

        async def store(conn: AsyncConnection) -> None:
            await conn.execute(delete(tokens).where((tokens.c.name == name) | (tokens.c.hash == digest)))
            row = {"name": name, "team": team, "scopes": " ".join(sorted(scopes)), "hash": digest}
            await conn.execute(insert(tokens).values(**row, created_ms=await database_now_ms(conn)))

        await self._db.write(store)
        self.forget()

    async def revoke(self, name: str) -> None:
        """Delete the token of that name from this service's own table."""

        async def drop(conn: AsyncConnection) -> None:
            await conn.execute(delete(self._tokens).where(self._tokens.c.name == name))

        await self._db.write(drop)
        self.forget()

    def forget(self) -> None:
        """Read the rows at the next request."""
        self._read_ms = None

    def _find(self, digest: str) -> Known | None:
        return _find((*self._rows, *self._granted_rows), digest)

    async def _load(self, max_age_ms: int) -> None:
        async with self._reading:
            now_ms = self._clock.now_ms()
            if self._read_ms is not None and now_ms - self._read_ms < max_age_ms:
                return
            self._rows = await self._db.read(self._read)
            await self._load_granted()
            self._read_ms = self._clock.now_ms()

    async def _load_granted(self) -> None:
        """Read granted tokens; while they cannot be read, those from before stay for a bounded time."""
        if self._granted is None:
            return
        try:
            async with asyncio.timeout(_ASK_S):
                self._granted_rows = await self._granted()
            self._granted_ms = self._clock.now_ms()
        except (KnarrError, TimeoutError) as error:
            why = error.message if isinstance(error, KnarrError) else f"no answer within {_ASK_S} s"
            stale = self._granted_ms is None or self._clock.now_ms() - self._granted_ms >= _STALE_MS
            if stale:
                self._granted_rows = ()
            log.warning("auth.granted_tokens_unavailable", why=why, kept=len(self._granted_rows))

    async def _read(self, conn: AsyncConnection) -> Sequence[Known]:
        rows = (await conn.execute(select(self._tokens))).all()
        return [
            Known(digest=row.hash, caller=Caller(row.name, row.team, frozenset(row.scopes.split())))
            for row in rows
            if row.name != OPERATOR_NAME  # a row of earlier versions: the setting counts
        ]


def _from_setting(token: SecretStr | None, caller: Caller) -> list[Known]:
    """Return the token of a setting; an empty one is none."""
    text = token.get_secret_value() if token else ""
    return [Known(digest=digest_of(text), caller=caller)] if text else []


def _find(known: Iterable[Known], digest: str) -> Known | None:
    """Compare with every row in constant time, so that the time taken tells nothing."""
    found = None
    for each in known:
        if hmac.compare_digest(digest, each.digest):
            found = each
    return found


def digest_of(token: str) -> str:
    """SHA-256 in hex. Enough for tokens of 128 random bits and more, which cannot be guessed from a dictionary."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def require(*scopes: Scope) -> Callable[..., Awaitable[Caller]]:
    """Return a dependency that lets only callers with all those scopes in: `Depends(require("read"))`.

    Raises:
        ValueError: No scope is named, or there is no such scope; raised when the route is made.
    """
    if not scopes or not set(scopes) <= set(get_args(Scope)):
        raise ValueError(f"these are no scopes: {scopes!r}")

    async def authenticated(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> Caller:
        auth: Auth = request.app.state.auth
        if credentials is None:
            raise auth.refused("No token was shown")
        caller = await auth.caller(credentials.credentials)
        for scope in scopes:
            if not caller.may(scope):
                raise NotAllowed(
                    f"The token {caller.name!r} may not do this",
                    why=f"it has the scopes {', '.join(sorted(caller.scopes)) or 'none'}, and this needs {scope!r}",
                    todo="Use a token that has it.",
                )
        return caller

    return authenticated
