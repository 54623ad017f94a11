"""`/apps`: making, showing, changing and removing apps."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from seedwork.errors import Unavailable
from tests.services.webhook.conftest import Knarr, running
from tests.services.webhook.github_payloads import SECRET, Webhook, push


async def test_a_new_app_has_defaults_and_shows_its_secret_once(knarr: Knarr) -> None:
    """201 with Location; afterwards the secret is shown to nobody."""
    response = await knarr.client.post("/apps", json={"name": "shop", "repository": "acme/shop"})
    assert response.status_code == 201
    assert response.headers["Location"] == "/apps/shop"
    made = response.json()
    assert len(made["webhook_secret"]) >= 43
    shown = (await knarr.client.get(response.headers["Location"])).json()
    assert "webhook_secret" not in shown
    expected = {
        "id": made["id"],
        "name": "shop",
        "team": "default",
        "repository": "acme/shop",
        "clone_url": "https://github.com/acme/shop.git",
        "ref": "refs/heads/main",
        "root": ".",
        "state": "active",
    }
    assert expected.items() <= shown.items()
    assert (await knarr.client.get(f"/apps/{made['id']}")).json() == shown
    (told,) = await knarr.events("AppCreated", 1)
    assert (told.appid, told.data["clone_url"]) == (made["id"], expected["clone_url"])


async def test_an_app_without_a_repository_is_deployed_by_upload_only(knarr: Knarr) -> None:
    """Only the name is needed."""
    made = (await knarr.client.post("/apps", json={"name": "notes"})).json()
    assert (made["repository"], made["clone_url"]) == (None, None)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "Shop"}, "lower-case"),
        ({"name": "7up"}, "a letter first"),
        ({"name": "shop-"}, "no dash at the end"),
        ({"name": "s" * 41}, "1 to 40"),
        ({"name": "a0000000-0000-0000-0000-000000000000"}, "name"),
        ({}, "name"),
        ({"repository": "shop"}, "owner/name"),
        ({"repository": "acme/.."}, "owner/name"),
        ({"repository": "-acme/shop"}, "owner/name"),
        ({"repository": "acme/shop/x"}, "owner/name"),
        ({"clone_url": "--upload-pack=evil"}, "clone_url"),
        ({"clone_url": "ext::sh -c id"}, "clone_url"),
        ({"clone_url": "http://github.com/acme/shop"}, "https, ssh, file"),
        ({"clone_url": "https://ada:hunter2@github.com/acme/shop"}, "KNARR_SOURCE_CREDENTIALS"),
        ({"ref": "main"}, "refs/heads/"),
        ({"ref": "refs/heads/../x"}, "ref"),
        ({"ref": "refs/heads/-x"}, "ref"),
        ({"ref": "refs/tags/v1"}, "follows a branch"),
        ({"root": "/etc"}, "relative"),
        ({"root": "a/../../b"}, "'..'"),
        ({"webhook_secret": "short"}, "16"),
        ({"colour": "red"}, "colour"),
    ],
    ids=str,
)
async def test_a_wrong_field_is_named_with_what_is_allowed(knarr: Knarr, fields: dict[str, Any], says: str) -> None:
    """400, no app, and no secret of the input in the answer."""
    wanted = {"name": "shop", "repository": "acme/shop", **fields} if fields else {"repository": "acme/shop"}
    response = await knarr.client.post("/apps", json=wanted)
    assert response.status_code == 400
    assert says in response.json()["detail"]
    assert "hunter2" not in response.text
    assert (await knarr.client.get("/apps")).json()["items"] == []


@pytest.mark.parametrize(
    "clone_url",
    ["https://github.com.evil/acme/shop", "https://gitlab.com/acme/shop", "file:///etc", "git@github.com:acme/shop"],
)
async def test_a_repository_outside_the_allow_list_is_refused(knarr: Knarr, clone_url: str) -> None:
    """The text names the setting and what it allows."""
    response = await knarr.client.post("/apps", json={"name": "shop", "clone_url": clone_url})
    assert response.status_code == 403
    assert "KNARR_SOURCE_ALLOW" in response.json()["detail"]
    assert "https://github.com/" in response.json()["detail"]


async def test_a_folder_of_repositories_can_be_allowed(home: Path) -> None:
    """Prefixes are the operator's choice."""
    async with running(home, source_allow=("file:///srv/git/",)) as knarr:
        made = await knarr.make_app(clone_url="file:///srv/git/shop")
        assert made["clone_url"] == "file:///srv/git/shop"


