"""Who is calling, and what they may do.

Callers show `Authorization: Bearer …`. A token is either the one that services share, or a row in `tokens` with a
team, scopes and the SHA-256 of the token: whoever reads the database learns no token. Rows are kept in memory for a
few seconds, so that a request costs no query; a token that was just revoked may pass until then.

    @router.get("/apps")
    async def apps(caller: Annotated[Caller, Depends(require("read"))]) -> ...
"""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import Clock
from seedwork.errors import NotAllowed, Unauthenticated
from seedwork.tables import KernelTables
from seedwork.unit_of_work import Database, database_now_ms

Scope = Literal["read", "deploy", "admin", "service"]
"""`deploy`: apps, deployments, verbs; `admin`: everything; `service`: another service of this installation."""

_FRESH_MS = 5_000
"""How long the rows are believed: bounds how long a revoked token passes."""
_RELOAD_MS = 500
"""How often unknown tokens make us look again: a new one works at once, guessing costs two queries a second."""

_BEARER = HTTPBearer(
    auto_error=False, description="A token of this installation; `knarr up` writes one to `<home>/token`."
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a valid token."""

    name: str
    team: str
    scopes: frozenset[str]

    def may(self, scope: Scope) -> bool:
        """Whether this caller has the scope; `admin` and `service` imply all."""
        return bool(self.scopes & {scope, "admin", "service"})


@dataclass(frozen=True, slots=True)
class _Known:
    digest: str
    caller: Caller


class Auth:
    """The tokens of one service.

    Args:
        db: The service's database.
        tables: The kernel's tables in it.
        service_token: What services show each other; None: nobody is taken for a service.
        home: knarr's home, named in errors.
        clock: For the age of the rows in memory.
    """

    def __init__(
        self, db: Database, tables: KernelTables, *, service_token: SecretStr | None, home: Path, clock: Clock
    ) -> None:
        self._db = db
        self._tokens = tables.tokens
        self._service = (
            _Known(digest_of(service_token.get_secret_value()), Caller("service", "default", frozenset({"service"})))
            if service_token and service_token.get_secret_value()
            else None
        )
        self._home = home
        self._clock = clock
        self._rows: Sequence[_Known] = ()
        self._read_ms: int | None = None
        self._reading = asyncio.Lock()

    async def caller(self, token: str) -> Caller:
        """Whose token this is.

        Raises:
            Unauthenticated: Nobody's.
        """
        digest = digest_of(token)
        if self._service is not None and hmac.compare_digest(digest, self._service.digest):
            return self._service.caller
        await self._load(_FRESH_MS)
        found = self._find(digest)
        if found is None:
            await self._load(_RELOAD_MS)
            found = self._find(digest)
        if found is None:
            raise self.refused("The token is not known here")
        return found

    def refused(self, what: str) -> Unauthenticated:
        """The error of a caller without a valid token."""
        return Unauthenticated(
            what,
            why="this needs `Authorization: Bearer <token>`",
            todo=f"The operator's token is in {self._home / 'token'}; `knarr doctor` checks it.",
        )

    async def make_known(self, name: str, token: SecretStr, *, team: str, scopes: Iterable[Scope]) -> None:
        """Store a token under that name, in place of the one that had it."""
        digest = digest_of(token.get_secret_value())
        tokens = self._tokens

        async def store(conn: AsyncConnection) -> None:
            known = (await conn.execute(select(tokens).where(tokens.c.name == name))).one_or_none()
            wanted = " ".join(sorted(scopes))
            if known is not None and (known.hash, known.team, known.scopes) == (digest, team, wanted):
                return
            await conn.execute(delete(tokens).where((tokens.c.name == name) | (tokens.c.hash == digest)))
            row = {"name": name, "team": team, "scopes": wanted, "hash": digest}
            await conn.execute(insert(tokens).values(**row, created_ms=await database_now_ms(conn)))

        await self._db.write(store)
        self.forget()

    async def revoke(self, name: str) -> None:
        """Make the token of that name unknown."""

        async def drop(conn: AsyncConnection) -> None:
            await conn.execute(delete(self._tokens).where(self._tokens.c.name == name))

        await self._db.write(drop)
        self.forget()

    def forget(self) -> None:
        """Look into the database at the next request."""
        self._read_ms = None

    def _find(self, digest: str) -> Caller | None:
        """Compare with every row in constant time, so that the time taken tells nothing."""
        found = None
        for each in self._rows:
            if hmac.compare_digest(digest, each.digest):
                found = each.caller
        return found

    async def _load(self, max_age_ms: int) -> None:
        async with self._reading:
            now_ms = self._clock.now_ms()
            if self._read_ms is not None and now_ms - self._read_ms < max_age_ms:
                return
            self._rows = await self._db.read(self._read)
            self._read_ms = now_ms

    async def _read(self, conn: AsyncConnection) -> Sequence[_Known]:
        rows = (await conn.execute(select(self._tokens))).all()
        return [_Known(row.hash, Caller(row.name, row.team, frozenset(row.scopes.split()))) for row in rows]


def digest_of(token: str) -> str:
    """SHA-256 in hex. Enough for tokens of 128 random bits and more, which cannot be guessed from a dictionary."""
    return hashlib.sha256(token.encode()).hexdigest()


def require(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """A dependency that lets only callers with that scope in: `Depends(require("read"))`.

    Raises:
        ValueError: There is no such scope; said when the route is made.
    """
    if scope not in get_args(Scope):
        raise ValueError(f"no scope is called {scope!r}")

    async def authenticated(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> Caller:
        auth: Auth = request.app.state.auth
        if credentials is None:
            raise auth.refused("No token was shown")
        caller = await auth.caller(credentials.credentials)
        if not caller.may(scope):
            raise NotAllowed(
                f"The token {caller.name!r} may not do this",
                why=f"it has the scopes {', '.join(sorted(caller.scopes)) or 'none'}, and this needs {scope!r}",
                todo="Use a token that has it.",
            )
        return caller

    return authenticated
