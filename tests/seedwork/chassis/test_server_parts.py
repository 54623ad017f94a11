"""The parts of the HTTP server without sockets: who may stay, whom to believe, how slow is too slow."""

import time

import h11
import httptools
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from seedwork.chassis.server_connections import Connections, Minutely, Proxies, bare_address
from seedwork.chassis.server_protocol import Pace
from seedwork.chassis.server_requests import BadRequest, Requests


class Held:
    """A connection that remembers whether it was closed."""

    def __init__(self) -> None:
        self.evicted = False

    def evict(self) -> None:
        self.evicted = True


def test_the_connection_that_waits_longest_makes_room() -> None:
    """Of the client that is over its limit, else of anybody; those with a request under way stay."""
    places = Connections("test", most=3, most_of_client=2)
    first, second, third, other, last = (Held() for _ in range(5))
    assert places.admit(first, "a")
    places.works(first)
    assert places.admit(second, "a")
    assert places.admit(third, "a")
    assert (first.evicted, second.evicted) == (False, True)
    assert places.admit(other, "b")
    assert places.admit(last, "c")
    assert (third.evicted, other.evicted, len(places)) == (True, False, 3)
    places.works(other)
    places.works(last)
    assert not places.admit(Held(), "d")
    places.waits(first)
    assert places.admit(Held(), "d")
    assert first.evicted


def test_places_are_free_again_when_connections_have_left() -> None:
    """Nothing is remembered of them."""
    places = Connections("test", most=1, most_of_client=1)
    for number in range(1000):
        held = Held()
        assert places.admit(held, str(number))
        places.left(held)
        places.left(held)
    assert len(places) == 0
    assert not places._clients


@pytest.mark.parametrize(
    ("peer", "chain", "client"),
    [
        ("10.0.0.1", ["6.6.6.6", "9.9.9.9"], "9.9.9.9"),
        ("10.0.0.1", ["6.6.6.6", "9.9.9.9", "10.0.0.2"], "9.9.9.9"),
        ("10.0.0.1", ["10.0.0.3", "10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["6.6.6.6", "unknown"], "10.0.0.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("1.1.1.1", ["9.9.9.9"], "1.1.1.1"),
        ("::ffff:10.0.0.1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("fd00::1", ["9.9.9.9:1234"], "9.9.9.9"),
    ],
)
def test_the_client_is_the_last_one_that_is_no_trusted_proxy(peer: str, chain: list[str], client: str) -> None:
    """What stands before it may be invented."""
    assert Proxies(["10.0.0.0/8", "fd00::/8"]).client(peer, chain) == client


@pytest.mark.parametrize("text", ["", "x", "1.2.3", "1.2.3.4.5", "[::1", "::1::", "localhost", "1" * 10_000])
def test_what_is_no_address_is_none(text: str) -> None:
    """Also where it is long."""
    assert bare_address(text) in {None, "::1"}


def test_a_body_may_be_behind_for_a_while_and_catches_up() -> None:
    """What came quickly is no credit for later: it may be silent for the stall time, never longer."""
    pace = Pace(10, 500)
    pace.passed(1, 1_000_000)
    assert pace.left_s == 10
    pace.passed(8, 0)
    assert pace.left_s == 2
    pace.passed(1, 1500)
    assert pace.left_s == 4
    pace.passed(5, 499)
    assert pace.left_s < 0
    assert Pace(10, 0).left_s == float("inf")


def test_lines_that_many_events_share_come_once_a_minute() -> None:
    """With how many there were."""
    seconds = iter(range(121))
    line = Minutely("x.happened", now_s=lambda: next(seconds))
    with structlog.testing.capture_logs() as lines:
        for _ in range(121):
            line.warning()
    assert [each["times"] for each in lines] == [1, 60, 60]


PIECES = st.sampled_from(
    [
        *(b"GET / HTTP/1.1\r\n", b"POST /a?b=c HTTP/1.1\r\n", b"GET / HTTP/1.0\r\n", b"OPTIONS * HTTP/1.1\r\n"),
        *(b"Host: x\r\n", b"Host: x\r\n", b"Host:\t[::1]:80\r\n", b"X: \xff y\r\n", b"Connection: close\r\n"),
        *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Cookie: a=b\r\n"),
        *(b"Transfer-Encoding:\tChunked \r\n", b"\r\n", b"\r\n", b"hello", b"5\r\nhello\r\n", b"3;a=b\r\nabc\r\n"),
        *(b"0\r\n\r\n", b"0\r\n", b"X: 1\r\n", b" ", b"\t", b"\n", b"\r", b"\0", b":", b",", b"0", b"GET "),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=14), st.integers(0, 60))
def test_what_is_let_through_other_readers_read_in_the_same_way(pieces: list[bytes], cut: int) -> None:
    """The first request, whole: h11 and llhttp find the same method, target and body in it, and that it has ended."""
    data = b"".join(pieces)
    requests = Requests()
    through = body = b""
    try:
        for part in (data[:cut], data[cut:]):
            requests.receive(part)
            if not through and (head := requests.head()) is not None:
                through = head.raw
            if through:
                body += requests.body() if not requests.complete else b""
    except BadRequest:
        return
    if not through or not requests.complete:
        return
    assert _by_h11(through + body) == _by_llhttp(through + body)


def _by_h11(data: bytes) -> tuple[bytes, bytes, bytes]:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert connection.trailing_data[0] == b""
    return bytes(request.method), bytes(request.target), body


def _by_llhttp(data: bytes) -> tuple[bytes, bytes, bytes]:
    class Seen:
        url = body = b""
        messages = 0

        def on_url(self, url: bytes) -> None:
            self.url += url

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            self.messages += 1

    seen = Seen()
    parser = httptools.HttpRequestParser(seen)
    parser.feed_data(data)
    assert seen.messages == 1
    return parser.get_method(), seen.url, seen.body


@pytest.mark.parametrize(
    "shape",
    [
        lambda size: b"GET / HTTP/1.1\r\nX: " + b"x" * size,
        lambda size: b"GET / HTTP/1.1\r\n" + b"A:b\r\n" * (size // 5),
        lambda size: b"GET / HTTP/1.1\r\n" + b"A:b\r\n" * (size // 5) + b"\r\n",
        lambda size: b"GET /" + b" /" * (size // 2),
        lambda size: b"GET / HTTP/1.1\r\nConnection: " + b"a," * (size // 2) + b"\r\n\r\n",
        lambda size: b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * (size // 6),
        lambda size: b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;a=" + b'"' * size + b"\r\n",
    ],
)
def test_reading_takes_time_that_grows_with_the_bytes(shape: object) -> None:
    """Eight times the bytes take about eight times the time, in pieces as the network brings them."""
    assert callable(shape)

    def seconds(size: int) -> float:
        data = shape(size)
        best = float("inf")
        for _ in range(5):
            requests = Requests(head_max_bytes=1 << 20, headers_max=1 << 20)
            began = time.process_time()
            try:
                for at in range(0, len(data), 1460):
                    requests.receive(data[at : at + 1460])
                    if requests.complete:
                        requests.head()
                    else:
                        requests.body()
            except BadRequest:
                pass
            best = min(best, time.process_time() - began)
        return best

    assert seconds(64_000) < 24 * seconds(8_000) + 0.005
