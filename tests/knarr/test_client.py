"""What services answer becomes what a person reads."""

from collections.abc import Callable

import httpx2
import pytest

from knarr.client import Platform
from knarr.home import Address
from seedwork.errors import Conflict, InvalidInput, KnarrError, NotAllowed, NotFound, Unauthenticated, Unavailable

Answer = Callable[[httpx2.Request], httpx2.Response]


def platform(answer: Answer) -> Platform:
    return Platform(Address(host="127.0.0.1", port_base=9700), "the-token", transport=httpx2.MockTransport(answer))


def test_each_service_has_its_port_and_gets_the_token() -> None:
    """Base plus one to six; the token as a bearer."""
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json={})

    platform(answer).get("saga_coordinator", "/sagas", app="shop", state=None)
    assert str(seen[0].url) == "http://127.0.0.1:9706/sagas?app=shop"
    assert seen[0].headers["authorization"] == "Bearer the-token"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidInput),
        (401, Unauthenticated),
        (403, NotAllowed),
        (404, NotFound),
        (409, Conflict),
        (503, KnarrError),
    ],
)
def test_problem_details_keep_their_three_sentences(status: int, kind: type[KnarrError]) -> None:
    """By status the type, by extension members what, why and what next."""
    body = {"title": "T", "status": status, "detail": "A: B. C.", "code": "c", "what": "A", "why": "B", "todo": "C."}
    with pytest.raises(kind) as raised:
        platform(lambda _: httpx2.Response(status, json=body)).get("webhook", "/apps")
    assert (raised.value.what, raised.value.why, raised.value.todo) == ("A", "B", "C.")
    assert raised.value.reason_code == "c"


def test_an_answer_that_is_no_problem_is_still_a_sentence() -> None:
    """Something else listens there, or a proxy answered."""
    with pytest.raises(KnarrError, match=r"webhook answered with status 502.*knarr doctor"):
        platform(lambda _: httpx2.Response(502, text="Bad Gateway")).get("webhook", "/apps")


def test_nobody_there_is_unavailable_with_advice() -> None:
    """Which address, and how to start it."""

    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=request)

    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:9701.*knarr up"):
        platform(refuse).get("webhook", "/apps")


def test_lists_are_walked_page_by_page_up_to_a_limit() -> None:
    """With the cursor that the page before gave."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        first = int(request.url.params.get("cursor", 0))
        count = int(request.url.params["limit"])
        last = min(first + min(count, 3), 8)
        following = str(last) if last < 8 else None
        return httpx2.Response(200, json={"items": list(range(first, last)), "next_cursor": following})

    assert platform(answer).pages("webhook", "/apps", limit=100) == list(range(8))
    assert platform(answer).pages("webhook", "/apps", limit=5) == list(range(5))
