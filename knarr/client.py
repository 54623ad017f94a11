"""The platform's HTTP API as the command line uses it: JSON in, JSON out, every fault a sentence.

A service's problem details (RFC 9457) become the error type of their status, so that one place decides what a person
reads and which code the shell gets.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2

from knarr.home import DEFAULT_PORT_BASE, Address, Home, port_of
from seedwork.errors import (
    Conflict,
    FinalError,
    InvalidInput,
    KnarrError,
    NotAllowed,
    NotFound,
    RetryableError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

_BY_STATUS: dict[int, type[KnarrError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidInput,
}


class Platform:
    """A running platform, near or far."""

    def __init__(
        self,
        address: Address,
        token: str | None,
        *,
        timeout_s: float = 30,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Connect lazily.

        Args:
            address: Where it listens.
            token: What it is shown; none: only what is open to everybody.
            timeout_s: For each request; streams have none.
            transport: In place of the network, for tests.
        """
        self.address = address
        headers = {"User-Agent": "knarr"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        # Proxies are for other machines: a platform is addressed directly.
        self._client = httpx2.Client(headers=headers, timeout=timeout_s, trust_env=False, transport=transport)

    @classmethod
    def of(
        cls, home: Home, *, host: str | None = None, port_base: int | None = None, token: str | None = None
    ) -> "Platform":
        """The platform of a home; host, port base and token win over what the home says."""
        written = home.address()
        address = Address(
            host=host or (written.host if written else "127.0.0.1"),
            port_base=port_base or (written.port_base if written else DEFAULT_PORT_BASE),
        )
        return cls(address, token or home.token())

    def timeout(self, seconds: float) -> None:
        """Limit each request from now on."""
        self._client.timeout = httpx2.Timeout(seconds)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def url(self, service: str, path: str = "") -> str:
        """The address of a route."""
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        return f"http://{host}:{port_of(service, self.address.port_base)}{path}"

    def get(self, service: str, path: str, **params: Any) -> Any:
        """GET, as JSON; parameters without a value are left out."""
        return self.request("GET", service, path, params=params)

    def post(self, service: str, path: str, body: Any = None, **params: Any) -> Any:
        """POST JSON."""
        return self.request("POST", service, path, json=body, params=params)

    def patch(self, service: str, path: str, body: Any) -> Any:
        """PATCH JSON."""
        return self.request("PATCH", service, path, json=body)

    def delete(self, service: str, path: str, **params: Any) -> Any:
        """DELETE."""
        return self.request("DELETE", service, path, params=params)

    def request(self, method: str, service: str, path: str, **options: Any) -> Any:
        """Any request; the answer as JSON, none where there is no body.

        Raises:
            KnarrError: What the service said, or that it does not answer.
        """
        if "params" in options:
            options["params"] = _present(options["params"])
        try:
            response = self._client.request(method, self.url(service, path), **options)
        except httpx2.HTTPError as error:
            raise self._no_answer(service, error) from error
        if response.status_code >= 400:
            raise problem(service, response)
        return response.json() if response.content else None

    def pages(self, service: str, path: str, *, limit: int, **params: Any) -> list[Any]:
        """Up to `limit` items of a list, page by page."""
        items: list[Any] = []
        cursor: str | None = None
        while len(items) < limit:
            page = self.get(service, path, cursor=cursor, limit=min(200, limit - len(items)), **params)
            items += page["items"]
            cursor = page.get("next_cursor")
            if not cursor:
                break
        return items

    @contextmanager
    def stream(
        self,
        service: str,
        path: str,
        *,
        method: str = "GET",
        json: Any = None,
        headers: dict[str, str] | None = None,
        **params: Any,
    ) -> Iterator[httpx2.Response]:
        """An answer that is read as it comes; leaving it closes the connection.

        Args:
            service: Whose.
            path: Of the route.
            method: Of the request.
            json: Its body; None: it has none.
            headers: More than the usual ones.
            params: Of the query; those without a value are left out.

        Raises:
            KnarrError: What the service said, or that it does not answer (also in the middle).
        """
        timeout = httpx2.Timeout(30, read=None)
        try:
            with self._client.stream(
                method, self.url(service, path), headers=headers, params=_present(params), json=json, timeout=timeout
            ) as response:
                if response.status_code >= 400:
                    response.read()
                    raise problem(service, response)
                yield response
        except httpx2.HTTPError as error:
            raise self._no_answer(service, error) from error

    def answers(self, service: str, path: str = "/readyz") -> bool:
        """Whether a route says 200 now."""
        try:
            return self._client.get(self.url(service, path), timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def _no_answer(self, service: str, error: httpx2.HTTPError) -> Unavailable:
        url = self.url(service)
        if isinstance(error, httpx2.ConnectError):
            return Unavailable(
                f"knarr does not answer at {url}",
                why="nothing listens there",
                todo="Start it with `knarr up`, or say where it is: --home, or KNARR_HOST and KNARR_PORT_BASE.",
            )
        return Unavailable(
            f"The service {service} at {url} did not answer in full",
            why=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__,
            todo="`knarr doctor` shows which service is in trouble; its log is in the home's knarr.log.",
        )


def problem(service: str, response: httpx2.Response) -> KnarrError:
    """The service's problem details as an error of this side."""
    status = response.status_code
    kind = _BY_STATUS.get(status, RetryableError if status >= 500 else FinalError)
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return kind(
            f"The service {service} answered with status {status}",
            why="the answer is not one of knarr's; another program or a proxy may have that port",
            todo="Run `knarr doctor` to see what answers",
        )
    detail = body.get("detail") or body.get("title") or f"The service {service} answered with status {status}"
    if not isinstance(detail, str):
        detail = "; ".join(_invalid(each) for each in detail)
    todo = body.get("todo") or ("Start knarr once on this machine, or set KNARR_TOKEN." if status == 401 else "")
    return kind(str(body.get("what") or detail), why=str(body.get("why") or ""), todo=str(todo), code=body.get("code"))


def _invalid(each: Mapping[str, Any]) -> str:
    """A field that the service refused, without the place in the request: `web: Input should be an integer`."""
    place = ".".join(str(part) for part in each.get("loc", ()) if part not in {"body", "query", "path"})
    return f"{place}: {each.get('msg')}" if place else str(each.get("msg"))


def _present(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
