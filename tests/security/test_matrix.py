"""Every route of every service, asked with every kind of token: what is in OpenAPI and not in the table fails.

Ids of another team's rows are tried on every route that takes one: the answer is that of an id that does not exist.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import httpx2
import pytest
from sqlalchemy import update

from seedwork.access import Scope
from seedwork.messages import new_id
from seedwork.saga import VerbName
from services.webhook.models import access_tokens
from tests.security.house import OPERATOR, SERVICE, House
from tests.security.victim import APP, DIGEST, MARKERS, Victim

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("house")]


@dataclass(frozen=True)
class Rule:
    """Who may call a route, and a request that gets as far as looking for its rows."""

    needs: tuple[Scope, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Body and query of a valid request."""


OPEN = Rule(())
"""For everybody; such a route tells nothing about a team."""
SIGNED = Rule(())
"""By a signature in place of a token: no token helps."""


def rule(*needs: Scope, **options: Any) -> Rule:
    return Rule(needs, options)


EVERYWHERE = {
    "GET /livez": OPEN,
    "GET /readyz": OPEN,
    "GET /healthcheck": OPEN,
    "GET /metrics": OPEN,
    "GET /dead-letters": rule("read"),
    "POST /dead-letters/{letter_id}/resend": rule("deploy"),
    "POST /test/commands/{name}": rule("admin", "platform"),
    "POST /test/events/{name}": rule("admin", "platform"),
}
DISK = {"GET /disk": rule("admin", "platform"), "POST /disk/reclaim": rule("admin", "platform")}
RULES: dict[str, dict[str, Rule]] = {
    "webhook": {
        **EVERYWHERE,
        "POST /github-webhook": SIGNED,
        "GET /limits": rule("read"),
        "GET /tokens": rule("admin"),
        "POST /tokens": rule("admin", json={"name": "matrix"}),
        "DELETE /tokens/{token}": rule("admin"),
        "GET /tokens/granted": rule("service"),
        "GET /apps": rule("read"),
        "POST /apps": rule("deploy", json={"name": "matrix"}),
        "GET /apps/{app}": rule("read"),
        "PATCH /apps/{app}": rule("deploy", json={"root": "web"}),
        "DELETE /apps/{app}": rule("deploy"),
        "POST /apps/{app}/hold": rule("deploy", json={"why": "because"}),
        "POST /apps/{app}/release": rule("deploy"),
        "POST /apps/{app}/deployments": rule("deploy", json={}),
        "GET /deliveries": rule("read"),
        "GET /deliveries/{delivery_id}": rule("read"),
        "POST /deliveries/{delivery_id}/redeliver": rule("deploy"),
    },
    "source": {
        **EVERYWHERE,
        **DISK,
        "GET /sources/{digest}": rule("service"),
        "PUT /sources/{digest}": rule("service", content=b"no archive"),
    },
    "builder": {
        **EVERYWHERE,
        **DISK,
        "GET /builds/{saga_id}": rule("read"),
        "GET /builds/{saga_id}/log": rule("read"),
    },
    "registry": {**EVERYWHERE, **DISK, "GET /images": rule("read")},
    "deployer": {
        **EVERYWHERE,
        **DISK,
        "GET /apps/{app}": rule("read"),
        "GET /apps/{app}/logs": rule("read"),
        "GET /apps/{app}/releases": rule("read"),
        "POST /apps/{app}/releases": rule("deploy", json={"rollback_to": 1}),
        "PATCH /apps/{app}/formation": rule("deploy", json={"web": 2}),
        "POST /apps/{app}/stop": rule("deploy"),
        "POST /apps/{app}/start": rule("deploy"),
        "POST /apps/{app}/restart": rule("deploy"),
        "GET /apps/{app}/config": rule("read"),
        "PATCH /apps/{app}/config": rule("deploy", json={"GREETING": "hello"}),
        "GET /apps/{app}/config/scopes": rule("read"),
        "PATCH /apps/{app}/config/scopes": rule("deploy", json={"GREETING": "run"}),
        "GET /apps/{app}/addons": rule("read"),
        "DELETE /apps/{app}/addons/{name}": rule("deploy"),
        "GET /apps/{app}/storage": rule("read"),
        "POST /apps/{app}/storage": rule("deploy", json={"path": "/more"}),
        "GET /apps/{app}/storage/{name}/content": rule("admin"),
        "PUT /apps/{app}/storage/{name}/content": rule("admin", content=b""),
        "POST /apps/{app}/runs": rule("deploy", json={"command": ["true"]}),
        "GET /storage": rule("read"),
        "GET /audit": rule("admin"),
        "GET /capabilities": rule("read"),
        "POST /apps/{app}/rebase": rule("deploy"),
        "GET /apps/{app}/releases/{number}/sbom": rule("read"),
        "GET /apps/{app}/releases/{number}/sbom/{kind}": rule("read"),
        "DELETE /storage/{app_id}/{name}": rule("deploy"),
    },
    "saga_coordinator": {
        **EVERYWHERE,
        "GET /sagas": rule("read"),
        "GET /sagas/{saga_id}": rule("read"),
        "GET /sagas/{saga_id}/log": rule("read"),
        "GET /sagas/{saga_id}/stream": rule("read"),
        "POST /sagas/{saga_id}/{verb}": rule("deploy"),
    },
}
IMPLIED: dict[str, set[Scope]] = {
    "read": {"read"},
    "deploy": {"deploy"},
    "admin": {"read", "deploy", "admin"},
    "reveal": {"reveal"},
    "platform": {"platform"},
    "admin platform": {"read", "deploy", "admin", "platform", "service"},
    "read deploy admin reveal": {"read", "deploy", "admin", "reveal"},
}
"""What a token may do, by the scopes that it was granted."""
TEAMS_OWN = "read deploy admin reveal"
"""The most that a team's token can have."""


