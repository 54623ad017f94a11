"""One registry over HTTP: a request in, an answer or an error that says which repository and why out.

Brings what every call needs: the registry's base URL and prefix, authentication (basic, or bearer tokens by the
`WWW-Authenticate` challenge), another attempt after 429, 5xx and a broken connection with bounded waits, and errors of
knarr's tree. Specification: OCI distribution-spec 1.1; token authentication as in distribution's "Token Authentication
Specification".

A request whose effect is not repeatable (a piece of an upload) is sent once; who uploads begins again.
"""

import asyncio
import ipaddress
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2
import stamina
from pydantic import SecretStr

from seedwork import tls
from seedwork.errors import (
    FinalError,
    InvalidInput,
    KnarrError,
    Misconfigured,
    NotAllowed,
    NotFound,
    StorageFull,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

T = TypeVar("T")

TLS_SETTING = "KNARR_REGISTRY_TLS_CA"

Content = bytes | Callable[[], AsyncIterator[bytes]] | None
"""A body: bytes, or a function that gives its pieces from the beginning each time."""

_CHALLENGE = re.compile(r"\s*(Basic|Bearer)\s+(.*)", re.IGNORECASE | re.DOTALL)
_PARAMETER = re.compile(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_NO_ROOM = re.compile(
    r'"Err":\s*(?:28|122)\b|no space left on device|disk quota exceeded|insufficient storage', re.IGNORECASE
)
_TOKEN_S = 60.0
"""A token's life where the server does not say: the specification's default."""
_EARLY_S = 10.0
"""A token is fetched anew so long before its end, so that none ends on its way."""
_REDIRECTS = 5
_ERROR_BYTES = 64 * 1024
_STATUS: Mapping[int, type[FinalError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: NotAllowed,
    404: NotFound,
    413: TooLarge,
}
_TODO: Mapping[int, str] = {
    401: "Check KNARR_REGISTRY_USER and KNARR_REGISTRY_PASSWORD.",
    403: "Give KNARR_REGISTRY_USER the right to pull, push and delete there.",
    405: "Allow deletion in the registry (REGISTRY_STORAGE_DELETE_ENABLED=true), and no read-only mode.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a registry that does not answer is tried again."""

    attempts: int = 6
    timeout_s: float = 60.0
    """For all attempts of one request together; the saga's own policy comes after it."""
    wait_initial_s: float = 0.2
    wait_max_s: float = 10.0
    """Also the bound for what a `Retry-After` asks."""
    answer_s: float = 300.0
    """Until a registry answers to the end of an upload, which it may first copy and hash."""

    def pause_s(self, asked_s: float | None, failures: int) -> float:
        """How long to wait after so many failures in a row, or as long as the registry asked for."""
        return min(self.wait_initial_s * 2 ** (failures - 1) if asked_s is None else asked_s, self.wait_max_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Who we are at the registry."""

    user: str
    password: SecretStr

    def basic(self) -> str:
        """The header's value."""
        auth = httpx2.BasicAuth(self.user, self.password.get_secret_value())
        request = next(auth.auth_flow(httpx2.Request("GET", "http://unused")))
        return request.headers["Authorization"]


class Busy(Unavailable):
    """Worth another attempt at once; `after_s`: the registry says when."""

    after_s: float | None = None


@dataclass(slots=True)
class _Token:
    header: str
    ends: float = field(default=float("inf"))
    """On the monotonic clock."""


class Registry:
    """Requests to one registry.

    Args:
        url: `https://host[:port][/prefix]`; all repositories stand below the prefix.
        client: Sends the requests; it follows no redirects, and errors of the chassis's client are understood.
        credentials: None: anonymous.
        allow_http: Also to other machines; without it `http` is for loopback only, since it shows credentials.
        patience: How long to try again.
    """

    def __init__(
        self,
        url: str,
        *,
        client: httpx2.AsyncClient,
        credentials: Credentials | None = None,
        allow_http: bool = False,
        patience: Patience | None = None,
    ) -> None:
        parsed = checked_url(url, allow_http=allow_http)
        self.host = parsed.netloc.decode()
        self.prefix = f"{parsed.path.strip('/')}/".lstrip("/")
        self._origin = f"{parsed.scheme}://{self.host}"
        self._allow_http = parsed.scheme == "http"
        self._client = client
        self._credentials = credentials
        self.patience = patience or Patience()
        self._tokens: dict[str, _Token] = {}
        self._basic: str | None = None
        self._answering = asyncio.Lock()

    async def close(self) -> None:
        """Give back the client."""
        await self._client.aclose()

    def name(self, repository: str) -> str:
        """The repository as the registry names it."""
        return f"{self.prefix}{repository}"

    def path(self, repository: str, rest: str) -> str:
        """Where something of a repository is: `manifests/…`, `blobs/…`, `tags/list`."""
        return f"v2/{self.name(repository)}/{rest}"

    # --- requests -----------------------------------------------------------------------------------------------------

    async def call(
        self,
        method: str,
        path: str,
        *,
        repository: str,
        doing: str,
        content: Content = None,
        headers: Mapping[str, str] | None = None,
        okay: tuple[int, ...] = (200,),
        again: bool = True,
    ) -> httpx2.Response:
        """Send a request and read the whole (small) answer.

        Args:
            method: HTTP method.
            path: From `path`, or a whole URL that the registry gave us.
            repository: As the port names it; for errors and for the token's scope.
            doing: For people: "reading the manifest".
            content: The body.
            headers: More headers.
            okay: These statuses are answers, every other one is an error.
            again: Whether another attempt after a fault that may pass is harmless.

        Raises:
            Unavailable: No answer, 429 or 5xx, also after the last attempt (`Busy`, where `again` is false).
            StorageFull: The registry has no room left.
            FinalError: Any other status, as the type that fits.
        """

        async def once() -> httpx2.Response:
            async with self._opened(
                method, path, repository=repository, doing=doing, content=content, headers=headers, okay=okay
            ) as response:
                await response.aread()
                return response

        return await (self.patiently(once) if again else once())

    @asynccontextmanager
    async def stream(
        self, path: str, *, repository: str, doing: str, headers: Mapping[str, str] | None = None, okay: tuple[int, ...]
    ) -> AsyncIterator[httpx2.Response]:
        """An answer whose body is read in pieces, once; redirects are followed without showing them who we are.

        Raises:
            Busy: It may pass; also in the middle of the body.
            FinalError: As `call`.
        """
        redirects = (301, 302, 303, 307, 308)
        for _ in range(_REDIRECTS):
            async with self._opened(
                "GET", path, repository=repository, doing=doing, headers=headers, okay=(*okay, *redirects)
            ) as response:
                if response.status_code not in redirects:
                    yield response
                    return
                path = str(response.request.url.join(response.headers.get("Location", "")))
        raise Unavailable(f"The registry {self.host} failed {doing} of {repository}", why="it redirects in a circle")

    async def patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await `work()`, again after each `Busy`, as long as our patience lasts."""
        patience = self.patience

        def backoff(error: Exception) -> bool | float:
            if not isinstance(error, Busy):
                return False
            return True if error.after_s is None else min(error.after_s, patience.wait_max_s)

        async for attempt in stamina.retry_context(
            on=backoff,
            attempts=patience.attempts,
            timeout=patience.timeout_s,
            wait_initial=patience.wait_initial_s,
            wait_max=patience.wait_max_s,
            wait_jitter=patience.wait_initial_s,
        ):
            with attempt:
                return await work()
        raise AssertionError("stamina gives at least one attempt")

    @asynccontextmanager
    async def _opened(
        self,
        method: str,
        path: str,
        *,
        repository: str,
        doing: str,
        content: Content = None,
        headers: Mapping[str, str] | None = None,
        okay: tuple[int, ...],
    ) -> AsyncIterator[httpx2.Response]:
        """The answer with its body unread; authenticated, at the second try with what the challenge asks for."""
        url = self._url(path, repository)
        scope = f"{repository} {'read' if method in ('GET', 'HEAD') else 'write'} {url.params.get('from', '')}"
        what = f"The registry {self.host} failed {doing} of {repository}"
        with self._translated(what):
            response = await self._send(method, url, scope, content, headers)
            if response.status_code == 401 and self._ours(url):
                await response.aclose()
                async with self._answering:  # requests beside each other are asked the same
                    if self._authorization(scope) in (None, response.request.headers.get("Authorization")):
                        await self._answer_challenge(response, scope, what)
                response = await self._send(method, url, scope, content, headers)
            try:
                if response.status_code not in okay:
                    raise await self._refused(response, what)
                yield response
            finally:
                await response.aclose()

    async def _send(
        self, method: str, url: httpx2.URL, scope: str, content: Content, headers: Mapping[str, str] | None
    ) -> httpx2.Response:
        shown = {**(headers or {})}
        if self._ours(url) and (authorization := self._authorization(scope)):
            shown["Authorization"] = authorization
        request = self._client.build_request(
            method,
            url,
            headers=shown,
            content=content() if callable(content) else content,
            timeout=httpx2.Timeout(self.patience.answer_s if method in ("PUT", "PATCH") else 30.0, connect=5.0),
        )
        return await self._client.send(request, stream=True, auth=None, follow_redirects=False)

    def _url(self, path: str, repository: str) -> httpx2.URL:
        """Where to: on the registry, or where it sent us (never from https to http)."""
        if "://" not in path:
            return httpx2.URL(f"{self._origin}/{path.lstrip('/')}")
        url = httpx2.URL(path)
        if url.scheme != "https" and not (url.scheme == "http" and self._allow_http):
            raise Unavailable(
                f"The registry {self.host} sends us for {repository} to a place that is not encrypted",
                why=f"{url.scheme}://{url.host}",
                todo="Let it answer with https addresses (http.host, or X-Forwarded-Proto in front of it).",
            )
        return url

    def _ours(self, url: httpx2.URL) -> bool:
        return f"{url.scheme}://{url.netloc.decode()}" == self._origin

    # --- errors -------------------------------------------------------------------------------------------------------

    async def _refused(self, response: httpx2.Response, what: str) -> KnarrError:
        """The error that an answer means."""
        status = response.status_code
        why = f"{status} {await _told(response)}".strip()
        if _NO_ROOM.search(why) or status == 507:
            return StorageFull(what, why=why, todo="Make room in the registry, then retry.")
        if status == 429 or status >= 500:
            busy = Busy(what, why=why, todo="It is tried again; if it stays so, look at the registry's log.")
            busy.after_s = _retry_after_s(response)
            return busy
        return _STATUS.get(status, FinalError)(what, why=why, todo=_TODO.get(status, ""))

    def _translated(self, what: str) -> "_Translated":
        return _Translated(what)

    # --- who we are ---------------------------------------------------------------------------------------------------

    def _authorization(self, scope: str) -> str | None:
        if self._basic:
            return self._basic
        token = self._tokens.get(scope)
        return token.header if token and token.ends > time.monotonic() else None

    async def _answer_challenge(self, response: httpx2.Response, scope: str, what: str) -> None:
        """Have what the registry asks for ready for the next try.

        Raises:
            Unauthenticated: We have no credentials, they are wrong, or nobody understands the question.
        """
        challenges = dict(_challenges(response.headers.get_list("WWW-Authenticate")))
        if bearer := challenges.get("bearer"):
            self._tokens[scope] = await self._fetch_token(bearer, what)
        elif "basic" in challenges and self._credentials is not None and self._basic is None:
            self._basic = self._credentials.basic()
        else:
            why = "it does not accept them" if self._basic else "it wants credentials"
            raise Unauthenticated(what, why=f"401, {why}", todo=_TODO[401])

    async def _fetch_token(self, challenge: Mapping[str, str], what: str) -> _Token:
        realm = httpx2.URL(challenge.get("realm", ""))
        if realm.scheme != "https" and not (realm.scheme == "http" and self._allow_http):
            raise Unauthenticated(
                what,
                why=f"it sends us for a token to {str(realm)[:200]!r}, which is not encrypted",
                todo="Let the registry name an https address as its token realm.",
            )
        params: dict[str, str | list[str]] = {"scope": challenge.get("scope", "").split()}
        if "service" in challenge:
            params["service"] = challenge["service"]
        if self._credentials is not None:
            params["account"] = self._credentials.user
        headers = {"Authorization": self._credentials.basic()} if self._credentials else {}
        response = await self._client.get(
            realm.copy_merge_params(params), headers=headers, auth=None, follow_redirects=False, timeout=30.0
        )
        if not response.is_success:
            raise await self._refused(response, f"{what}: the token server {realm.host} gave no token")
        return _token(response, what)


class _Translated:
    """Faults of the connection become `Busy`, whichever client found them.

    A server that is not trusted waits for a person: it is not asked again at once.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, _type: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, httpx2.TransportError | Unavailable) and (why := tls.why_untrusted(error)):
            raise Unavailable(self._what, why=why, todo=tls.what_to_do(TLS_SETTING)) from error
        if isinstance(error, httpx2.TransportError):
            cause = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise Busy(self._what, why=cause, todo="Is the registry running, and reachable from here?") from error
        if isinstance(error, Unavailable) and not isinstance(error, Busy):
            raise Busy(self._what, why=error.message) from error


def checked_url(url: str, *, allow_http: bool) -> httpx2.URL:
    """A registry's base URL.

    Raises:
        Misconfigured: It is none, or plain http to another machine.
    """
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise _no_url(url, str(error)) from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise _no_url(url, "it needs http:// or https:// and a host")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise _no_url(f"{parsed.scheme}://{parsed.host}", "it must have no user, query or fragment")
    if parsed.scheme == "http" and not allow_http and not _is_loopback(parsed.host):
        raise Misconfigured(
            f"The registry {parsed.host} would be used without encryption",
            why="its URL begins with http://",
            todo="Use https://, or set KNARR_REGISTRY_INSECURE=true if the network between is your own.",
        )
    return parsed


def _no_url(url: str, why: str) -> Misconfigured:
    return Misconfigured(f"{url[:200]!r} is no registry", why=why, todo="Set KNARR_IMAGE_STORE=https://host[:port].")


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _told(response: httpx2.Response) -> str:
    """What the registry says: its error codes and messages, else the beginning of the text."""
    if response.request.method == "HEAD":
        return response.reason_phrase
    text = bytearray()
    async for piece in response.aiter_bytes():
        text += piece
        if len(text) > _ERROR_BYTES:
            break
    try:
        errors = httpx2.Response(200, content=bytes(text)).json()["errors"]
        return "; ".join(_one_error(each) for each in errors)
    except (ValueError, KeyError, TypeError, AttributeError):
        return text.decode(errors="replace").strip()[:300]


def _one_error(error: Mapping[str, Any]) -> str:
    detail = error.get("detail")
    more = f" ({detail})" if detail and _NO_ROOM.search(str(detail).replace("'", '"')) else ""
    return f"{error.get('code')}: {error.get('message')}{more}"


def _retry_after_s(response: httpx2.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _challenges(headers: list[str]) -> list[tuple[str, dict[str, str]]]:
    """RFC 9110 §11.6.1, as far as registries use it: one challenge a header."""
    found = []
    for header in headers:
        if match := _CHALLENGE.match(header):
            parameters = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(match[2])}
            found.append((match[1].lower(), parameters))
    return found


def _token(response: httpx2.Response, what: str) -> _Token:
    try:
        answer = response.json()
        text = answer.get("token") or answer["access_token"]
        life_s = float(answer.get("expires_in") or _TOKEN_S)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unavailable(f"{what}: the token server's answer cannot be read", why=type(error).__name__) from error
    return _Token(header=f"Bearer {text}", ends=time.monotonic() + max(life_s - _EARLY_S, 1.0))
