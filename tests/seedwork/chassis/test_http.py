from collections.abc import AsyncIterator, Callable

import httpx2
import pytest
from pydantic import SecretStr

from seedwork.chassis.http import FAILURES_TO_OPEN, HttpClients, raise_for_problem
from seedwork.chassis.tracing import current_traceparent, span
from seedwork.errors import Conflict, FinalError, NotAllowed, NotFound, Unavailable

Handler = Callable[[httpx2.Request], httpx2.Response]


def _clients(handler: Handler) -> HttpClients:
    return HttpClients(
        service_token=SecretStr("shared"),
        trusted=("http://127.0.0.1:8702", "http://source.svc"),
        transport=httpx2.MockTransport(handler),
    )


def _echo(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, json=dict(request.headers))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8702/sources/x", True),
        ("http://source.svc/sources/x", True),
        ("http://127.0.0.1:9999/", False),
        ("https://source.svc/", False),
        ("http://source.svc.evil.example/", False),
        ("http://source.svc@evil.example/", False),
    ],
)
async def test_the_service_token_is_shown_to_services_only(url: str, *, shown: bool) -> None:
    """Another host must not learn it, however its name looks."""
    async with _clients(_echo).client() as client:
        assert ((await client.get(url)).json().get("authorization") == "Bearer shared") is shown


async def test_a_redirect_is_not_followed() -> None:
    """A token could follow it."""
    async with _clients(lambda _: httpx2.Response(302, headers={"Location": "http://evil.example"})).client() as client:
        assert (await client.get("http://source.svc/")).status_code == 302


async def test_the_trace_goes_along() -> None:
    """The other side's span follows from ours."""
    async with _clients(_echo).client() as client:
        with span("outer"):
            trace_id = str(current_traceparent()).split("-")[1]
            assert (await client.get("http://a.example/")).json()["traceparent"].split("-")[1] == trace_id


@pytest.mark.parametrize(
    "error",
    [
        httpx2.ConnectError("refused"),
        httpx2.ConnectTimeout("late"),
        httpx2.ReadError("reset"),
        httpx2.ReadTimeout("late"),
        httpx2.RemoteProtocolError("nonsense"),
        httpx2.PoolTimeout("busy"),
    ],
)
async def test_no_error_of_the_library_leaks(error: Exception) -> None:
    """They become ours, and keep their cause."""

    def fail(_request: httpx2.Request) -> httpx2.Response:
        raise error

    async with _clients(fail).client() as client:
        with pytest.raises(Unavailable, match=r"http://a\.example") as caught:
            await client.get("http://a.example/secret?token=x")
    assert caught.value.__cause__ is error
    assert "token" not in caught.value.message


class Torn(httpx2.AsyncByteStream):
    """A body whose connection breaks."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"half"
        raise httpx2.ReadError("reset")


async def test_a_body_that_breaks_in_the_middle_is_our_error_too() -> None:
    """Streams are read long after the request."""
    clients = _clients(lambda _: httpx2.Response(200, stream=Torn()))
    async with clients.client() as client, client.stream("GET", "http://a.example/") as response:
        with pytest.raises(Unavailable):
            await response.aread()


async def test_a_host_that_keeps_failing_is_left_alone_for_a_while() -> None:
    """Others are not affected; an answer, even a 500, is no failure to connect."""
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.host)
        if request.url.host == "down.example":
            raise httpx2.ConnectError("refused")
        return httpx2.Response(500)

    clients = _clients(answer)
    async with clients.client() as client:
        for _ in range(FAILURES_TO_OPEN + 3):
            with pytest.raises(Unavailable):
                await client.get("http://down.example/")
            assert (await client.get("http://up.example/")).status_code == 500
        with pytest.raises(Unavailable, match="not asked at the moment"):
            await clients.client().get("http://down.example/")
    assert asked.count("down.example") == FAILURES_TO_OPEN
    assert asked.count("up.example") == FAILURES_TO_OPEN + 3


async def test_closing_one_client_leaves_the_connections_to_the_others() -> None:
    """Only the service's stop closes them."""

    class Closing(httpx2.MockTransport):
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1

    transport = Closing(_echo)
    clients = HttpClients(service_token=None, trusted=(), transport=transport)
    async with clients.client() as client:
        await client.get("http://a.example/")
    assert transport.closed == 0
    await clients.close()
    assert transport.closed == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, NotFound),
        (409, Conflict),
        (403, NotAllowed),
        (418, FinalError),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
def test_a_problem_of_another_service_has_the_same_type_here(status: int, error: type[Exception]) -> None:
    """With its words, and without the query, which may hold more than it should."""
    request = httpx2.Request("GET", "http://source.svc/sources/x?key=secret")
    response = httpx2.Response(status, json={"detail": "No source x."}, request=request)
    with pytest.raises(error, match=r"GET http://source\.svc/sources/x answered \d+: No source x\.") as caught:
        raise_for_problem(response)
    assert "secret" not in str(caught.value)


def test_a_success_is_given_back() -> None:
    """So that it can be used in a chain."""
    response = httpx2.Response(204, request=httpx2.Request("GET", "http://a.example"))
    assert raise_for_problem(response) is response


def test_an_answer_that_is_no_problem_is_quoted() -> None:
    """A proxy in between answers in HTML."""
    request = httpx2.Request("GET", "http://a.example")
    for content in (b"Bad gateway", b'["list"]'):
        with pytest.raises(Unavailable, match="answered 502"):
            raise_for_problem(httpx2.Response(502, content=content, request=request))
