"""`POST /github-webhook`: what is taken, what is refused, and what a push starts."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from services.webhook import github
from tests.services.webhook.conftest import Knarr, running
from tests.services.webhook.github_payloads import COMMIT, DELETED, SECRET, Webhook, ping, push

OTHER_SECRET = "another-secret-of-another-app"
NEXT = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"


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


async def test_numbers_grow_with_each_push(knarr: Knarr) -> None:
    """The order of an app's pushes is the order in which they were accepted."""
    await knarr.make_app()
    for after in (COMMIT, NEXT):
        assert (await knarr.send(Webhook(push(after=after)))).json()["status"] == "accepted"
    messages = await knarr.events("DeploymentRequested", 2)
    assert [(each.data["number"], each.data["commit"]) for each in messages] == [(1, COMMIT), (2, NEXT)]


async def test_the_repository_is_matched_without_case(knarr: Knarr) -> None:
    """GitHub's names have no case."""
    await knarr.make_app(repository="Acme/Shop")
    assert (await knarr.send(Webhook(push(full_name="acme/SHOP")))).json()["status"] == "accepted"


async def test_the_form_encoding_that_github_offers_is_read_too(knarr: Knarr) -> None:
    """`payload=…` is what GitHub's own page proposes for a new hook."""
    await knarr.make_app()
    response = await knarr.send(Webhook(push(), form=True))
    assert (response.status_code, response.json()["status"]) == (202, "accepted")


@pytest.mark.parametrize(
    "change",
    [
        {"X-Hub-Signature-256": "sha256=" + "0" * 64},
        {"X-Hub-Signature-256": "sha256=short"},
        {"X-Hub-Signature-256": "sha1=" + "0" * 40},
        {"X-Hub-Signature-256": ""},
        {"X-Hub-Signature-256": None},
    ],
)
async def test_a_wrong_or_missing_signature_is_refused_and_nothing_is_stored(
    knarr: Knarr, change: dict[str, str | None]
) -> None:
    """401, no delivery, no deployment."""
    await knarr.make_app()
    webhook = Webhook(push())
    headers = {name: value for name, value in {**webhook.headers, **change}.items() if value is not None}
    response = await knarr.client.post("/github-webhook", content=webhook.body, headers=headers)
    assert response.status_code == 401
    assert response.json()["code"] == "unauthenticated"
    assert await knarr.deliveries() == []
    assert knarr.told == [each for each in knarr.told if each.type != "DeploymentRequested"]


async def test_one_changed_byte_of_the_body_breaks_the_signature(knarr: Knarr) -> None:
    """The raw body is signed, not its meaning: a blank more is another body."""
    await knarr.make_app()
    webhook = Webhook(push())
    response = await knarr.client.post("/github-webhook", content=webhook.body + b" ", headers=webhook.headers)
    assert response.status_code == 401


async def test_no_app_means_nobody_can_sign(knarr: Knarr) -> None:
    """Without any secret nothing is verified, not even with an empty key."""
    assert (await knarr.send(Webhook(push(), secret=""))).status_code == 401


async def test_the_secret_of_another_repositorys_app_does_not_sign(knarr: Knarr) -> None:
    """Candidates are the apps of the repository that the body names."""
    await knarr.make_app()
    await knarr.make_app("blog", repository="acme/blog", webhook_secret=OTHER_SECRET)
    assert (await knarr.send(Webhook(push(), secret=OTHER_SECRET))).status_code == 401
    assert await knarr.deliveries() == []


async def test_only_apps_that_hold_the_secret_are_deployed(knarr: Knarr) -> None:
    """Two apps share a repository, each with a secret of its own."""
    await knarr.make_app()
    other = await knarr.make_app("shop-staging", webhook_secret=OTHER_SECRET)
    await knarr.send(Webhook(push(), secret=OTHER_SECRET))
    (message,) = await knarr.events("DeploymentRequested", 1)
    assert message.appid == other["id"]


async def test_one_push_deploys_every_app_of_its_repository(knarr: Knarr) -> None:
    """Each app with its own folder, saga and number."""
    await knarr.make_app("front", root="front")
    await knarr.make_app("back", root="services/back")
    answer = (await knarr.send(Webhook(push()))).json()
    messages = await knarr.events("DeploymentRequested", 2)
    assert {each.data["root"] for each in messages} == {"front", "services/back"}
    assert {each.correlationid for each in messages} == set(answer["deployments"])


