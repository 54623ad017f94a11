from collections.abc import Sequence

import httpx2
import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import Scope
from seedwork.adapters.in_process import InProcessBus
from seedwork.chassis.service import Service
from seedwork.chassis.settings import ServiceSettings
from seedwork.messages import Catalog, Envelope, new_id
from seedwork.participant import Work
from seedwork.testing.http import running
from tests.seedwork.chassis.conftest import MIGRATIONS, TOKEN
from tests.seedwork.chassis.dummy import models
from tests.seedwork.chassis.dummy.contract import MakeThing, ThingFailed, ThingMade, ThingWanted


class Market:
    """A service that wants things, and refuses them at first."""

    def __init__(self, settings: ServiceSettings, catalog: Catalog | None = None) -> None:
        self.bus = InProcessBus()
        self.service = Service(
            "builder", settings, metadata=models.metadata, migrations=MIGRATIONS, bus=self.bus, catalog=catalog
        )
        self.service.participant.on(ThingWanted, self.want)
        self.service.participant.step(MakeThing, self.make, ok=ThingMade, failed=ThingFailed)
        self.open = False
        self.wanted: list[str] = []
        self.published: list[Envelope] = []

    async def want(self, _event: ThingWanted, envelope: Envelope, _conn: AsyncConnection) -> None:
        if not self.open:
            raise ValueError("the market is closed")
        self.wanted.append(envelope.id)

    async def make(self, command: MakeThing, *, work: Work) -> ThingMade:
        raise AssertionError(command, work)

    async def listen(self) -> None:
        """Hear commands in place of the participant, and what everybody hears."""

        async def hear(envelopes: Sequence[Envelope]) -> None:
            self.published.extend(envelopes)

        await self.bus.subscribe("listener", [ThingMade, ThingWanted], hear)
        await self.bus.open()


@pytest.fixture
def market(settings: ServiceSettings) -> Market:
    return Market(settings)


async def _letters(client: httpx2.AsyncClient) -> list[dict[str, object]]:
    return list((await client.get("/dead-letters")).json()["items"])


async def test_an_event_is_sent_with_what_the_body_says(market: Market) -> None:
    """And the rest from the example."""
    async with running(market.service.app, token=TOKEN) as client:
        await market.listen()
        saga_id, app_id = new_id(), new_id()
        body = {"saga_id": saga_id, "app_id": app_id, "step": "build", "attempt": 3, "data": {"size": 9}}
        sent = await client.post("/test/events/ThingMade", json=body)
        bare = await client.post("/test/events/ThingMade")
    assert (sent.status_code, sent.json()["status"]) == (200, "ok")
    first, second = market.published
    assert (first.id, first.correlationid, first.appid) == (sent.json()["message_id"], saga_id, app_id)
    assert (first.sagastep, first.sagaattempt, first.data, first.team) == ("build", 3, {"size": 9}, "default")
    assert (second.id, second.data) == (bare.json()["message_id"], {"size": 1})
    assert first.traceparent


async def test_only_messages_of_this_service_and_of_their_kind_can_be_sent(market: Market) -> None:
    """The answer lists what there is."""
    async with running(market.service.app, token=TOKEN) as client:
        unknown = await client.post("/test/commands/LaunchRocket")
        assert unknown.status_code == 404
        assert "MakeThing" in unknown.json()["detail"]
        assert (await client.post("/test/commands/ThingMade")).status_code == 404
        assert (await client.post("/test/events/MakeThing")).status_code == 404


async def test_a_catalog_adds_messages_that_no_handler_takes(settings: ServiceSettings) -> None:
    """The coordinator takes its events in a loop of its own."""

    class RocketLaunched(ThingMade):
        """Only in the catalog."""

    market = Market(settings, Catalog([RocketLaunched]))
    async with running(market.service.app, token=TOKEN) as client:
        await market.listen()
        assert (await client.post("/test/events/RocketLaunched")).status_code == 200


