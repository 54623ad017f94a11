"""Old bodies go; that they arrived is never forgotten."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import SystemClock
from services.webhook.models import deliveries
from services.webhook.retention import BodyRetention
from tests.services.webhook.conftest import Knarr
from tests.services.webhook.github_payloads import Webhook, push

DAY_MS = 86_400_000


async def bodies(knarr: Knarr) -> list[bool]:
    """Whether each delivery has its body, the oldest first."""

    async def look(conn: AsyncConnection) -> list[bool]:
        query = select(deliveries.c.body).order_by(deliveries.c.delivery_id)
        return [bool(row.body) for row in await conn.execute(query)]

    return await knarr.service.db.read(look)


async def test_a_body_goes_after_its_days_and_its_copy_is_a_duplicate_still(knarr: Knarr) -> None:
    """It cannot be sent again, and the answer says why; everything else about it is there."""
    await knarr.make_app()
    webhook = Webhook(push())
    started = (await knarr.send(webhook)).json()["deployments"]
    cleaning = BodyRetention(knarr.service.db, knarr.clock, keep_days=30)
    assert await cleaning.once() == 0
    knarr.clock.ahead_ms = 31 * DAY_MS
    (before,) = await knarr.deliveries()
    assert await cleaning.once() == 1
    assert await cleaning.once() == 0
    assert await bodies(knarr) == [False]
    assert await knarr.deliveries() == [before]
    response = await knarr.client.post(f"/deliveries/{before['id']}/redeliver")
    assert response.status_code == 409
    assert "KNARR_DELIVERY_BODY_KEEP_DAYS" in response.json()["detail"]
    again = (await knarr.send(webhook)).json()
    assert (again["status"], again["deployments"]) == ("duplicate", started)


async def test_all_old_bodies_go_batch_by_batch(knarr: Knarr) -> None:
    """More than fit into one; what came later stays."""
    await knarr.make_app()
    for number in range(3):
        await knarr.send(Webhook(push(message=f"push {number}")))

    async def copy(conn: AsyncConnection) -> None:
        row = dict((await conn.execute(select(deliveries).limit(1))).mappings().one())
        old = [{**row, "delivery_id": f"00000000-{number:04x}-7000-8000-000000000000"} for number in range(450)]
        await conn.execute(deliveries.insert(), old)

    await knarr.service.db.write(copy)
    assert await BodyRetention(knarr.service.db, SystemClock(), keep_days=1).once() == 450
    assert await bodies(knarr) == [False] * 450 + [True] * 3


async def test_bodies_are_kept_for_ever_where_that_is_wanted(knarr: Knarr) -> None:
    """0 days: the task ends at once."""
    await knarr.make_app()
    await knarr.send(Webhook(push()))
    knarr.clock.ahead_ms = 10_000 * DAY_MS
    await BodyRetention(knarr.service.db, knarr.clock, keep_days=0).run()
    assert await bodies(knarr) == [True]


async def test_the_service_cleans_by_itself(knarr: Knarr) -> None:
    """With the setting's days, in the background."""
    assert "bodies" in knarr.service._background
    assert knarr.app.state.bodies._keep_ms == 30 * DAY_MS