async def test_the_default_branch_is_asked_of_the_repository(knarr: Knarr) -> None:
    """Where no ref is given; a ref that is given is taken without a question."""
    knarr.refs.defaults["https://github.com/acme/old.git"] = "refs/heads/master"
    made = (await knarr.client.post("/apps", json={"name": "old", "repository": "acme/old"})).json()
    assert (made["ref"], made["note"]) == ("refs/heads/master", None)
    named = {"name": "named", "repository": "acme/old", "ref": "refs/heads/dev"}
    assert (await knarr.client.post("/apps", json=named)).json()["ref"] == "refs/heads/dev"


async def test_a_repository_that_cannot_be_asked_is_followed_on_main_with_a_word(knarr: Knarr) -> None:
    """The app is made all the same."""
    knarr.refs.error = Unavailable("The host is away")
    made = (await knarr.client.post("/apps", json={"name": "shop", "repository": "acme/shop"})).json()
    assert made["ref"] == "refs/heads/main"
    assert "The host is away" in made["note"]
    assert (await knarr.client.post("/apps", json={"name": "notes"})).json()["note"] is None


SETTINGS: dict[str, Any] = {
    "builder": "buildx",
    "dockerfile": "docker/Dockerfile",
    "docker_target": "web",
    "docker_args": ["VERSION"],
    "watch": ["libs/**", "!libs/docs"],
    "observe_s": 0.0,
}


async def test_settings_are_shown_and_reach_the_next_deployment(knarr: Knarr) -> None:
    """At the creation and by a change; the events carry them."""
    assert SETTINGS.items() <= (await knarr.make_app(**SETTINGS)).items()
    (created,) = await knarr.events("AppCreated", 1)
    build = {name: value for name, value in SETTINGS.items() if name != "observe_s"}
    assert (created.data["settings"], created.data["observe_s"]) == (build, 0.0)
    changed = await knarr.client.patch("/apps/shop", json={"dockerfile": "Dockerfile.web", "watch": None})
    expected = {**SETTINGS, "dockerfile": "Dockerfile.web", "watch": []}
    assert expected.items() <= changed.json().items()
    assert expected.items() <= (await knarr.client.get("/apps/shop")).json().items()
    (event,) = await knarr.events("AppChanged", 1)
    assert event.data["settings"]["dockerfile"] == "Dockerfile.web"
    await knarr.send(Webhook(push()))
    (asked,) = await knarr.events("DeploymentRequested", 1)
    assert asked.data["settings"] == {**build, "dockerfile": "Dockerfile.web", "watch": []}


async def test_a_change_to_the_same_settings_is_none(knarr: Knarr) -> None:
    """No event, and the polling goes on as before."""
    await knarr.make_app(**SETTINGS)
    assert (await knarr.client.patch("/apps/shop", json=SETTINGS)).status_code == 200
    await knarr.client.patch("/apps/shop", json={"docker_target": None})
    (event,) = await knarr.events("AppChanged", 1)
    assert event.data["settings"]["docker_target"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"builder": "bash"},
        {"dockerfile": "/etc/passwd"},
        {"dockerfile": "../Dockerfile"},
        {"dockerfile": "."},
        {"docker_target": "--push"},
        {"docker_args": ["A=1"]},
        {"docker_args": ["--x"]},
        {"watch": ["../other"]},
        {"watch": ["/"]},
        {"watch": ["x"] * 51},
        {"observe_s": -1},
        {"observe_s": 1e9},
    ],
    ids=str,
)
async def test_a_wrong_setting_is_named(knarr: Knarr, wrong: dict[str, Any]) -> None:
    """400 with the field; at the creation and by a change nothing is stored."""
    (field,) = wrong
    response = await knarr.client.post("/apps", json={"name": "other", **wrong})
    assert (response.status_code, response.json()["detail"].partition(":")[0]) == (400, field)
    await knarr.make_app()
    assert (await knarr.client.patch("/apps/shop", json=wrong)).status_code == 400
    assert (await knarr.client.get("/apps")).json()["items"][0]["builder"] is None


