"""Tokens over HTTP: granted, listed, revoked; and their digests, for the other services."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from seedwork.access import Caller, Scope
from seedwork.chassis.auth import Auth, require
from seedwork.chassis.granted import GrantedTokens, shown
from seedwork.chassis.paging import Page
from seedwork.messages import rfc3339_ms
from services.webhook.tokens import Grant, Token, Tokens

Admin = Annotated[Caller, Depends(require("admin"))]


class TokenWanted(BaseModel):
    """A new token."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=200)
    teams: tuple[str, ...] = Field(default=(), description="None: the team of the token that grants it.")
    scopes: tuple[str, ...] = Field(default=("read",), description="`read`, `deploy`, `admin`, `reveal`, `platform`.")
    expires_at: AwareDatetime | None = Field(default=None, description="RFC 3339; null: it does not expire.")


class ShownToken(BaseModel):
    """A token without its secret."""

    id: str
    name: str
    teams: tuple[str, ...]
    scopes: tuple[Scope, ...]
    created_at: str
    created_by: str
    """Name of the token that granted it."""
    expires_at: str | None
    """Null: it does not expire."""


class TokenWithSecret(ShownToken):
    """A token with its secret: shown once."""

    token: str


def router(tokens: Tokens, auth: Auth) -> APIRouter:
    """Return the routes of tokens; `auth` of this service knows a change at once."""
    routes = APIRouter(prefix="/tokens", tags=["tokens"])

    @routes.post("", status_code=201, summary="Grant a token")
    async def grant(wanted: TokenWanted, caller: Admin, response: Response) -> TokenWithSecret:
        """Grant a token. Its secret is in the answer, and nowhere else afterwards."""
        expires_ms = None if wanted.expires_at is None else int(wanted.expires_at.timestamp() * 1000)
        granted, secret = await tokens.grant(
            Grant(name=wanted.name, teams=wanted.teams, scopes=wanted.scopes, expires_ms=expires_ms), caller
        )
        auth.forget()
        response.headers["Cache-Control"] = "no-store"
        return TokenWithSecret(**_shown(granted).model_dump(), token=secret.get_secret_value())

    @routes.get("", summary="The tokens of the caller's teams")
    async def listed(caller: Admin) -> Page[ShownToken]:
        return Page(items=[_shown(each) for each in await tokens.visible(caller.access)])

    @routes.delete("/{token}", status_code=204, summary="Revoke a token, by its name or id")
    async def revoke(token: str, caller: Admin) -> None:
        await tokens.revoke(token, caller)
        auth.forget()

    @routes.get(
        "/granted", summary="Digests of all tokens, for the other services", dependencies=[Depends(require("service"))]
    )
    async def granted() -> GrantedTokens:
        return GrantedTokens(items=[shown(each) for each in await tokens.known()])

    return routes


def _shown(token: Token) -> ShownToken:
    return ShownToken(
        id=token.token_id,
        name=token.name,
        teams=token.teams,
        scopes=token.scopes,
        created_at=rfc3339_ms(token.created_ms),
        created_by=token.created_by,
        expires_at=None if token.expires_ms is None else rfc3339_ms(token.expires_ms),
    )
