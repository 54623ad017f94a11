"""Whether an instance answers: an address and a check in, None or what it does instead out. It keeps no connection."""

import asyncio

import h11

from services.deployer.checks import Check

REFUSED = "it refuses connections"

_TIMEOUT_S = 5.0
_BODY_BYTES = 1024 * 1024
"""Bytes of an answer in which `content` is searched."""
_READ_BYTES = 64 * 1024
_HIGHEST_GOOD_STATUS = 399


async def probe(host: str, port: int, path: str | None) -> str | None:
    """Ask with a path only (None: a TCP connection is enough). Superseded by `ask`."""
    return await ask(
        host,
        port,
        Check(
            type="startup",
            name="",
            path=path,
            listening=path is None,
            attempts=1,
            timeout_s=_TIMEOUT_S,
            wait_s=0.0,
            initial_delay_s=0.0,
            budget_s=_TIMEOUT_S,
        ),
    )


async def ask(host: str, port: int, check: Check) -> str | None:
    """Make one attempt of an HTTP or TCP check. Return None if it passes, else what the instance does instead.

    Args:
        host: Address of the instance.
        port: Port of the instance.
        check: `path`, or else `listening`, is what is asked for.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(check.timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            if check.path is None:
                return None
            status, body = await _get(reader, writer, check, default_host=_host_header(host, port))
    except h11.ProtocolError:
        return f"what GET {check.path} answers is no HTTP"
    except (OSError, TimeoutError, ValueError) as error:
        why = " in time" if isinstance(error, TimeoutError) else f" ({type(error).__name__})"
        return f"GET {check.path} was not answered{why}" if writer else REFUSED
    finally:
        if writer:
            writer.transport.abort()
    if not check.any_status and not 200 <= status <= _HIGHEST_GOOD_STATUS:
        return f"GET {check.path} answered {status}"
    if check.content is not None and check.content.encode() not in body:
        return f"the answer to GET {check.path} does not contain {check.content[:60]!r}"
    return None


async def _get(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, check: Check, *, default_host: str
) -> tuple[int, bytes]:
    """Send the request; return the status, and the body as far as it is needed."""
    headers = {"Host": default_host, "User-Agent": "knarr", "Accept": "*/*", "Connection": "close"}
    for name, value in check.headers.items():
        headers = {each: kept for each, kept in headers.items() if each.lower() != name.lower()} | {name: value}
    http = h11.Connection(h11.CLIENT)
    writer.write(http.send(h11.Request(method="GET", target=check.path or "/", headers=list(headers.items()))) or b"")
    writer.write(http.send(h11.EndOfMessage()) or b"")
    status, body, content = 0, b"", b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
            if check.content is None:
                return status, b""
            content = check.content.encode()
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _BODY_BYTES or content in body[-len(event.data) - len(content) :]:
                return status, body
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed) or event is h11.PAUSED:
            return status, body


def _host_header(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
