"""Granted tokens on their way from the service that stores them to the others: digests, never secrets."""

from collections.abc import Sequence

import httpx2
from pydantic import BaseModel, Field, ValidationError

from seedwork.access import Caller
from seedwork.chassis.auth import Known
from seedwork.chassis.http import raise_for_problem
from seedwork.errors import Unavailable

PATH = "/tokens/granted"


class GrantedToken(BaseModel):
    """What another service needs to know a token."""

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: str
    teams: tuple[str, ...] = Field(min_length=1)
    scopes: tuple[str, ...]
    expires_ms: int | None


class GrantedTokens(BaseModel):
    """All of them: they are few."""

    items: list[GrantedToken]


class RemoteTokens:
    """Reads granted tokens from the service that stores them.

    Args:
        client: Its base URL is that service; it shows the service token.
    """

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    async def __call__(self) -> Sequence[Known]:
        """Return all granted tokens.

        Raises:
            Unavailable: The service does not answer, or not as agreed.
            FinalError: It refuses, for example because its service token is another one.
        """
        response = raise_for_problem(await self._client.get(PATH))
        try:
            return [_known(each) for each in GrantedTokens.model_validate_json(response.content).items]
        except ValidationError as error:
            raise Unavailable(
                "The granted tokens cannot be read", why=f"{error.error_count()} fields are wrong"
            ) from None


def shown(known: Known) -> GrantedToken:
    """Return the token as it travels."""
    caller = known.caller
    return GrantedToken(
        digest=known.digest,
        name=caller.name,
        teams=(caller.team, *sorted(caller.more_teams)),
        scopes=tuple(sorted(caller.scopes)),
        expires_ms=known.expires_ms,
    )


def _known(token: GrantedToken) -> Known:
    team, *others = token.teams
    scopes = frozenset(token.scopes) - {"service"}
    return Known(
        digest=token.digest, caller=Caller(token.name, team, scopes, frozenset(others)), expires_ms=token.expires_ms
    )