async def test_a_name_is_taken_once_per_team(knarr: Knarr) -> None:
    """409 with what to do; the other team's name is its own."""
    await knarr.make_app()
    response = await knarr.client.post("/apps", json={"name": "shop"})
    assert (response.status_code, "shop" in response.json()["detail"]) == (409, True)
    await knarr.service.auth.make_known("eve", SecretStr("a-token-of-eve"), team="other", scopes=("read", "deploy"))
    eve = {"Authorization": "Bearer a-token-of-eve"}
    assert (await knarr.client.post("/apps", json={"name": "shop"}, headers=eve)).status_code == 201


async def test_many_at_once_with_one_name_make_one_app(knarr: Knarr) -> None:
    """The database decides."""
    made = await asyncio.gather(*(knarr.client.post("/apps", json={"name": "shop"}) for _ in range(8)))
    assert sorted(each.status_code for each in made) == [201] + [409] * 7


async def test_a_team_sees_its_own_apps_only(knarr: Knarr) -> None:
    """Another team's app is not there: not shown, not changed, not removed, not deployed."""
    made = await knarr.make_app()
    await knarr.send(Webhook(push()))
    (delivery,) = await knarr.deliveries()
    await knarr.service.auth.make_known("eve", SecretStr("a-token-of-eve"), team="other", scopes=("read", "deploy"))
    eve = {"Authorization": "Bearer a-token-of-eve"}
    assert (await knarr.client.get("/apps", headers=eve)).json()["items"] == []
    assert (await knarr.client.get("/deliveries", headers=eve)).json()["items"] == []
    for app in ("shop", made["id"]):
        assert (await knarr.client.get(f"/apps/{app}", headers=eve)).status_code == 404
        assert (await knarr.client.patch(f"/apps/{app}", json={"root": "x"}, headers=eve)).status_code == 404
        assert (await knarr.client.delete(f"/apps/{app}", headers=eve)).status_code == 404
        assert (await knarr.client.post(f"/apps/{app}/deployments", json={}, headers=eve)).status_code == 404
    path = f"/deliveries/{delivery['id']}"
    assert (await knarr.client.get(path, headers=eve)).status_code == 404
    assert (await knarr.client.post(f"{path}/redeliver", headers=eve)).status_code == 404


async def test_reading_does_not_allow_writing(knarr: Knarr) -> None:
    """The scope `read` shows; the scope `deploy` changes."""
    await knarr.make_app()
    await knarr.service.auth.make_known("ro", SecretStr("a-token-that-reads"), team="default", scopes=("read",))
    reader = {"Authorization": "Bearer a-token-that-reads"}
    assert (await knarr.client.get("/apps/shop", headers=reader)).status_code == 200
    for method, path in (
        ("POST", "/apps"),
        ("PATCH", "/apps/shop"),
        ("DELETE", "/apps/shop"),
        ("POST", "/apps/shop/deployments"),
    ):
        response = await knarr.client.request(method, path, json={"name": "x"}, headers=reader)
        assert response.status_code == 403, (method, path)