def routes(platform: House) -> Iterator[tuple[str, str]]:
    for name, app in platform.apps.items():
        for path, methods in app.openapi()["paths"].items():
            yield from ((name, f"{method.upper()} {path}") for method in methods)


def ids_of(victim: Victim) -> dict[str, tuple[str, ...]]:
    """By the name of the parameter: what the victim has."""
    return {
        "app": (victim.app_id, APP),
        "app_id": (victim.app_id,),
        "saga_id": (victim.saga_id,),
        "delivery_id": (victim.delivery_id,),
        "letter_id": (victim.letter_id,),
        "token": (victim.token_id, "acme-all"),
        "digest": (DIGEST,),
        "name": ("data", "postgresql"),
        "number": ("1",),
        "kind": ("spdx",),
        "verb": get_args(VerbName),
    }


UNKNOWN = {
    "app": "no-such-app",
    "app_id": new_id(),
    "saga_id": new_id(),
    "delivery_id": new_id(),
    "letter_id": new_id(),
    "token": "no-such-token",
    "digest": "sha256:" + "b" * 64,
    "name": "nothing",
    "number": "1",
    "kind": "spdx",
    "verb": "compensate",
}


def filled(route: str, ids: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, dict[str, str]]]:
    """The path with each combination of ids, and the ids that are in it."""
    _, path = route.split(" ", 1)
    found: list[tuple[str, dict[str, str]]] = [(path, {})]
    for name, values in ids.items():
        if f"{{{name}}}" in path:
            found = [
                (text.replace(f"{{{name}}}", value), {**used, name: value}) for text, used in found for value in values
            ]
    yield from found


async def ask(platform: House, service: str, route: str, path: str, token: str | None) -> httpx2.Response:
    """A valid request; `confirm` repeats the last name, as routes that delete want it."""
    options = dict(RULES[service][route].options)
    if "confirm" in str(platform.apps[service].openapi()["paths"][route.split(" ", 1)[1]]):
        options["params"] = {"confirm": path.rpartition("/")[2]}
    return await platform.ask(service, route.split(" ", 1)[0], path, token, **options)


def unknown_path(route: str) -> str:
    return next(path for path, _ in filled(route, {name: (value,) for name, value in UNKNOWN.items()}))


async def test_every_route_has_an_expectation(platform: House) -> None:
    """A new route without a rule here, and a rule without its route, fail."""
    assert sorted(routes(platform)) == sorted((name, route) for name, rules in RULES.items() for route in rules)


@pytest.mark.parametrize("token", [None, "", "wrong", "knarr_" + "x" * 43, "a b", OPERATOR + "x", "expired", "revoked"])
async def test_no_route_answers_without_a_valid_token(platform: House, token: str | None) -> None:
    """401 everywhere but on the open ones, before anything else is looked at."""
    if token == "expired":
        token = await platform.token(
            "ended", teams=["acme"], scopes=["admin", "platform"], expires_at="2030-01-01T00:00:00Z"
        )
        await platform.service("webhook").db.write(
            lambda conn: conn.execute(update(access_tokens).where(access_tokens.c.name == "ended").values(expires_ms=1))
        )
        platform.look_again()
    if token == "revoked":
        token = await platform.token("gone", teams=["acme"], scopes=["admin", "platform"])
        assert (await platform.ask("webhook", "DELETE", "/tokens/gone", OPERATOR)).status_code == 204
        platform.look_again()
    wrong = {}
    for service, route in routes(platform):
        answer = await ask(platform, service, route, unknown_path(route), token)
        expected = answer.status_code < 400 if RULES[service][route] is OPEN else answer.status_code == 401
        if not expected:
            wrong[service, route] = answer.status_code
    assert wrong == {}