async def test_a_body_that_names_no_repository_is_verified_by_any_secret(knarr: Knarr) -> None:
    """An organization's ping names no repository: every distinct secret may have signed it."""
    await knarr.make_app()
    await knarr.make_app("blog", repository="acme/blog", webhook_secret=OTHER_SECRET)
    response = await knarr.send(Webhook(ping(None), event="ping", secret=OTHER_SECRET))
    assert (response.status_code, response.json()["status"]) == (202, "ignored")


async def test_an_unknown_repository_under_a_known_secret_is_ignored_with_its_reason(knarr: Knarr) -> None:
    """One hook of an organization sends for repositories that have no app."""
    await knarr.make_app()
    await knarr.make_app("blog", repository="acme/blog")
    response = await knarr.send(Webhook(push(full_name="acme/attic")))
    assert (response.status_code, response.json()["status"], response.json()["deployments"]) == (202, "ignored", [])
    (delivery,) = await knarr.deliveries()
    assert delivery["reason"].startswith("no app has the repository acme/attic")
    assert (await knarr.send(Webhook(push(full_name="acme/attic"), secret="guess"))).status_code == 401


async def test_a_renamed_repository_is_recognised_by_its_secret(knarr: Knarr) -> None:
    """The delivery's reason has the command that mends it; then a push is deployed."""
    await knarr.make_app()
    await knarr.make_app("blog", repository="acme/blog", webhook_secret=OTHER_SECRET)
    answer = (await knarr.send(Webhook(push(full_name="newowner/shop")))).json()
    assert (answer["status"], answer["reason"]) == (
        "ignored",
        "no app has the repository newowner/shop: moved? `knarr apps update shop --repository newowner/shop`",
    )
    assert (await knarr.client.patch("/apps/shop", json={"repository": "newowner/shop"})).status_code == 200
    assert (await knarr.client.get("/apps/shop")).json()["clone_url"] == "https://github.com/newowner/shop.git"
    assert (await knarr.send(Webhook(push(full_name="newowner/shop")))).json()["status"] == "accepted"


async def test_a_stranger_learns_no_app_of_a_renamed_repository(knarr: Knarr) -> None:
    """Without the secret the answer is the same as for any body."""
    await knarr.make_app()
    answers = [
        await knarr.send(Webhook(push(full_name=name), secret="guess"))
        for name in ("newowner/shop", "x/y", "acme/shop")
    ]
    assert {each.status_code for each in answers} == {401}
    assert len({each.json()["detail"] for each in answers}) == 1


@pytest.mark.parametrize(
    ("webhook", "reason"),
    [
        (Webhook(ping(), event="ping"), "ping: the webhook is set up"),
        (Webhook({**ping(), "action": "opened"}, event="issues"), "knarr acts on push events, not on issues"),
        (Webhook(push(ref="refs/heads/dev")), "shop follows refs/heads/main, not refs/heads/dev"),
        (Webhook(push(ref="refs/tags/main")), "shop follows refs/heads/main, not refs/tags/main"),
        (Webhook(push(after=DELETED)), "refs/heads/main was deleted"),
    ],
    ids=["ping", "other-event", "other-branch", "tag", "deletion"],
)
async def test_what_starts_nothing_is_ignored_with_a_stored_reason(knarr: Knarr, webhook: Webhook, reason: str) -> None:
    """202, so that GitHub's page shows no failure; the reason can be read here."""
    await knarr.make_app()
    response = await knarr.send(webhook)
    assert (response.status_code, response.json()["status"], response.json()["deployments"]) == (202, "ignored", [])
    (delivery,) = await knarr.deliveries()
    assert (delivery["status"], delivery["reason"]) == ("ignored", reason)


def _without(payload: dict[str, Any], *path: str) -> dict[str, Any]:
    inner = payload
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return payload


