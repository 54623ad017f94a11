"""Nobody can pretend to be another client, and no page in a browser reaches a service by a name of its own."""

import json
from pathlib import Path

import pytest

from tests.security import serving
from tests.security.serving import GET

FORGED = b"".join(
    b"%s: 6.6.6.6\r\n" % name
    for name in (
        *(b"X-Forwarded-For", b"x-forwarded-proto", b"X-Forwarded-Host", b"X-Forwarded-Port", b"X-Forwarded-User"),
        *(b"X-Forwarded-Prefix", b"X-Forwarded", b"Forwarded", b"X-Real-IP", b"X-Client-IP", b"True-Client-IP"),
        *(b"CF-Connecting-IP", b"X-Original-URL", b"X_Forwarded_For", b"X_FORWARDED_PROTO", b"X-Forwarded_Host"),
        *(b"X_Real_IP", b"Content_Length", b"Transfer_Encoding", b"Proxy", b"X.Forwarded.For"),
    )
)


def _with(fields: bytes) -> bytes:
    return GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n" + fields + b"\r\n")


def _fields(head: bytes) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:-2])


async def test_an_app_gets_no_word_of_a_client_about_itself(ports: int) -> None:
    """Every spelling that an app might take for a proxy's is gone; what is right stands there instead."""
    async with serving.router(ports) as target:
        await target.send(_with(FORGED))
        (head,) = target.seen
    assert b"6.6.6.6" not in head
    fields = _fields(head)
    assert fields["x-forwarded-for"] == fields["x-real-ip"] == "127.0.0.1"
    assert (fields["x-forwarded-proto"], fields["x-forwarded-host"]) == ("http", "x")
    assert "forwarded" not in fields


async def test_an_app_gets_what_a_trusted_proxy_says(ports: int) -> None:
    """The client is the last address that is no trusted proxy: what stands before it, the client may have written."""
    said = (
        b"X-Forwarded-For: 6.6.6.6, 9.9.9.9\r\nX-Forwarded-For: 10.1.2.3\r\nX-Forwarded-Proto: https\r\n"
        b"X-Forwarded-Host: shop.example\r\nX-Forwarded-Prefix: /shop\r\nForwarded: for=9.9.9.9;proto=https\r\n"
        b"X-Real-IP: 6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\n"
    )
    async with serving.router(ports, trusted_proxies="127.0.0.1,10.0.0.0/8") as target:
        await target.send(_with(said))
        (head,) = target.seen
    fields = _fields(head)
    assert fields["x-forwarded-for"] == "6.6.6.6, 9.9.9.9, 10.1.2.3, 127.0.0.1"
    assert fields["x-real-ip"] == "9.9.9.9"
    assert (fields["x-forwarded-proto"], fields["x-forwarded-host"]) == ("https", "shop.example")
    assert fields["x-forwarded-prefix"] == "/shop"
    assert fields["forwarded"] == "for=9.9.9.9;proto=https, for=127.0.0.1"
    assert b"X_" not in head


@pytest.mark.parametrize("said", [b"X-Forwarded-Proto: javascript", b"X-Forwarded-Host: a/b", b"X-Forwarded-For: x"])
async def test_nonsense_of_a_trusted_proxy_is_left_out(ports: int, said: bytes) -> None:
    """Scheme, host and client are then those of the connection."""
    async with serving.router(ports, trusted_proxies="127.0.0.1") as target:
        await target.send(_with(said + b"\r\n"))
        fields = _fields(target.seen[0])
    assert (fields["x-forwarded-proto"], fields["x-forwarded-host"], fields["x-real-ip"]) == ("http", "x", "127.0.0.1")


@pytest.mark.parametrize(
    ("trusted", "client"), [("", "127.0.0.1"), ("10.0.0.0/8", "127.0.0.1"), ("127.0.0.1", "9.9.9.9")]
)
async def test_a_service_knows_clients_by_the_same_rule(tmp_path: Path, ports: int, trusted: str, client: str) -> None:
    """Also one on loopback is believed only where it is named."""
    async with serving.service(tmp_path, ports + 3, trusted_proxies=trusted) as target:
        answer = await target.send(_with(b"X-Forwarded-For: 6.6.6.6, 9.9.9.9\r\n"))
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["client"] == client


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((name, 200) for name in (b"127.0.0.1:8703", b"localhost:8703", b"[::1]:8703", b"builder", b"a.localhost")),
        *((name, 200) for name in (b"knarr.example.com", b"KNARR.example.com.", b"a.b.example.org:80")),
        *((name, 421) for name in (b"evil.example", b"evil.example.com:8703", b"127.0.0.1.evil.example")),
        *((name, 421) for name in (b"example.org", b"xexample.org")),
    ],
)
async def test_a_service_on_loopback_answers_under_its_own_names_only(
    tmp_path: Path, ports: int, host: bytes, status: int
) -> None:
    """Addresses, names without a dot and those of KNARR_ALLOWED_HOSTS; others could be a rebound name."""
    names = "knarr.example.com,*.example.org"
    async with serving.service(tmp_path, ports + 3, allowed_hosts=names) as target:
        answer = await target.send(_with(b"").replace(b"Host: x", b"Host: " + host))
    assert answer.startswith(b"HTTP/1.1 %d " % status)


async def test_pages_and_answers_tell_browsers_not_to_guess_or_frame(tmp_path: Path, ports: int) -> None:
    """Of a service and of the router; pages allow what they load, and nothing else."""
    async with serving.service(tmp_path, ports + 3) as target:
        answers = [await target.get(path) for path in (b"/seen", b"/docs", b"/nothing", b"/healthcheck")]
    async with serving.router(ports) as target:
        target.server._routes[next(iter(target.server._routes))].serve(())
        answers.append(await target.get())
    for answer in answers:
        head = answer.partition(b"\r\n\r\n")[0].lower()
        assert b"x-content-type-options: nosniff" in head
        assert b"x-frame-options: deny" in head
    for page in (answers[1], answers[-1]):
        assert b"text/html" in page
        policy = next(line for line in page.split(b"\r\n") if line.lower().startswith(b"content-security-policy: "))
        assert b"default-src 'none'" in policy
        assert b"frame-ancestors 'none'" in policy
        assert b"script-src 'self' 'sha256-" in policy or b"script-src" not in policy
        assert b"script-src 'unsafe-inline'" not in policy