async def test_wrong_data_is_refused_before_it_is_sent(market: Market) -> None:
    """With the field's name; neither unknown members of the body."""
    async with running(market.service.app, token=TOKEN) as client:
        await market.listen()
        wrong = await client.post("/test/events/ThingMade", json={"data": {"size": "big"}})
        assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid")
        assert "data.size" in wrong.json()["detail"]
        assert (await client.post("/test/events/ThingMade", json={"saga": "typo"})).status_code == 400
    assert market.published == []


async def test_they_are_off_unless_turned_on(settings: ServiceSettings) -> None:
    """There are no such routes: a 404 like for any other path, with or without a token."""
    market = Market(settings.model_copy(update={"test_endpoints": False}))
    async with running(market.service.app, token=TOKEN) as client:
        await market.listen()
        response = await client.post("/test/events/ThingMade")
        assert response.status_code == 404
        assert (await client.post("/test/events/ThingMade", headers={"Authorization": "x"})).status_code == 404
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert not [path for path in paths if path.startswith("/test")]
    assert market.published == []


@pytest.mark.parametrize("scopes", [("read", "deploy"), ("admin",), ("deploy", "platform")])
async def test_they_need_an_administrator_of_every_team(market: Market, scopes: tuple[Scope, ...]) -> None:
    """A message made by hand can name the apps, sagas and images of any team."""
    async with running(market.service.app) as client:
        await market.service.auth.make_known("ci", SecretStr("ci"), team="a", scopes=scopes)
        assert (await client.post("/test/events/ThingMade")).status_code == 401
        headers = {"Authorization": "Bearer ci"}
        assert (await client.post("/test/events/ThingMade", headers=headers)).status_code == 403


async def test_a_message_that_nobody_could_handle_is_kept_and_can_be_sent_again(market: Market) -> None:
    """When the cause is gone it is handled, under the same id, once."""
    async with running(market.service.app, token=TOKEN) as client:
        await market.listen()
        sent = (await client.post("/test/events/ThingWanted")).json()
        (letter,) = await _letters(client)
        assert letter["type"] == "ThingWanted"
        assert letter["saga_id"] == sent["saga_id"]
        assert letter["error"] == "ValueError: the market is closed"
        assert letter["resent_at"] is None
        market.open = True
        resent = await client.post(f"/dead-letters/{letter['id']}/resend")
        assert resent.status_code == 200
        assert resent.json()["resent_at"] is not None
        assert market.wanted == [sent["message_id"]]
        assert (await _letters(client))[0]["resent_at"] == resent.json()["resent_at"]


async def test_a_message_that_fails_again_is_a_dead_letter_again(market: Market) -> None:
    """One row, not marked as sent: it still waits for somebody."""
    async with running(market.service.app, token=TOKEN) as client:
        await market.listen()
        await client.post("/test/events/ThingWanted")
        (letter,) = await _letters(client)
        before_ms = await market.service.db.now_ms()
        while await market.service.db.now_ms() == before_ms:
            continue  # until the next millisecond of the database's clock
        assert (await client.post(f"/dead-letters/{letter['id']}/resend")).json()["resent_at"] is None
        (again,) = await _letters(client)
        assert (again["id"], again["resent_at"]) == (letter["id"], None)
        market.open = True
        await client.post(f"/dead-letters/{letter['id']}/resend")
        assert len(market.wanted) == 1


async def test_dead_letters_come_in_pages_newest_first(market: Market) -> None:
    """As every list."""
    async with running(market.service.app, token=TOKEN) as client:
        await market.listen()
        sent = [(await client.post("/test/events/ThingWanted")).json()["saga_id"] for _ in range(5)]
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            params = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
            page = (await client.get("/dead-letters", params=params)).json()
            seen += [each["saga_id"] for each in page["items"]]
            cursor = page["next_cursor"]
    assert seen == sent[::-1]


async def test_a_dead_letter_that_does_not_exist_cannot_be_sent(market: Market) -> None:
    """A 404 that says where to look."""
    async with running(market.service.app, token=TOKEN) as client:
        response = await client.post(f"/dead-letters/{new_id()}/resend")
        assert response.status_code == 404
        assert "`knarr dead-letters --service SERVICE`" in response.json()["detail"]