@pytest.mark.parametrize("scopes", IMPLIED)
async def test_a_token_gets_as_far_as_its_scopes_say(platform: House, scopes: str) -> None:
    """403 without the scope, whatever the id; with it, the route looks for its rows and finds none."""
    token = await platform.token(f"may-{scopes.replace(' ', '-')}", teams=["lookers"], scopes=scopes.split())
    wrong = {}
    for service, route in routes(platform):
        rule = RULES[service][route]
        if rule is OPEN or rule is SIGNED:
            continue
        status = (await ask(platform, service, route, unknown_path(route), token)).status_code
        refused = not set(rule.needs) <= IMPLIED[scopes]
        if (status == 403) != refused or status == 401 or status >= 500:
            wrong[service, route] = status
    assert wrong == {}


async def test_the_token_of_services_may_do_everything(platform: House) -> None:
    """Services show each other one token; it reaches every route."""
    statuses = {
        (service, route): (await ask(platform, service, route, unknown_path(route), SERVICE)).status_code
        for service, route in routes(platform)
        if RULES[service][route] is not SIGNED
    }
    assert {key: status for key, status in statuses.items() if status in {401, 403} or status >= 500} == {}


async def test_another_teams_ids_are_answered_like_unknown_ones(platform: House, victim: Victim) -> None:
    """With every scope that a team can have, on every route that takes an id: status, headers and text are the same."""
    rival = await platform.token("rival", teams=["rivals"], scopes=TEAMS_OWN.split())
    ids = ids_of(victim)
    tried, wrong = 0, {}
    for service, route in routes(platform):
        for path, used in filled(route, ids):
            if not used:
                continue
            like = {name: (UNKNOWN[name] if name != "verb" else used["verb"],) for name in used}
            (unknown, replaced), *_ = filled(route, like)
            answers = []
            for where, names in ((path, used), (unknown, replaced)):
                answer = await ask(platform, service, route, where, rival)
                answers.append(_without(names, answer))
            tried += 1
            if answers[0] != answers[1] or answers[0][0] < 400:
                wrong[service, route, path] = answers
    assert wrong == {}
    assert tried > 60


async def test_no_list_or_count_shows_another_team(platform: House, victim: Victim) -> None:
    """No route without an id answers with a text of the other team, also by its filters and its cursors."""
    rival = await platform.token("lister", teams=["rivals"], scopes=TEAMS_OWN.split())
    queries: tuple[dict[str, str], ...] = (
        {},
        {"app": APP},
        {"app": victim.app_id},
        {"commit": "c" * 40},
        {"limit": "1"},
    )
    shown = {}
    for service, route in routes(platform):
        method, path = route.split(" ", 1)
        if method != "GET" or "{" in path:
            continue
        for query in queries if RULES[service][route].needs else queries[:1]:
            text = (await platform.ask(service, "GET", path, rival, params=query)).text
            for asked in query.values():
                text = text.replace(f"'{asked}'", "")  # an error may repeat the question
            found = [each for each in (*MARKERS, victim.app_id, victim.saga_id, victim.delivery_id) if each in text]
            if found:
                shown[service, route, str(query)] = found
    assert shown == {}


async def test_the_team_itself_and_the_operator_see_all_of_it(platform: House, victim: Victim) -> None:
    """Else the tests above would prove nothing: each id leads somewhere for those who may see it."""
    ids = {name: values[:1] for name, values in ids_of(victim).items()} | {"name": ("data",), "verb": ("pause",)}
    wrong = {}
    for token in (OPERATOR, victim.token):
        for service, route in sorted(routes(platform), key=lambda each: each[1].startswith("DELETE")):
            needs = set(RULES[service][route].needs)
            if not needs or "{" not in route or not needs <= {"read", "deploy", "admin"} or route.startswith("DELETE"):
                continue
            (path, _), *_ = filled(route, ids)
            answer = await ask(platform, service, route, path, token)
            hidden = answer.status_code == 404 and f"{APP} has no" not in answer.text  # it has no release 1
            if hidden or answer.status_code in {401, 403} or answer.status_code >= 500:
                wrong[service, path] = answer.status_code, answer.text
    assert wrong == {}


async def test_a_name_that_another_team_has_is_free(platform: House, victim: Victim) -> None:
    """A conflict would tell that the name exists; each team then means its own app by it."""
    twin = await platform.token("twin", teams=["twins"], scopes=TEAMS_OWN.split())
    made = await platform.ask("webhook", "POST", "/apps", twin, json={"name": APP})
    assert made.status_code == 201
    assert made.json()["id"] != victim.app_id
    assert (await platform.ask("webhook", "GET", f"/apps/{APP}", twin)).json()["id"] == made.json()["id"]
    granted = await platform.ask("webhook", "POST", "/tokens", twin, json={"name": "acme-all"})
    assert granted.status_code == 201


def _without(ids: Mapping[str, str], answer: httpx2.Response) -> tuple[int, str, dict[str, str]]:
    """The answer without the ids that were asked for."""
    text = answer.text
    for name, value in ids.items():
        text = text.replace(value, f"<{name}>")
    headers = {name: value for name, value in answer.headers.items() if name.lower() not in {"date", "content-length"}}
    return answer.status_code, text, headers
