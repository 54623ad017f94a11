"""Calls to the API of a Docker engine: JSON in and out, errors of knarr's tree, streams read as they come.

Reference: https://docs.docker.com/reference/api/engine/ (v1.41 and later). The requests carry no version in their path,
so each engine answers with its own newest one.
"""

import asyncio
import io
import json
import os
import ssl
import tarfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx2

from dockerengine.endpoint import Endpoint
from seedwork.errors import Conflict, FinalError, KnarrError, Misconfigured, NotFound, StorageFull, Unavailable

CONNECT_S = 5.0
CALL_S = 120.0
"""Seconds for one answer: an engine that removes large layers may be busy for a minute."""
_NO_ROOM = "no space left on device"
_ERROR_CHARS = 500


class EngineApi:
    """One engine.

    Args:
        endpoint: Where it listens.
        transport: In place of a connection, for tests.

    Raises:
        Misconfigured: The address has a scheme that is not supported here.
    """

    def __init__(self, endpoint: Endpoint, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        parts = urlsplit(endpoint.url)
        self.endpoint = endpoint
        tls = _tls() if parts.scheme in {"tcp", "https"} else None
        if parts.scheme == "unix":
            self._base = "http://engine"
        elif parts.scheme in {"tcp", "http", "https"}:
            self._base = f"{'https' if tls or parts.scheme == 'https' else 'http'}://{parts.netloc}"
        else:
            raise Misconfigured(
                f"The Docker engine at {endpoint.url} cannot be used",
                why=f"{endpoint.source} has the scheme {parts.scheme or 'of no address'!r}",
                todo="Set DOCKER_HOST to unix:///path or tcp://host:port.",
            )
        transport = transport or httpx2.AsyncHTTPTransport(uds=endpoint.socket, verify=tls or False)
        self._client = httpx2.AsyncClient(
            transport=transport, trust_env=False, timeout=httpx2.Timeout(CALL_S, connect=CONNECT_S)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content: bytes | AsyncIterator[bytes] | None = None,
    ) -> Any:
        """Return the answer's JSON, or None where it has no body.

        Raises:
            NotFound, Conflict, FinalError: The engine refused.
            StorageFull: It has no room left.
            Unavailable: It does not answer.
        """
        try:
            answer = await self._client.request(
                method,
                f"{self._base}/{path}",
                params=params,
                json=body,
                content=content,
                headers={"Content-Type": "application/x-tar"} if content is not None else {},
            )
        except httpx2.HTTPError as error:
            raise self._silent(error) from error
        if answer.status_code >= httpx2.codes.BAD_REQUEST:
            raise _fault(answer.status_code, answer.content)
        try:
            return answer.json() if answer.content.strip() else None
        except ValueError:
            return answer.text

    async def lines(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Yield the JSON lines of a long answer, such as that of a pull. Raises as `call` does."""
        try:
            async with self._client.stream(
                method,
                f"{self._base}/{path}",
                params=params,
                headers=headers,
                timeout=httpx2.Timeout(None, connect=CONNECT_S),
            ) as answer:
                if answer.status_code >= httpx2.codes.BAD_REQUEST:
                    raise _fault(answer.status_code, await answer.aread())
                async for line in answer.aiter_lines():
                    if line.strip():
                        yield json.loads(line)
        except httpx2.HTTPError as error:
            raise self._silent(error) from error

    async def pieces(
        self, path: str, *, params: Mapping[str, str] | None = None, limit_s: float | None = None
    ) -> AsyncIterator[bytes]:
        """Yield a long answer as it comes, such as a log that is followed. Raises as `call` does."""
        try:
            async with self._client.stream(
                "GET", f"{self._base}/{path}", params=params, timeout=httpx2.Timeout(limit_s, connect=CONNECT_S)
            ) as answer:
                if answer.status_code >= httpx2.codes.BAD_REQUEST:
                    raise _fault(answer.status_code, await answer.aread())
                async for piece in answer.aiter_bytes():
                    yield piece
        except httpx2.HTTPError as error:
            raise self._silent(error) from error

    async def put_tar(self, container: str, path: str, pieces: AsyncIterator[bytes]) -> None:
        """Unpack a tar into a folder of a container, which need not run; owners are those in the tar."""
        await self.call("PUT", f"containers/{container}/archive", params={"path": path}, content=pieces)

    async def pull(self, image: str) -> None:
        """Pull an image by its name.

        Raises:
            NotFound: The registry does not have it, or does not answer the engine.
        """
        name, _, tag = image.rpartition(":") if ":" in image.rpartition("/")[2] else (image, "", "latest")
        params = {"fromImage": name, "tag": tag}
        fault = ""
        async for line in self.lines("POST", "images/create", params=params):
            fault = str(line.get("error") or fault)
        if fault:
            raise NotFound(f"The Docker engine cannot pull {image}", why=fault)

    async def run(self, config: Mapping[str, Any], *, name: str, limit_s: float) -> tuple[int, str]:
        """Run a container to its end and remove it; its exit code and the last lines of its output.

        A container of that name that is there already is removed first: it was left by a process that was killed.

        Raises:
            Unavailable: It did not end within `limit_s`.
        """
        await self.remove_container(name)
        params = {"name": name}
        made = await self.call("POST", "containers/create", params=params, body={**config, "Tty": True})
        path = f"containers/{made['Id']}"
        try:
            await self.call("POST", f"{path}/start")
            deadline = time.monotonic() + limit_s
            while (state := (await self.call("GET", f"{path}/json"))["State"])["Status"] in {"created", "running"}:
                if time.monotonic() > deadline:
                    raise Unavailable(f"A container of {config['Image']} did not end", why=f"waited {limit_s:g} s")
                await asyncio.sleep(0.1)
            params = {"stdout": "true", "stderr": "true", "tail": "50"}
            text = await self.call("GET", f"{path}/logs", params=params)
            return int(state["ExitCode"]), str(text or "")
        finally:
            await self.remove_container(made["Id"])

    async def output(self, container: str, *argv: str) -> str:
        """Run a program in a running container; what it prints on standard output.

        Raises:
            Unavailable: It ended with an error.
        """
        body = {"Cmd": list(argv), "AttachStdout": True, "AttachStderr": True, "Tty": True}
        made = await self.call("POST", f"containers/{quote(container)}/exec", body=body)
        text = str(await self.call("POST", f"exec/{made['Id']}/start", body={"Detach": False, "Tty": True}) or "")
        ended = await self.call("GET", f"exec/{made['Id']}/json")
        if ended["ExitCode"]:
            raise Unavailable(f"`{argv[0]}` failed in the container {container}", why=text.strip()[-_ERROR_CHARS:])
        return text

    async def remove_container(self, name: str) -> bool:
        """Remove a container, running or not, without its named volumes; whether it was there."""
        try:
            await self.call("DELETE", f"containers/{quote(name)}", params={"force": "true", "v": "true"})
        except (NotFound, Conflict):  # Conflict: its removal is in progress
            return False
        return True

    async def put_file(self, container: str, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Write a file into a container, which need not run; its folder is made."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode, entry.mtime = len(content), mode, int(time.time())
            tar.addfile(entry, io.BytesIO(content))
        await self.call("PUT", f"containers/{container}/archive", params={"path": "/"}, content=packed.getvalue())

    def _silent(self, error: httpx2.HTTPError) -> KnarrError:
        return Unavailable(
            f"The Docker engine at {self.endpoint.url} does not answer",
            why=str(error) or type(error).__name__,
            todo="Start it, and let this user use its socket: `docker info` shows whether both are so.",
        )


def filters(**wanted: str | list[str]) -> dict[str, str]:
    """Return the `filters` parameter of a listing: `filters(label="io.knarr.app")`."""
    return {"filters": json.dumps({name: [each] if isinstance(each, str) else each for name, each in wanted.items()})}


def _tls() -> ssl.SSLContext | None:
    """Return the trust that DOCKER_TLS_VERIFY and DOCKER_CERT_PATH describe, or None."""
    if not os.environ.get("DOCKER_TLS_VERIFY"):
        return None
    folder = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
    try:
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    except OSError as error:
        raise Misconfigured(
            f"The certificates in {folder} cannot be used",
            why=str(error),
            todo="Set DOCKER_CERT_PATH to the folder with ca.pem, cert.pem and key.pem.",
        ) from error
    return context


def _fault(status: int, body: bytes) -> KnarrError:
    try:
        why = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        why = body[:_ERROR_CHARS].decode(errors="replace") or f"status {status}"
    what = "The Docker engine refused a request"
    if _NO_ROOM in why:
        return StorageFull(
            "The Docker engine has no room left", why=why, todo="`docker system df` shows what takes it."
        )
    if status == httpx2.codes.NOT_FOUND:
        return NotFound(what, why=why)
    if status == httpx2.codes.CONFLICT:
        return Conflict(what, why=why)
    return Unavailable(what, why=why) if status >= httpx2.codes.INTERNAL_SERVER_ERROR else FinalError(what, why=why)
