"""Sagas belong to a team: another team's token sees, follows and moves none of them."""

from collections.abc import Callable
from typing import Any, get_args

import httpx2
import pytest
from pydantic import SecretStr

from seedwork.access import GRANTED, Scope
from seedwork.messages import new_id
from seedwork.saga import VerbName
from services.saga_coordinator.sagas import DEPLOY
from tests.services.saga_coordinator.conftest import Stage

SCOPES: tuple[Scope, ...] = tuple(each for each in GRANTED if each != "platform")


async def _token(stage: Stage, team: str, *scopes: Scope) -> dict[str, str]:
    secret = f"token-of-{team}-{'-'.join(scopes)}"
    await stage.app.state.service.auth.make_known(secret, SecretStr(secret), team=team, scopes=scopes)
    return {"Authorization": f"Bearer {secret}"}


def _without(saga_id: str, response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.text.replace(saga_id, "ID")


@pytest.mark.parametrize(
    "ask",
    [
        *(lambda client, saga_id, each=each: client.get(f"/sagas/{saga_id}{each}") for each in ("", "/log", "/stream")),
        *(lambda client, saga_id, verb=verb: client.post(f"/sagas/{saga_id}/{verb}") for verb in get_args(VerbName)),
    ],
)
async def test_another_teams_saga_is_answered_like_an_unknown_one(stage: Stage, ask: Callable[..., Any]) -> None:
    """Status and text are the same but for the id, with every scope that a team can have; and nothing moves."""
    saga_id = await stage.start(DEPLOY)
    before = await stage.until(saga_id, "SUCCEEDED")
    stage.client.headers |= await _token(stage, "others", *SCOPES)
    unknown = new_id()
    foreign = _without(saga_id, await ask(stage.client, saga_id))
    assert foreign == _without(unknown, await ask(stage.client, unknown))
    assert foreign[0] == 404
    stage.client.headers |= await _token(stage, "default", "read")
    assert await stage.get(f"/sagas/{saga_id}") == before


async def test_lists_hold_the_sagas_of_ones_own_team_only(stage: Stage) -> None:
    """By every filter; a token for every team sees all of them."""
    saga_id = await stage.start(DEPLOY)
    await stage.until(saga_id, "SUCCEEDED")
    queries: tuple[dict[str, str], ...] = ({}, {"app": "shop"}, {"state": "SUCCEEDED"})
    shown = {}
    for name, headers in (
        ("own", await _token(stage, "default", "read")),
        ("other", await _token(stage, "others", "read", "admin")),
        ("every", await _token(stage, "others", "read", "platform")),
    ):
        stage.client.headers |= headers
        shown[name] = [[each["id"] for each in (await stage.get("/sagas", **query))["items"]] for query in queries]
    assert shown == {"own": [[saga_id]] * 3, "other": [[]] * 3, "every": [[saga_id]] * 3}