async def test_apps_are_listed_by_name_in_pages(knarr: Knarr) -> None:
    """Each exactly once."""
    for name in ("delta", "alpha", "charlie", "bravo", "echo"):
        await knarr.make_app(name)
    names, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await knarr.client.get("/apps", params=params)).json()
        names += [each["name"] for each in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert names == ["alpha", "bravo", "charlie", "delta", "echo"]


async def test_a_change_is_kept_and_told(knarr: Knarr) -> None:
    """Only what is given changes; the clone URL follows the repository unless somebody set it."""
    await knarr.make_app()
    response = await knarr.client.patch("/apps/shop", json={"repository": "acme/store", "ref": "refs/heads/live"})
    assert response.status_code == 200
    changed = response.json()
    assert (changed["repository"], changed["ref"], changed["root"]) == ("acme/store", "refs/heads/live", ".")
    assert changed["clone_url"] == "https://github.com/acme/store.git"
    assert "webhook_secret" not in changed
    (told,) = await knarr.events("AppChanged", 1)
    assert (told.data["repository"], told.data["ref"]) == ("acme/store", "refs/heads/live")
    assert (await knarr.send(Webhook(push(full_name="acme/store", ref="refs/heads/live")))).json()[
        "status"
    ] == "accepted"


async def test_a_chosen_clone_url_stays_when_the_repository_changes(home: Path) -> None:
    """Somebody meant it."""
    async with running(home, source_allow=("file:///srv/git/",)) as knarr:
        await knarr.make_app(clone_url="file:///srv/git/shop")
        changed = (await knarr.client.patch("/apps/shop", json={"repository": "acme/store"})).json()
        assert changed["clone_url"] == "file:///srv/git/shop"


async def test_a_wrong_change_changes_nothing(knarr: Knarr) -> None:
    """Also the right fields beside it stay as they were."""
    await knarr.make_app()
    before = (await knarr.client.get("/apps/shop")).json()
    for wrong in ({"root": "front", "ref": "main"}, {"name": "store"}, {"clone_url": "https://x:y@github.com/a/b"}):
        assert (await knarr.client.patch("/apps/shop", json=wrong)).status_code == 400
    assert (await knarr.client.get("/apps/shop")).json() == before


async def test_a_secret_can_be_made_anew(knarr: Knarr) -> None:
    """Null asks for a new one, which is shown once."""
    await knarr.make_app()
    changed = (await knarr.client.patch("/apps/shop", json={"webhook_secret": None})).json()
    assert changed["webhook_secret"] != SECRET
    assert (await knarr.send(Webhook(push(), secret=changed["webhook_secret"]))).status_code == 202


async def test_removing_is_a_saga_and_asked_twice_the_same_one(knarr: Knarr) -> None:
    """202 with Location; while it runs pushes are ignored, changes and deployments refused."""
    app = await knarr.make_app()
    first, second = [await knarr.client.delete("/apps/shop") for _ in range(2)]
    assert first.status_code == second.status_code == 202
    answer = first.json()
    assert answer == second.json()
    assert answer["id"] == answer["saga_id"]
    assert first.headers["Location"].endswith(f":8706/sagas/{answer['saga_id']}")
    (told,) = await knarr.events("AppRemovalRequested", 1)
    assert (told.correlationid, told.appid, told.data["requested_by"]) == (answer["saga_id"], app["id"], "local")
    assert (await knarr.client.get("/apps/shop")).json()["state"] == "removing"
    assert (await knarr.client.patch("/apps/shop", json={"root": "x"})).status_code == 409
    assert (await knarr.client.post("/apps/shop/deployments", json={})).status_code == 409
    ignored = (await knarr.send(Webhook(push()))).json()
    assert (ignored["status"], ignored["reason"]) == ("ignored", "shop is being removed")


async def test_a_removed_app_is_gone_and_its_name_free(knarr: Knarr) -> None:
    """The new app of that name is another app."""
    app = await knarr.make_app()
    saga_id = (await knarr.client.delete("/apps/shop")).json()["saga_id"]
    await knarr.end_saga(app["id"], saga_id)
    for name in ("shop", app["id"]):
        assert (await knarr.client.get(f"/apps/{name}")).status_code == 404
        assert (await knarr.client.delete(f"/apps/{name}")).status_code == 404
    assert (await knarr.client.get("/apps")).json()["items"] == []
    assert (await knarr.send(Webhook(push()))).status_code == 401
    assert (await knarr.make_app())["id"] != app["id"]
    assert (await knarr.send(Webhook(push()))).json()["status"] == "accepted"


async def test_the_end_of_another_saga_is_not_the_end_of_the_app(knarr: Knarr) -> None:
    """Deployments succeed and fail without touching it."""
    app = await knarr.make_app()
    removal = (await knarr.client.delete("/apps/shop")).json()["saga_id"]
    await knarr.end_saga(app["id"], "a-deployment", saga="deploy")
    await knarr.end_saga(app["id"], "a-deployment", saga="deploy", reason="failed")
    await knarr.end_saga(app["id"], "another-removal", reason="cancelled")
    assert (await knarr.client.get("/apps/shop")).json()["state"] == "removing"
    assert (await knarr.client.delete("/apps/shop")).json()["saga_id"] == removal


async def test_a_removal_that_was_cancelled_can_be_asked_for_again(knarr: Knarr) -> None:
    """The app takes pushes again; the next removal is another saga."""
    app = await knarr.make_app()
    first = (await knarr.client.delete("/apps/shop")).json()["saga_id"]
    await knarr.end_saga(app["id"], first, reason="cancelled")
    assert (await knarr.send(Webhook(push()))).json()["status"] == "accepted"
    second = (await knarr.client.delete("/apps/shop")).json()["saga_id"]
    assert second != first
    await knarr.events("AppRemovalRequested", 2)
