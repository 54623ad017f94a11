"""The header fields of a request as an instance gets them, and of an answer as a client does.

Left out: what concerns one connection only (RFC 9110, section 7.6.1), and what a client says about itself as if it were
a proxy, in every spelling that an app may take for the same field. The fields that say who the client is are set here.
"""

import functools
import ipaddress
import re

import h11

from seedwork.chassis.server_connections import Minutely, Proxies, bare_address
from seedwork.chassis.server_requests import tokens

Headers = list[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade", b"trailer"),
        b"proxy",
    }
)
"""`Proxy` is among them: CGI programs take it for the variable HTTP_PROXY."""
_OF_PROXIES = frozenset(
    {
        *(b"forwarded", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"x-original-forwarded-for"),
        *(b"true-client-ip", b"cf-connecting-ip", b"fastly-client-ip", b"x-original-host", b"x-original-url"),
        *(b"x-rewrite-url", b"x-host"),
    }
)
"""Besides `X-Forwarded-…`; frameworks and libraries read each of them."""
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host", b"connection"})
"""Their spellings with `_` are the same variable to a WSGI or CGI program."""
_HOST = re.compile(rb"[A-Za-z0-9.:_\[\]-]{1,261}")


class Forwarding:
    """Makes the fields that an instance gets.

    Args:
        proxies: Whose fields about clients are believed.
    """

    def __init__(self, proxies: Proxies) -> None:
        self._proxies = proxies
        self._removed = Minutely("router.forwarded_fields_removed", setting="KNARR_TRUSTED_PROXIES")

    def request(self, request: h11.Request, *, peer: str, port: int) -> h11.Request:
        """Return the request as the instance gets it.

        Args:
            request: As the client sent it.
            peer: The address at the other end of the connection.
            port: The app's, for requests without a host.
        """
        sent = dict(request.headers)
        upgrade = is_upgrade(sent)
        trusted = self._proxies.trusts(peer)
        headers = end_to_end(request, keep_upgrade=upgrade)
        if b"transfer-encoding" in sent:
            headers.append((b"Transfer-Encoding", b"chunked"))
        if not upgrade:
            headers.append((b"Connection", b"close"))
        kept = [(name, value) for name, value in headers if not _is_forged(name.lower(), trusted=trusted)]
        if len(kept) < len(headers) and not trusted and _is_near(peer):
            self._removed.warning(peer=peer)
        kept += self._about_client(request, sent, peer, trusted=trusted)
        if b"host" not in sent:  # HTTP/1.0 may leave it out, HTTP/1.1 may not
            kept.append((b"Host", f"127.0.0.1:{port}".encode()))
        return h11.Request(method=request.method, target=request.target, headers=kept)

    def _about_client(self, request: h11.Request, sent: dict[bytes, bytes], peer: str, *, trusted: bool) -> Headers:
        chain = [
            each
            for name, value in request.headers
            if trusted and name == b"x-forwarded-for"
            for each in value.decode("latin-1").split(",")
        ]
        client = self._proxies.client(peer, chain)
        proto = sent.get(b"x-forwarded-proto", b"").partition(b",")[0].strip().lower() if trusted else b""
        host = sent.get(b"x-forwarded-host", b"") if trusted else b""
        if not _HOST.fullmatch(host):
            host = sent.get(b"host", b"")
        addresses = [each.strip().encode("latin-1") for each in chain if each.strip()]
        made = [
            (b"X-Forwarded-For", b", ".join([*addresses, peer.encode()])),
            (b"X-Forwarded-Proto", proto if proto in {b"http", b"https"} else b"http"),
            (b"X-Real-IP", client.encode()),
        ]
        if host:
            made.append((b"X-Forwarded-Host", host))
        if trusted and b"forwarded" in sent:
            said = b", ".join(value for name, value in request.headers if name == b"forwarded")
            made.append((b"Forwarded", said + (f', for="[{peer}]"' if ":" in peer else f", for={peer}").encode()))
        return made


def end_to_end(event: h11.Request | h11.Response | h11.InformationalResponse, *, keep_upgrade: bool = False) -> Headers:
    """Return its header fields without those that concern one connection only (RFC 9110, section 7.6.1).

    A `Content-Length` beside a `Transfer-Encoding` goes too: it is wrong, and two readers could disagree about it.
    """
    names = [name for name, _ in event.headers]
    dropped = _HOP_BY_HOP | {token for name, value in event.headers if name == b"connection" for token in tokens(value)}
    if b"transfer-encoding" in names:
        dropped |= {b"content-length"}
    kept = [item for item, name in zip(event.headers.raw_items(), names, strict=True) if name not in dropped]
    if keep_upgrade:
        kept.append((b"Connection", b"Upgrade"))
        kept += [(b"Upgrade", value) for name, value in event.headers if name == b"upgrade"]
    return kept


def is_upgrade(sent: dict[bytes, bytes]) -> bool:
    """Return whether a request asks for another protocol."""
    return b"upgrade" in sent and b"upgrade" in tokens(sent.get(b"connection", b""))


@functools.lru_cache(maxsize=1024)
def _is_forged(name: bytes, *, trusted: bool) -> bool:
    """Return whether a field is left out: one that only proxies may send, or another spelling of such a one."""
    plain = name.replace(b"_", b"-").replace(b".", b"-")
    if plain != name:
        return plain.startswith(b"x-forwarded") or plain in _OF_PROXIES or plain in _FRAMING
    if name in {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-real-ip", b"forwarded"}:
        return True  # made anew
    return not trusted and (name.startswith(b"x-forwarded") or name in _OF_PROXIES)


def _is_near(peer: str) -> bool:
    """Return whether this may be a proxy of this machine or its network that the setting does not name."""
    bare = bare_address(peer)
    return bare is not None and ipaddress.ip_address(bare).is_private
