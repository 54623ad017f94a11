"""One attempt of an HTTP or TCP check: an address in, None or what the instance does instead out.

No connection is kept. What is read is bounded in bytes and time, whatever the instance sends.
"""

import asyncio
from collections.abc import Mapping

from services.deployer.adapters.probe import REFUSED
from services.deployer.checks import Check

_LONGEST_ANSWER = 256 * 1024
"""Bytes of an answer in which `content` is looked for."""
_LAST_CHUNK = b"0\r\n\r\n"
_CONTENT_SHOWN = 60


async def ask(check: Check, host: str, port: int) -> str | None:
    """Return None if the instance passes, else what it does.

    Args:
        check: Asks for an HTTP answer or a TCP connection.
        host: Address of the instance.
        port: Its port, unless the check names another one.
    """
    port = check.port or port
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(check.timeout_s):
            reader, writer = await asyncio.open_connection(host, port, limit=_LONGEST_ANSWER)
            if check.path is None:
                return None
            writer.write(request_of(check, port))
            head = await reader.readline()
            if fault := status_fault(check, head):
                return fault
            if check.content is None or await _holds(reader, check.content.encode()):
                return None
            return f"GET {check.path} answered without the text {check.content[:_CONTENT_SHOWN]!r}"
    except TimeoutError:
        return f"GET {check.path} was not answered within {check.timeout_s:g} s" if writer else REFUSED
    except (OSError, ValueError) as error:
        return f"GET {check.path} was not answered ({type(error).__name__})" if writer else REFUSED
    finally:
        if writer:
            writer.transport.abort()


def request_of(check: Check, port: int) -> bytes:
    """Return the HTTP request of a check; a header of the app replaces the one of the same name."""
    headers = {"host": ("Host", f"127.0.0.1:{port}"), "user-agent": ("User-Agent", "knarr")}
    for name, value in check.headers.items():
        headers[name.lower()] = (_on_one_line(name), _on_one_line(value))
    headers["connection"] = ("Connection", "close")
    lines = [f"GET {_on_one_line(check.path or '/')} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.values())]
    return "\r\n".join([*lines, "", ""]).encode()


def status_fault(check: Check, head: bytes) -> str | None:
    """Return None if the first line of an answer passes, else what is wrong with it."""
    words = head.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return f"what GET {check.path} answers is no HTTP"
    status = int(words[1])
    return None if check.any_status or 200 <= status < 400 else f"GET {check.path} answered {status}"


def decoded(headers: Mapping[bytes, bytes], body: bytes) -> bytes:
    """Return the body without the marks of the transfer encoding `chunked`."""
    if b"chunked" not in headers.get(b"transfer-encoding", b"").lower():
        return body
    whole = bytearray()
    while body:
        size, _, body = body.partition(b"\r\n")
        try:
            length = int(size.partition(b";")[0], 16)
        except ValueError:
            break
        if length <= 0:
            break
        whole += body[:length]
        body = body[length + 2 :]
    return bytes(whole)


async def _holds(reader: asyncio.StreamReader, content: bytes) -> bool:
    """Whether the body holds that text; it is read to its end, or to the limit."""
    headers: dict[bytes, bytes] = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
        if len(headers) > 200:
            return False
    length = headers.get(b"content-length", b"")
    left = min(int(length), _LONGEST_ANSWER) if length.isdigit() else _LONGEST_ANSWER
    body = bytearray()
    while left > 0 and (piece := await reader.read(left)):
        body += piece
        left -= len(piece)
        if content in body:
            return True
        if body.endswith(_LAST_CHUNK):
            break
    return content in decoded(headers, bytes(body))


def _on_one_line(text: str) -> str:
    return text.replace("\r", " ").replace("\n", " ")
