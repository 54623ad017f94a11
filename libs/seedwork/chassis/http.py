"""HTTP to other systems: with a time limit, a trace, a circuit breaker, and errors of our own tree.

A client from `HttpClients.client()` shares one pool of connections with all others of its service. It raises
`Unavailable` when the other side does not answer, and for a while does not even try after it failed several times in a
row. It shows the service token, but only to services of this installation.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping

import httpx2
from opentelemetry.trace import SpanKind
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState
from pydantic import SecretStr

from seedwork.chassis.tracing import current_traceparent, span
from seedwork.errors import (
    Conflict,
    FinalError,
    InvalidInput,
    NotAllowed,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

TIMEOUT = httpx2.Timeout(30.0, connect=5.0)
"""Seconds: 5 to connect (it is there or it is not), 30 between two chunks (a slow disk on the other side)."""

FAILURES_TO_OPEN = 5
OPEN_S = 10.0
"""After five failures in a row nobody tries for ten seconds: shorter than any wait between attempts of a saga."""

_BY_STATUS: Mapping[int, type[FinalError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
}


class HttpClients:
    """Makes clients that share connections and circuit breakers; one of it per service.

    Args:
        service_token: Shown to `trusted` hosts.
        trusted: Base URLs of the other services.
        transport: In place of real connections, for tests.
    """

    def __init__(
        self,
        *,
        service_token: SecretStr | None,
        trusted: tuple[str, ...],
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._transport = _Guarded(transport)
        self._trusting: list[_Guarded] = []
        self._token = service_token
        self._trusted = frozenset(_origin(httpx2.URL(url)) for url in trusted)

    def client(self, base_url: str = "", *, trust: ssl.SSLContext | None = None) -> httpx2.AsyncClient:
        """A client; closing it closes nothing that others use.

        Args:
            base_url: Before what is asked for.
            trust: By which it checks servers, with connections and circuit breakers of its own; none: by the system's
                authorities.
        """

        async def authorize(request: httpx2.Request) -> None:
            if self._token and _origin(request.url) in self._trusted and "Authorization" not in request.headers:
                request.headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"

        return httpx2.AsyncClient(
            base_url=base_url,
            transport=_Shared(self._transport if trust is None else self._that_trusts(trust)),
            timeout=TIMEOUT,
            trust_env=False,
            event_hooks={"request": [authorize]},
        )

    async def close(self) -> None:
        """Close the connections."""
        for each in (self._transport, *self._trusting):
            await each.aclose()

    def _that_trusts(self, trust: ssl.SSLContext) -> "_Guarded":
        self._trusting.append(_Guarded(None, trust))
        return self._trusting[-1]


def raise_for_problem(response: httpx2.Response) -> httpx2.Response:
    """The response, if it is a success; else the error that the other service told, as the type it has here.

    The body must have been read.

    Raises:
        Unavailable: 429 and 5xx: it may pass.
        FinalError: Any other error, as the type with that status.
    """
    if response.is_success:
        return response
    status = response.status_code
    detail = _detail(response)
    what = f"{response.request.method} {response.request.url.copy_with(query=None)} answered {status}"
    if status == 429 or status >= 500:
        raise Unavailable(what, why=detail)
    raise _BY_STATUS.get(status, FinalError)(what, why=detail)


class _Guarded(httpx2.AsyncBaseTransport):
    """Real connections, made when the first request leaves; a breaker per host; errors translated."""

    def __init__(self, transport: httpx2.AsyncBaseTransport | None, trust: ssl.SSLContext | None = None) -> None:
        self._inner = transport
        self._trust = trust
        self._breakers = AsyncCircuitBreakerFactory(
            default_threshold=FAILURES_TO_OPEN, default_ttl=OPEN_S, exclude=[asyncio.CancelledError]
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        if self._inner is None:
            self._inner = httpx2.AsyncHTTPTransport(verify=self._trust or True)
        host = request.url.netloc.decode()
        breaker = await self._breakers.get_breaker(host)
        with span(f"{request.method} {host}", kind=SpanKind.CLIENT), _translated(request):
            if traceparent := current_traceparent():
                request.headers["traceparent"] = traceparent
            async with breaker:
                response = await self._inner.handle_async_request(request)
        if isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = _GuardedStream(response.stream, request)
        return response

    async def aclose(self) -> None:
        """Close the connections."""
        if self._inner is not None:
            await self._inner.aclose()


class _GuardedStream(httpx2.AsyncByteStream):
    """A body whose connection may break in the middle."""

    def __init__(self, inner: httpx2.AsyncByteStream, request: httpx2.Request) -> None:
        self._inner = inner
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated(self._request):
            async for chunk in self._inner:
                yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Shared(httpx2.AsyncBaseTransport):
    """The shared transport as one client sees it: closing the client does not close it."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        return await self._inner.handle_async_request(request)


@contextlib.contextmanager
def _translated(request: httpx2.Request) -> Iterator[None]:
    where = f"{request.url.scheme}://{request.url.netloc.decode()}"
    try:
        yield
    except OpenedState as error:
        raise Unavailable(
            f"{where} is not asked at the moment", why=f"it failed {FAILURES_TO_OPEN} times in a row"
        ) from error
    except httpx2.TimeoutException as error:
        raise Unavailable(f"{where} did not answer in time", why=_cause(error)) from error
    except httpx2.TransportError as error:
        raise Unavailable(f"{where} cannot be reached", why=_cause(error)) from error


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return (url.scheme, url.host, url.port)


def _detail(response: httpx2.Response) -> str:
    """What the problem details say; else the beginning of the text."""
    try:
        body = response.json()
    except ValueError:
        return response.text[:500]
    return str(body.get("detail", "")) if isinstance(body, dict) else ""
