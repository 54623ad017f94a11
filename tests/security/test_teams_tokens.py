"""Granted tokens: never more than the grantor has, known to all services within seconds, useless once revoked."""

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import SecretStr

from seedwork.access import Caller
from seedwork.chassis.auth import Auth, Known, digest_of
from seedwork.chassis.service import Service
from seedwork.chassis.settings import ServiceSettings
from seedwork.errors import Unauthenticated, Unavailable
from seedwork.testing.http import running
from services.webhook.models import access_tokens
from tests.security.house import OPERATOR, House
from tests.seedwork.chassis.conftest import MIGRATIONS, VirtualClock
from tests.seedwork.chassis.dummy import models

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("house")]

CI = Known(digest=digest_of("ci-token"), caller=Caller("ci", "acme", frozenset({"read"})))


async def _grant(platform: House, token: str, **body: Any) -> int:
    return (await platform.ask("webhook", "POST", "/tokens", token, json={"name": "more", **body})).status_code


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"scopes": ["platform"]}, 403),
        ({"scopes": ["reveal"]}, 403),
        ({"scopes": ["service"]}, 400),
        ({"scopes": ["everything"]}, 400),
        ({"scopes": []}, 400),
        ({"teams": ["default"]}, 403),
        ({"teams": ["acme", "default"]}, 403),
        ({"teams": ["staging"]}, 400),
        ({"teams": ["../acme"]}, 400),
        ({"name": "local"}, 400),
        ({"name": "service"}, 400),
        ({"name": "../x"}, 400),
        ({"expires_at": "2001-01-01T00:00:00Z"}, 400),
        ({"expires_at": "9999-01-01T00:00:00Z"}, 400),
        ({"hash": "0" * 64}, 400),
        ({"scopes": ["read", "deploy", "admin"]}, 201),
    ],
)
async def test_a_grant_never_exceeds_its_grantor(platform: House, body: dict[str, Any], status: int) -> None:
    """Neither by a scope, nor by a team, nor by a name that is taken for somebody else's."""
    admin = await platform.token(f"admin-{abs(hash(str(body)))}", teams=["acme"], scopes=["admin"])
    assert await _grant(platform, admin, **body) == status


async def test_the_secret_is_shown_once_and_only_its_digest_is_kept(platform: House) -> None:
    """Not in a list, and not in a file of the home."""
    token = await platform.token("once", teams=["acme"], scopes=["read"])
    listed = (await platform.ask("webhook", "GET", "/tokens", OPERATOR)).text
    assert "once" in listed
    assert token not in listed
    assert digest_of(token) not in listed
    folder = platform.service("webhook").home
    assert not [path for path in folder.iterdir() if path.is_file() and token.encode() in path.read_bytes()]


async def test_tokens_of_other_teams_are_neither_listed_nor_revoked(platform: House) -> None:
    """Nor those for every team; the answer is that of a name that does not exist."""
    await platform.token("theirs", teams=["acme", "others"], scopes=["read"])
    await platform.token("wide", teams=["acme"], scopes=["read", "platform"])
    admin = await platform.token("boss", teams=["acme"], scopes=["admin"])
    names = [each["name"] for each in (await platform.ask("webhook", "GET", "/tokens", admin)).json()["items"]]
    assert "boss" in names
    assert not {"theirs", "wide"} & set(names)
    answers = [await platform.ask("webhook", "DELETE", f"/tokens/{name}", admin) for name in ("theirs", "wide", "none")]
    texts = {each.text.replace(name, "X") for each, name in zip(answers, ("theirs", "wide", "none"), strict=True)}
    assert len(texts) == 1
    assert {each.status_code for each in answers} == {404}


