"""What becomes of deliveries that are judged together: the same as one after the other."""

from types import SimpleNamespace
from typing import Any

from services.webhook.directory import Picture
from services.webhook.github import Notice, Push
from services.webhook.judging import Answer, Arrival, Case, Desk

A, B = "a" * 40, "b" * 40
KEY = b"a secret"


def app(name: str = "shop", **fields: Any) -> Any:
    """An app's row."""
    row: dict[str, Any] = {
        "app_id": f"id-of-{name}",
        "team": "default",
        "name": name,
        "repository": "acme/shop",
        "repository_key": "acme/shop",
        "clone_url": None,
        "ref": "refs/heads/main",
        "root": ".",
        "secret_version": 1,
        "state": "active",
        "last_number": 4,
        "last_commit": None,
        "tip_commit": None,
        "polled_commit": None,
        "polled_saga_id": None,
        "polled_ms": None,
        "settings": None,
        "held_ms": None,
        "held_why": None,
    }
    return SimpleNamespace(**{**row, **fields})


def case(
    commit: str, body: str, provider_id: str | None = None, *, pushed_s: int | None = None, **known: bytes
) -> Case:
    """A push, verified by the secret of `shop` (and of the apps that are named)."""
    secrets = {(f"id-of-{name}", 1): secret for name, secret in {"shop": KEY, **known}.items()}
    headers = {"x-github-event": "push"} | ({"x-github-delivery": provider_id} if provider_id else {})
    return Case(
        arrival=Arrival(headers, body.encode()),
        read=Push("acme/shop", "refs/heads/main", commit, pushed_s, "ada"),
        holders=frozenset({KEY}),
        picture=Picture(secrets=secrets, teams={KEY: "default"}),
        body_sha256=body,
        traceparent=None,
    )


def taken(desk: Desk, one: Case) -> Answer:
    """It is an answer."""
    answer = desk.take(one)
    assert isinstance(answer, Answer)
    return answer


def test_pushes_of_one_batch_are_numbered_in_their_order() -> None:
    """One row is written for the app: with the last number and the last commit."""
    desk = Desk([app()], [], now_ms=1)
    answers = [taken(desk, case(commit, body)) for commit, body in ((A, "one"), (B, "two"))]
    assert [each.status for each in answers] == ["accepted", "accepted"]
    assert [each.data["number"] for each in desk.messages] == [5, 6]
    assert desk.changed_apps == [{"wanted_id": "id-of-shop", "number": 6, "commit": B, "tip": B}]


def test_copies_in_one_batch_are_duplicates_of_the_first() -> None:
    """By body and by delivery id; only the first one's keys are written."""
    desk = Desk([app()], [], now_ms=1)
    first = taken(desk, case(A, "body", "id"))
    same_body = taken(desk, case(A, "body", "another id"))
    same_id = taken(desk, case(B, "another body", "id"))
    assert (same_body.status, same_id.status) == ("duplicate", "duplicate")
    assert same_body.deployments == same_id.deployments == first.deployments
    assert [each["body_sha256"] for each in desk.links] == ["body", None, None]
    assert len(desk.messages) == 1


def test_when_body_and_id_were_seen_apart_the_body_counts() -> None:
    """It is signed; the id is not."""
    earlier = [("id-of-shop", "saga-of-body", "body", "x"), ("id-of-shop", "saga-of-id", "y", "id")]
    assert taken(Desk([app()], earlier, now_ms=1), case(A, "body", "id")).deployments == ("saga-of-body",)


def test_what_one_app_got_is_new_for_another() -> None:
    """Duplicates are per app; the answer names both deployments."""
    desk = Desk([app(), app("two")], [("id-of-shop", "old", "body", None)], now_ms=1)
    answer = taken(desk, case(A, "body", two=KEY))
    assert answer.status == "accepted"
    assert answer.deployments == ("old", desk.messages[0].correlationid)
    assert [(each["app_id"], each["position"]) for each in desk.links] == [("id-of-shop", 0), ("id-of-two", 1)]


def test_an_app_that_the_picture_does_not_know_makes_it_old() -> None:
    """Nothing of that delivery is written; others of the batch are."""
    desk = Desk([app(secret_version=2)], [], now_ms=1)
    assert desk.take(case(A, "body")) == "behind"
    assert (desk.deliveries, desk.links, desk.messages, desk.changed_apps) == ([], [], [], [])


def test_a_secret_that_no_app_of_the_repository_holds_leaves_nothing() -> None:
    """Even if another repository's app holds it."""
    desk = Desk([app("two")], [], now_ms=1)
    assert desk.take(case(A, "body", two=b"another secret")) == "unverified"
    assert desk.deliveries == []


def test_a_polled_push_is_recognised_by_its_commit_while_nothing_else_was_pushed() -> None:
    """Its keys are kept, so that its copies find the same deployment."""
    desk = Desk([app(polled_commit=A, polled_saga_id="polled", polled_ms=9_000, tip_commit=A)], [], now_ms=1)
    first, copy = taken(desk, case(A, "body")), taken(desk, case(A, "body"))
    assert (first.status, first.deployments, copy.deployments) == ("duplicate", ("polled",), ("polled",))
    assert [each["body_sha256"] for each in desk.links] == ["body", None]


def test_a_push_back_to_the_polled_commit_is_a_new_one() -> None:
    """GitHub took it after the poller had looked, and the tip had moved in between, in this very batch."""
    desk = Desk([app(polled_commit=A, polled_saga_id="polled", polled_ms=9_000, tip_commit=A)], [], now_ms=1)
    assert taken(desk, case(B, "one", pushed_s=10)).status == "accepted"
    assert taken(desk, case(A, "two", pushed_s=11)).status == "accepted"
    assert [each.data["commit"] for each in desk.messages] == [B, A]


def test_a_notice_is_stored_for_the_team_whose_secret_signed_it() -> None:
    """An organization's ping names no repository."""
    one = case(A, "body")
    notice = Case(one.arrival, Notice(None), one.holders, Picture(teams={KEY: "red"}), "body", None)
    desk = Desk([], [], now_ms=1)
    assert taken(desk, notice).status == "ignored"
    assert (desk.deliveries[0]["team"], desk.deliveries[0]["repository"]) == ("red", None)
