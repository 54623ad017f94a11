"""`POST /github-webhook`: what is taken, what is refused, and what a push starts."""


from tests.services.webhook.conftest import Knarr
from tests.services.webhook.github_payloads import COMMIT, Webhook, push


async def test_a_signed_push_is_accepted_stored_and_told(knarr: Knarr) -> None:
    """The answer names the deployment; the message about it carries the app, the commit and the number."""
    app = await knarr.make_app()
    response = await knarr.send(Webhook(push()))
    assert response.status_code == 202
    answer = response.json()
    assert (answer["message"], answer["status"], len(answer["deployments"])) == ("ok", "accepted", 1)
    (message,) = await knarr.events("DeploymentRequested", 1)
    assert message.correlationid == answer["deployments"][0]
    assert message.appid == app["id"]
    expected = {"app": "shop", "commit": COMMIT, "ref": "refs/heads/main", "number": 1, "trigger": "push"}
    assert expected.items() <= message.data.items()
    (delivery,) = await knarr.deliveries()
    assert (delivery["status"], delivery["event"], delivery["repository"]) == ("accepted", "push", "acme/shop")
    assert delivery["deployments"] == answer["deployments"]