async def test_a_token_of_two_teams_sees_both(platform: House) -> None:
    """The first one owns what it creates."""
    both = await platform.token("both", teams=["left", "right"], scopes=["read", "deploy"])
    right = await platform.token("right", teams=["right"], scopes=["read", "deploy"])
    for token, name in ((both, "of-left"), (right, "of-right")):
        assert (await platform.ask("webhook", "POST", "/apps", token, json={"name": name})).status_code == 201
    shown = {
        name: [
            (each["name"], each["team"])
            for each in (await platform.ask("webhook", "GET", "/apps", token)).json()["items"]
        ]
        for name, token in (("both", both), ("right", right))
    }
    assert shown == {"both": [("of-left", "left"), ("of-right", "right")], "right": [("of-right", "right")]}


async def test_every_service_knows_a_new_token_and_forgets_a_revoked_one(platform: House) -> None:
    """Without a restart; here the seconds between two looks are left out."""
    routes = {"webhook": "/apps", "registry": "/images", "deployer": "/storage", "saga_coordinator": "/sagas"}
    token = await platform.token("passing", teams=["acme"], scopes=["read"])

    async def statuses() -> set[int]:
        return {(await platform.ask(name, "GET", path, token)).status_code for name, path in routes.items()}

    assert await statuses() == {200}
    assert (await platform.ask("webhook", "DELETE", "/tokens/passing", OPERATOR)).status_code == 204
    platform.look_again()
    assert await statuses() == {401}


class Answering:
    """The service that stores tokens: it answers, or does not."""

    def __init__(self) -> None:
        self.rows: Sequence[Known] = [CI]
        self.asked = 0
        self.up = True

    async def __call__(self) -> Sequence[Known]:
        self.asked += 1
        if not self.up:
            raise Unavailable("webhook cannot be reached")
        return self.rows


@pytest.fixture
def away(tmp_path: Any) -> tuple[Service, Answering, VirtualClock]:
    clock = VirtualClock()
    settings = ServiceSettings(home=tmp_path, token=SecretStr("operator"))
    service = Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS, clock=clock)
    granted = Answering()
    service.auth.read_granted_by(granted)
    return service, granted, clock


async def test_known_tokens_outlive_the_service_that_stores_them_for_a_minute(
    away: tuple[Service, Answering, VirtualClock],
) -> None:
    """Unknown ones are refused at once, and the operator's token always works."""
    service, granted, clock = away
    auth: Auth = service.auth
    async with running(service.app):
        assert (await auth.caller("ci-token")).team == "acme"
        granted.up = False
        clock.advance(59)
        assert (await auth.caller("ci-token")).team == "acme"
        with pytest.raises(Unauthenticated):
            await auth.caller("another")
        clock.advance(5.1)
        with pytest.raises(Unauthenticated):
            await auth.caller("ci-token")
        assert (await auth.caller("operator")).name == "local"
        granted.up = True
        clock.advance(0.6)
        assert (await auth.caller("ci-token")).team == "acme"


async def test_guessing_asks_twice_a_second_at_most(away: tuple[Service, Answering, VirtualClock]) -> None:
    """A hundred wrong tokens cost one question, also while nothing answers."""
    service, granted, clock = away
    async with running(service.app):
        for granted.up in (True, False):
            clock.advance(0.5)
            before = granted.asked
            for number in range(100):
                with pytest.raises(Unauthenticated):
                    await service.auth.caller(f"guess {number}")
            assert granted.asked - before <= 1


async def test_an_expired_token_is_refused_with_its_name(away: tuple[Service, Answering, VirtualClock]) -> None:
    """Whoever holds it reads why it does not work any more."""
    service, granted, clock = away
    granted.rows = [Known(digest=CI.digest, caller=CI.caller, expires_ms=clock.now_ms() + 1000)]
    async with running(service.app):
        assert (await service.auth.caller("ci-token")).name == "ci"
        clock.advance(1)
        with pytest.raises(Unauthenticated, match="'ci' expired"):
            await service.auth.caller("ci-token")


async def test_the_table_has_no_column_for_a_secret() -> None:
    """The digest is all that is kept."""
    assert {each.name for each in access_tokens.columns} == {
        "token_id", "name", "team", "more_teams", "scopes", "hash", "created_ms", "created_by", "expires_ms",
    }  # fmt: skip
