"""RFC 9112: a request that two readers could read differently is refused, and nothing after it is read."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from seedwork.testing.ports import block_of_ports
from tests.security import serving
from tests.security.serving import GET, Target

pytestmark = pytest.mark.asyncio(loop_scope="module")

POST = b"POST /seen HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

REFUSED = {
    "length and chunks": (400, POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunks and length": (400, POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    "two lengths": (400, POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
    "the same length twice": (400, POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    "a list of lengths": (400, POST + b"Content-Length: 5, 5\r\n\r\nhello"),
    "a length with a sign": (400, POST + b"Content-Length: +5\r\n\r\nhello"),
    "a negative length": (400, POST + b"Content-Length: -5\r\n\r\nhello"),
    "a length in hex": (400, POST + b"Content-Length: 0x5\r\n\r\nhello"),
    "an empty length": (400, POST + b"Content-Length: \r\n\r\nhello"),
    "a length of 30 digits": (400, POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\nhello"),
    "a length in other digits": (400, POST + b"Content-Length: \xef\xbc\x95\r\n\r\nhello"),
    "a folded field": (400, POST + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n"),
    "a folded first field": (400, b"GET /seen HTTP/1.1\r\n X: a\r\nHost: x\r\n\r\n"),
    "a space before the colon": (400, POST + b"Content-Length : 5\r\n\r\nhello"),
    "a tab before the colon": (400, POST + b"Content-Length\t: 5\r\n\r\nhello"),
    "a field without a colon": (400, POST + b"Content-Length\r\n\r\n"),
    "a field without a name": (400, POST + b": 5\r\n\r\n"),
    "a name with a NUL": (400, POST + b"X\0Y: 5\r\n\r\n"),
    "a value with a NUL": (400, POST + b"X: a\0b\r\n\r\n"),
    "a value with a bare CR": (400, POST + b"X: a\rTransfer-Encoding: chunked\r\n\r\n"),
    "a value with a bare LF": (400, POST + b"X: a\nTransfer-Encoding: chunked\r\n\r\n"),
    "lines that end with LF": (400, b"GET /seen HTTP/1.1\nHost: x\n\n"),
    "lines that end with CR": (400, b"GET /seen HTTP/1.1\rHost: x\r\r"),
    "a vertical tab": (400, POST + b"X: a\x0bb\r\n\r\n"),
    "a coding that is unknown": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "a coding that is no list": (501, POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "identity": (501, POST + b"Transfer-Encoding: identity\r\n\r\n"),
    "chunked that is not last": (400, POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "chunked twice": (400, POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "two fields of codings": (400, POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n"),
    "a coding with a tail": (400, POST + b"Transfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n"),
    "chunks in HTTP/1.0": (400, b"POST /seen HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "a chunk size with a sign": (400, CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with 0x": (400, CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n"),
    "a chunk size of 17 digits": (400, CHUNKED + b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with a space": (400, CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n"),
    "an empty chunk size": (400, CHUNKED + b"\r\nhello\r\n0\r\n\r\n"),
    "a chunk size that ends with LF": (400, CHUNKED + b"5\nhello\r\n0\r\n\r\n"),
    "a chunk that is too long": (400, CHUNKED + b"5\r\nhelloworld\r\n0\r\n\r\n"),
    "a chunk that ends with LF": (400, CHUNKED + b"5\r\nhello\n0\r\n\r\n"),
    "an extension with a CR": (400, CHUNKED + b"5;a=b\rc\r\nhello\r\n0\r\n\r\n"),
    "an extension with a NUL": (400, CHUNKED + b"5;a=\0\r\nhello\r\n0\r\n\r\n"),
    "an extension of 2 kB": (400, CHUNKED + b"5;a=" + b"b" * 2000 + b"\r\nhello\r\n0\r\n\r\n"),
    "extensions without end": (400, CHUNKED + (b"1;a=" + b"b" * 900 + b"\r\nx\r\n") * 100 + b"0\r\n\r\n"),
    "a wrong trailer": (400, CHUNKED + b"5\r\nhello\r\n0\r\nX : 1\r\n\r\n"),
    "a trailer that ends with LF": (400, CHUNKED + b"5\r\nhello\r\n0\r\nX: 1\n\r\n"),
    "a trailer with a length": (400, CHUNKED + b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n"),
    "trailers without end": (431, CHUNKED + b"5\r\nhello\r\n0\r\n" + b"X: 1\r\n" * 20_000 + b"\r\n"),
    "Connection: host": (400, b"GET /seen HTTP/1.1\r\nHost: x\r\nConnection: host\r\n\r\n"),
    "Connection: content-length": (400, POST + b"Connection: Content-Length\r\nContent-Length: 5\r\n\r\nhello"),
    "Connection: authorization": (400, POST + b"Connection: close, Authorization\r\n\r\n"),
    "Connection: x-forwarded-for": (400, POST + b"Connection: X-Forwarded-For\r\n\r\n"),
    "Connection: transfer-encoding": (400, POST + b"Connection: transfer-encoding\r\n\r\n"),
    "the preface of HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/1.2": (505, b"GET /seen HTTP/1.2\r\nHost: x\r\n\r\n"),
    "HTTP/0.9": (400, b"GET /seen\r\n\r\n"),
    "an absolute target": (400, b"GET http://elsewhere.example/seen HTTP/1.1\r\nHost: x\r\n\r\n"),
    "an authority": (400, b"GET elsewhere.example:443 HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a target with a fragment": (400, b"GET /seen#x HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a target with a space": (400, b"GET /se en HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a target that is not ASCII": (400, "GET /sé HTTP/1.1\r\nHost: x\r\n\r\n".encode()),
    "two spaces": (400, b"GET  /seen HTTP/1.1\r\nHost: x\r\n\r\n"),
    "an asterisk for GET": (400, b"GET * HTTP/1.1\r\nHost: x\r\n\r\n"),
    "CONNECT": (405, b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: elsewhere.example:443\r\n\r\n"),
    "no Host": (400, b"GET /seen HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, b"GET /seen HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n"),
    "a Host with a path": (400, b"GET /seen HTTP/1.1\r\nHost: x/y\r\n\r\n"),
    "a Host with a user": (400, b"GET /seen HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    "two names in a Host": (400, b"GET /seen HTTP/1.1\r\nHost: x y\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00"),
    "a body as a request": (400, b'{"ref": "refs/heads/main"}\r\n\r\n'),
}


@pytest_asyncio.fixture(params=["service", "router"], scope="module", loop_scope="module")
async def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    """One of both, with the limits as they are shipped; it serves all tests of this file."""
    home: Path = tmp_path_factory.mktemp("home")
    with block_of_ports() as first:
        starting = serving.service(home, first + 3) if request.param == "service" else serving.router(first)
        async with starting as started:
            yield started


@pytest.fixture
def target(running: Target) -> Target:
    """It has seen nothing yet."""
    running.seen.clear()
    running.bodies.clear()
    return running


@pytest.mark.parametrize("name", REFUSED)
async def test_a_request_that_can_be_read_in_two_ways_is_refused(target: Target, name: str) -> None:
    """One answer, then the end: the request that is hidden behind it reaches nobody."""
    status, request = REFUSED[name]
    answer = await target.send(request + GET.replace(b"/seen", b"/smuggled"))
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert len(re.findall(rb"HTTP/1.1 [0-9]{3} ", answer)) == 1
    assert b"connection: close" in answer.lower()
    assert not target.bodies


ACCEPTED = {
    "a body": (POST + b"Content-Length: 5\r\n\r\nhello", 5),
    "chunks": (CHUNKED + b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n", 10),
    "chunks with extensions": (CHUNKED + b'5;a=b;c="d;e"\r\nhello\r\n00\r\n\r\n', 5),
    "trailers": (CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-Real-IP: 1.1.1.1\r\n\r\n", 5),
    "an empty line before": (b"\r\n" + GET, 0),
    "spaces around a length": (POST + b"Content-Length:  \t5 \r\n\r\nhello", 5),
    "an address of IPv6": (GET.replace(b"x", b"[::1]:8701"), 0),
    "an empty value": (GET.replace(b"\r\n\r\n", b"\r\nX:\r\n\r\n"), 0),
    "bytes beyond ASCII in a value": (GET.replace(b"\r\n\r\n", b"\r\nX: \xe4\r\n\r\n"), 0),
    "an upgrade that nobody knows": (GET.replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"), 0),
}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_what_the_rules_allow_is_answered_and_the_connection_goes_on(target: Target, name: str) -> None:
    """The body has its size, trailers are no headers, and a second request over the connection is answered, too."""
    request, size = ACCEPTED[name]
    closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = await target.send(request + closing)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert target.bodies == [size, 0]
    assert b"x-sum" not in target.seen[0].lower()
    assert b"1.1.1.1" not in target.seen[0]


async def test_a_request_may_come_byte_by_byte(target: Target) -> None:
    """The rules do not depend on how the network cuts a request."""
    reader, writer = await target.connect()
    for byte in ACCEPTED["chunks with extensions"][0]:
        writer.write(bytes([byte]))
        await writer.drain()
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()
    assert target.bodies == [5]
