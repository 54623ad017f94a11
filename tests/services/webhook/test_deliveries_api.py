"""`/deliveries`: what arrived, what became of it, and sending it again."""

from pathlib import Path

from tests.services.webhook.conftest import Knarr, running
from tests.services.webhook.github_payloads import COMMIT, Webhook, ping, push

NEXT = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"


async def test_deliveries_are_listed_newest_first_in_pages(knarr: Knarr) -> None:
    """Each exactly once."""
    await knarr.make_app()
    ids = []
    for index in range(5):
        webhook = Webhook(push(message=f"push {index}"))
        await knarr.send(webhook)
        ids.append(webhook.delivery_id)
    seen, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await knarr.client.get("/deliveries", params=params)).json()
        seen += [each["provider_id"] for each in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]


async def test_one_delivery_is_shown_as_in_the_list(knarr: Knarr) -> None:
    """The shape is the documented one."""
    await knarr.make_app()
    await knarr.send(Webhook(push()))
    (listed,) = await knarr.deliveries()
    shown = (await knarr.client.get(f"/deliveries/{listed['id']}")).json()
    assert shown == listed
    assert set(shown) == {
        "id",
        "provider_id",
        "event",
        "repository",
        "ref",
        "received_at",
        "status",
        "reason",
        "deployments",
    }
    assert (await knarr.client.get("/deliveries/nothing")).status_code == 404


async def test_sending_again_starts_a_new_linked_deployment(knarr: Knarr) -> None:
    """Deliberate: no duplicate, and also when it is older than what is live."""
    await knarr.make_app()
    first = (await knarr.send(Webhook(push()))).json()["deployments"][0]
    await knarr.send(Webhook(push(after=NEXT)))
    path = f"/deliveries/{(await knarr.deliveries())[1]['id']}"
    response = await knarr.client.post(f"{path}/redeliver")
    assert response.status_code == 202
    again = response.json()
    assert again["id"] == again["saga_id"] == again["deployments"][0] != first
    assert response.headers["Location"].endswith(f"/sagas/{again['id']}")
    told = (await knarr.events("DeploymentRequested", 3))[2]
    expected = {"parent_id": first, "commit": COMMIT, "force": True, "requested_by": "local", "number": 3}
    assert expected.items() <= told.data.items()
    assert (await knarr.client.get(path)).json()["deployments"] == [first, again["id"]]
    third = (await knarr.client.post(f"{path}/redeliver")).json()
    assert (await knarr.events("DeploymentRequested", 4))[3].data["parent_id"] == again["id"]
    assert (await knarr.client.get(path)).json()["deployments"] == [first, again["id"], third["id"]]
    duplicate = (await knarr.send(Webhook(push()))).json()
    assert (duplicate["status"], duplicate["deployments"]) == ("duplicate", [first])


async def test_a_delivery_that_came_before_its_app_can_be_caught_up(knarr: Knarr) -> None:
    """It was ignored; sent again it is accepted, and GitHub's own copy of it is a duplicate from then on."""
    await knarr.make_app("blog", repository="acme/blog")
    assert (await knarr.send(Webhook(push()))).json()["status"] == "ignored"
    await knarr.make_app()
    (delivery,) = await knarr.deliveries()
    started = (await knarr.client.post(f"/deliveries/{delivery['id']}/redeliver")).json()["deployments"]
    shown = (await knarr.client.get(f"/deliveries/{delivery['id']}")).json()
    assert (shown["status"], shown["reason"], shown["deployments"]) == ("accepted", None, started)
    again = (await knarr.send(Webhook(push()))).json()
    assert (again["status"], again["deployments"]) == ("duplicate", started)


async def test_sending_again_works_after_the_secret_was_rotated(knarr: Knarr) -> None:
    """It was verified when it arrived; an app that it never reached needs the secret, though."""
    await knarr.make_app()
    await knarr.send(Webhook(push()))
    await knarr.client.patch("/apps/shop", json={"webhook_secret": None})
    await knarr.make_app("shop-two", webhook_secret="a-secret-that-did-not-sign")
    (delivery,) = await knarr.deliveries()
    answer = (await knarr.client.post(f"/deliveries/{delivery['id']}/redeliver")).json()
    assert len(answer["deployments"]) == 1


async def test_what_starts_nothing_cannot_be_sent_again(knarr: Knarr) -> None:
    """409 with the reason."""
    app = await knarr.make_app()
    await knarr.send(Webhook(ping(), event="ping"))
    await knarr.send(Webhook(push()))
    await knarr.end_saga(app["id"], (await knarr.client.delete("/apps/shop")).json()["saga_id"])
    for delivery in await knarr.deliveries():
        response = await knarr.client.post(f"/deliveries/{delivery['id']}/redeliver")
        assert response.status_code == 409
    assert "ping" in response.json()["detail"]
    assert (await knarr.client.post("/deliveries/nothing/redeliver")).status_code == 404


async def test_deliveries_outlive_a_restart(home: Path) -> None:
    """With their bodies: they can be sent again."""
    async with running(home) as knarr:
        await knarr.make_app()
        await knarr.send(Webhook(push()))
    async with running(home) as knarr:
        (delivery,) = await knarr.deliveries()
        assert (await knarr.client.post(f"/deliveries/{delivery['id']}/redeliver")).status_code == 202


async def test_a_delivery_of_a_renamed_repository_is_deployed_once_the_app_follows(knarr: Knarr) -> None:
    """Its secret is the app's, so that no push has to be made again."""
    await knarr.make_app()
    assert (await knarr.send(Webhook(push(full_name="newowner/shop")))).json()["status"] == "ignored"
    (delivery,) = await knarr.deliveries()
    path = f"/deliveries/{delivery['id']}/redeliver"
    assert (await knarr.client.post(path)).status_code == 409
    await knarr.client.patch("/apps/shop", json={"repository": "newowner/shop"})
    assert (await knarr.client.post(path)).status_code == 202
    await knarr.events("DeploymentRequested", 1)