@pytest.mark.parametrize(
    ("payload", "names"),
    [
        (b"{", "JSON"),
        (b"[]", "no object"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 100_000, "JSON"),
        (_without(push(), "after"), "after"),
        (_without(push(), "ref"), "ref"),
        (_without(push(), "repository"), "repository"),
        ({**push(), "after": "main"}, "after"),
        ({**push(), "ref": "--upload-pack=evil"}, "ref"),
        ({**push(), "ref": 7}, "ref"),
        ({**push(), "repository": "acme/shop"}, "repository"),
        ({**push(), "repository": {"full_name": "acme"}}, "repository"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_json_of_the_wrong_shape_under_a_right_signature_names_the_field(
    knarr: Knarr, payload: Any, names: str
) -> None:
    """400 for who is known, and nothing stored; the same body from nobody is 401."""
    await knarr.make_app()
    response = await knarr.send(Webhook(payload))
    assert response.status_code == 400
    assert names in response.json()["detail"]
    assert await knarr.deliveries() == []
    assert (await knarr.send(Webhook(payload, secret="a guess"))).status_code == 401


async def test_a_delivery_without_its_event_cannot_be_read(knarr: Knarr) -> None:
    """GitHub always says what happened."""
    await knarr.make_app()
    response = await knarr.send(Webhook(push(), event=None))
    assert (response.status_code, "X-GitHub-Event" in response.json()["detail"]) == (400, True)


async def test_the_same_body_again_is_a_duplicate_of_the_first(knarr: Knarr) -> None:
    """GitHub's button 'Redeliver', or a second hook for the same event."""
    await knarr.make_app()
    first = (await knarr.send(Webhook(push()))).json()
    again = (await knarr.send(Webhook(push()))).json()
    assert (again["status"], again["deployments"]) == ("duplicate", first["deployments"])
    await knarr.events("DeploymentRequested", 1)
    assert [each["status"] for each in await knarr.deliveries()] == ["duplicate", "accepted"]


async def test_the_same_delivery_id_again_is_a_duplicate_of_the_first(knarr: Knarr) -> None:
    """Whatever its body is."""
    await knarr.make_app()
    first = (await knarr.send(Webhook(push(), delivery_id="one-id"))).json()
    again = (await knarr.send(Webhook(push(after=NEXT), delivery_id="one-id"))).json()
    assert (again["status"], again["deployments"]) == ("duplicate", first["deployments"])


async def test_duplicates_are_known_after_a_restart(home: Path) -> None:
    """They are kept for ever, not in memory."""
    async with running(home) as knarr:
        await knarr.make_app()
        first = (await knarr.send(Webhook(push()))).json()
    async with running(home) as knarr:
        again = (await knarr.send(Webhook(push()))).json()
    assert (again["status"], again["deployments"]) == ("duplicate", first["deployments"])


async def test_duplicates_are_told_per_app(knarr: Knarr) -> None:
    """A body that one app got before is new for an app that was made since."""
    await knarr.make_app()
    first = (await knarr.send(Webhook(push()))).json()["deployments"]
    await knarr.make_app("shop-two")
    answer = (await knarr.send(Webhook(push()))).json()
    assert answer["status"] == "accepted"
    assert set(first) < set(answer["deployments"])
    assert len(answer["deployments"]) == 2


async def test_many_copies_at_once_start_one_deployment(knarr: Knarr) -> None:
    """The unique keys decide, not the order of arrival."""
    await knarr.make_app()
    answers = [each.json() for each in await asyncio.gather(*(knarr.send(Webhook(push())) for _ in range(20)))]
    assert sorted(each["status"] for each in answers) == ["accepted"] + ["duplicate"] * 19
    assert len({each["deployments"][0] for each in answers}) == 1
    await knarr.events("DeploymentRequested", 1)


async def test_a_push_back_to_an_earlier_commit_is_deployed_again(knarr: Knarr) -> None:
    """It is another body, and somebody meant it."""
    await knarr.make_app()
    for before, after in ((NEXT, COMMIT), (COMMIT, NEXT), (NEXT, COMMIT)):
        payload = push(before=before, after=after, pushed_at=1779800000 + len(await knarr.deliveries()))
        assert (await knarr.send(Webhook(payload))).json()["status"] == "accepted"
    assert [each.data["commit"] for each in await knarr.events("DeploymentRequested", 3)] == [COMMIT, NEXT, COMMIT]


async def test_a_body_that_announces_too_much_is_refused_unread(knarr: Knarr) -> None:
    """413 by its Content-Length: not a byte is asked for."""
    await knarr.make_app()
    headers = {**Webhook(push()).headers, "Content-Length": str(github.MAX_BODY_BYTES + 1)}
    status, chunks = await _post(knarr, headers, [b"x"] * 5)
    assert (status, chunks) == (413, 0)


async def test_a_body_that_does_not_end_is_refused_at_the_limit(knarr: Knarr) -> None:
    """413 without a Content-Length: what is over the limit is not read."""
    await knarr.make_app()
    megabyte = b" " * 1_000_000
    status, chunks = await _post(knarr, Webhook(push()).headers, [megabyte] * 100)
    assert (status, chunks) == (413, 26)


async def test_a_body_below_the_limit_is_read_whole(knarr: Knarr) -> None:
    """A push of a thousand commits is some megabytes, far above the limit of other requests."""
    await knarr.make_app()
    payload = {**push(), "commits": [push()["head_commit"] for _ in range(6000)]}
    assert len(orjson.dumps(payload)) > 2_000_000
    assert (await knarr.send(Webhook(payload))).json()["status"] == "accepted"


async def _post(knarr: Knarr, headers: dict[str, str], chunks: list[bytes]) -> tuple[int, int]:
    """Send by ASGI itself; the status, and how many chunks were read."""
    sent: list[dict[str, Any]] = []
    waiting = list(chunks)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/github-webhook",
        "raw_path": b"/github-webhook",
        "query_string": b"",
        "scheme": "http",
        "server": ("knarr", 80),
        "client": ("127.0.0.1", 1),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    await knarr.app(scope, receive, send)
    return sent[0]["status"], len(chunks) - len(waiting)


async def test_a_rotated_secret_counts_at_once(knarr: Knarr) -> None:
    """The old one is refused, the new one is taken."""
    await knarr.make_app()
    assert (await knarr.send(Webhook(push()))).status_code == 202
    changed = await knarr.client.patch("/apps/shop", json={"webhook_secret": OTHER_SECRET})
    assert changed.status_code == 200
    assert (await knarr.send(Webhook(push(after=NEXT)))).status_code == 401
    assert (await knarr.send(Webhook(push(after=NEXT), secret=OTHER_SECRET))).json()["status"] == "accepted"


async def test_what_another_replica_changed_is_seen(home: Path) -> None:
    """The picture in memory may be old: the rows decide, and an unknown signature makes us look again."""
    async with running(home) as here, running(home) as there:
        await here.make_app()
        assert (await here.send(Webhook(push()))).json()["status"] == "accepted"
        here.clock.ahead_ms += 2_000
        await there.make_app("shop-two")
        both = (await here.send(Webhook(push(after=NEXT)))).json()
        assert len(both["deployments"]) == 2
        for name in ("shop", "shop-two"):
            await there.client.patch(f"/apps/{name}", json={"webhook_secret": OTHER_SECRET})
        assert (await here.send(Webhook(push(message="old secret")))).status_code == 401
        here.clock.ahead_ms += 2_000
        assert (await here.send(Webhook(push(message="new"), secret=OTHER_SECRET))).status_code == 202


async def test_the_message_leaves_after_a_restart_if_it_could_not_before(home: Path) -> None:
    """The delivery and its message are one transaction: a kill between the answer and the bus loses nothing."""
    async with running(home) as knarr:
        await knarr.make_app()
        await knarr.events("AppCreated", 1)
        await knarr.bus.close()  # what is published from here on is held back
        saga_id = (await knarr.send(Webhook(push()))).json()["deployments"][0]
    async with running(home) as knarr:
        (message,) = await knarr.events("DeploymentRequested", 1)
    assert message.correlationid == saga_id


async def test_no_secret_and_no_token_is_in_what_is_kept_or_told(knarr: Knarr, home: Path) -> None:
    """Secrets are encrypted at rest and are in no message; a credential of the request is not kept with it."""
    await knarr.make_app()
    webhook = Webhook(push())
    headers = {**webhook.headers, "Authorization": "Bearer a-credential-by-mistake", "Cookie": "a-credential-too"}
    response = await knarr.client.post("/github-webhook", content=webhook.body, headers=headers)
    assert response.status_code == 202
    await knarr.events("DeploymentRequested", 1)
    kept = await asyncio.to_thread(lambda: b"".join(each.read_bytes() for each in home.rglob("*") if each.is_file()))
    told = b"".join(each.to_json() for each in knarr.told)
    for secret in (SECRET, "a-credential"):
        assert secret.encode() not in kept + told


async def test_answers_carry_no_token_header_and_need_none(knarr: Knarr) -> None:
    """GitHub shows its signature only."""
    await knarr.make_app()
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=knarr.app), base_url="http://knarr") as client:
        webhook = Webhook(push())
        response = await client.post("/github-webhook", content=webhook.body, headers=webhook.headers)
        assert response.status_code == 202
        assert (await client.get("/deliveries")).status_code == 401
