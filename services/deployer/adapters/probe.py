"""Whether an instance answers: an address in, None or what it does instead out. It keeps no connection."""

import asyncio

REFUSED = "it refuses connections"

_TIMEOUT_S = 5.0


async def probe(host: str, port: int, path: str | None) -> str | None:
    """None if it answers as it should, else what it does.

    Args:
        host: Its address.
        port: The port that it was told to listen on.
        path: What must answer 2xx or 3xx; None: a TCP connection is enough.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            if path is None:
                return None
            request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: knarr\r\nConnection: close\r\n\r\n"
            writer.write(request.encode())
            words = (await reader.readline()).split(maxsplit=2)
    except (OSError, TimeoutError, ValueError) as error:
        return f"GET {path} was not answered ({type(error).__name__})" if writer else REFUSED
    finally:
        if writer:
            writer.transport.abort()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return f"what GET {path} answers is no HTTP"
    status = int(words[1])
    return None if 200 <= status < 400 else f"GET {path} answered {status}"
