"""The Docker engine: calls in, plain facts or errors of knarr's tree out.

The connection, its settings (`DOCKER_HOST`, contexts, TLS) and the API's version are aiodocker's; nothing of that
library's types leaves this module. Every call may be repeated: what is there already, or gone already, is no error.
Reference: https://docs.docker.com/reference/api/engine/ (v1.41 and later).
"""

import asyncio
import contextlib
import io
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import orjson

from seedwork.errors import Conflict, FinalError, KnarrError, Misconfigured, NotFound, StorageFull, Unavailable
from services.deployer.adapters.lines import Lines

if TYPE_CHECKING:
    import aiohttp
    from aiodocker import Docker

CONNECT_S = 5.0
CALL_S = 120.0
"""For one answer: an engine that removes large layers may be busy for a minute."""
_HEADER_BYTES = 8
"""Of a piece of a log: the stream, three zeros, the length (API reference, "attach")."""
_READ_BYTES = 64 * 1024
_NO_ROOM = "no space left on device"
_MISSING_IMAGE = ("not found", "manifest unknown", "no such image")


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What the engine says of a container."""

    id: str
    name: str
    labels: Mapping[str, str]
    status: str
    """`created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`."""
    exit_code: int
    error: str
    """Why it could not be started."""
    out_of_memory: bool
    started_ms: int
    """0: never."""
    finished_ms: int
    restarts: int
    image: str
    """As it was asked for: `host/repository@sha256:…`."""
    image_id: str
    addresses: Mapping[str, str]
    """By network."""
    networks: frozenset[str]
    """Names of those that it is in, also without an address."""
    restart_policy: str

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self.status == "running"


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Who we are at a registry."""

    user: str
    password: str = field(repr=False)


class Engine:
    """One engine.

    Args:
        url: `unix:///var/run/docker.sock`, `tcp://…`, `ssh://…`; None: as the `docker` command would find it.
    """

    def __init__(self, url: str | None = None) -> None:
        self._url = url
        self._docker: Docker | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._docker is not None:
            await self._docker.close()
            self._docker = None

    # ── containers ───────────────────────────────────────────────────────────────────────────────────────────────

    async def containers(self, labels: Mapping[str, str]) -> list[Container]:
        """All that carry these labels, running or not, oldest first."""
        listed = await self._json(
            "GET", "containers/json", params={"all": "true", "filters": _filters(label=_pairs(labels))}
        )
        found = await asyncio.gather(*(self.container(each["Id"]) for each in reversed(listed)))
        return [each for each in found if each is not None]

    async def fingerprints(self, labels: Mapping[str, str], *, by: str) -> dict[str, frozenset[tuple[str, ...]]]:
        """What containers with these labels are like now, grouped by the value of the label `by`: one request.

        A change of a group's value says that its containers are worth a look.
        """
        listed = await self._json(
            "GET", "containers/json", params={"all": "true", "filters": _filters(label=_pairs(labels))}
        )
        found: dict[str, set[tuple[str, ...]]] = {}
        for each in listed:
            networks = (each.get("NetworkSettings") or {}).get("Networks") or {}
            found.setdefault(each["Labels"].get(by, ""), set()).add(
                (each["Id"], each["State"], each["Image"], *sorted(networks))
            )
        return {name: frozenset(group) for name, group in found.items()}

    async def container(self, name: str) -> Container | None:
        """That one, by name or id."""
        try:
            return _container(await self._json("GET", f"containers/{name}/json"))
        except NotFound:
            return None

    async def create(self, name: str, config: Mapping[str, Any]) -> str:
        """A container of that name; its id. One that is there already stays as it is.

        Raises:
            NotFound: Its image or network is not there.
        """
        try:
            made = await self._json("POST", "containers/create", params={"name": name}, body=config)
        except Conflict:
            known = await self.container(name)
            if known is None:
                raise
            return known.id
        return str(made["Id"])

    async def start(self, container_id: str) -> None:
        """Start it, if it does not run.

        Raises:
            CannotStart: The engine cannot start this image in this way, such as a program that is not there.
        """
        try:
            await self._json("POST", f"containers/{container_id}/start")
        except NotFound as error:
            if await self.container(container_id) is None:
                raise
            raise CannotStart("The container does not start", why=error.why) from error
        except (FinalError, Unavailable) as error:
            if any(hint in error.why for hint in _BAD_COMMAND):
                raise CannotStart("The container does not start", why=error.why) from error
            raise

    async def stop(self, container_id: str, *, grace_s: float) -> None:
        """Its stop signal, the grace, SIGKILL."""
        with contextlib.suppress(NotFound):
            await self._json(
                "POST", f"containers/{container_id}/stop", params={"t": str(round(grace_s))}, timeout_s=grace_s + CALL_S
            )

    async def restart(self, container_id: str, *, grace_s: float) -> None:
        """Stop it as `stop` does, then start it again."""
        with contextlib.suppress(NotFound):
            params = {"t": str(round(grace_s))}
            await self._json("POST", f"containers/{container_id}/restart", params=params, timeout_s=grace_s + CALL_S)

    async def resume(self, container_id: str) -> None:
        """Let a paused container go on."""
        with contextlib.suppress(NotFound, Conflict):
            await self._json("POST", f"containers/{container_id}/unpause")

    async def remove(self, container_id: str) -> None:
        """Kill it and remove it with its unnamed volumes."""
        params = {"force": "true", "v": "true"}
        with contextlib.suppress(NotFound):
            try:
                await self._json("DELETE", f"containers/{container_id}", params=params)
            except Conflict:  # somebody else removes it right now
                await self._until_gone(container_id)

    async def succeeds(self, container_id: str, argv: Sequence[str]) -> bool:
        """Whether a program that is run inside it ends with 0; no, where the container does not run."""
        wanted = {"Cmd": list(argv), "AttachStdout": True, "AttachStderr": True}
        try:
            made = await self._json("POST", f"containers/{container_id}/exec", body=wanted)
            start = f"exec/{made['Id']}/start"
            async with self._answer("POST", start, body={"Detach": False}, timeout_s=CALL_S) as answer:
                await answer.read()  # ends when the program does
            ended = await self._json("GET", f"exec/{made['Id']}/json")
        except (NotFound, Conflict):
            return False
        return bool(ended["ExitCode"] == 0)

    async def output(self, container_id: str, argv: Sequence[str], *, limit_bytes: int = 1024 * 1024) -> str:
        """Return what a program that is run inside it prints to its output; empty: there is no such program."""
        wanted = {"Cmd": list(argv), "AttachStdout": True, "AttachStderr": False}
        printed = bytearray()
        try:
            made = await self._json("POST", f"containers/{container_id}/exec", body=wanted)
            start = f"exec/{made['Id']}/start"
            async with self._answer("POST", start, body={"Detach": False}, timeout_s=CALL_S) as answer:
                async for _, data in _frames(answer):
                    printed += data[: max(0, limit_bytes - len(printed))]
            ended = await self._json("GET", f"exec/{made['Id']}/json")
        except (NotFound, Conflict):
            return ""
        return printed.decode(errors="replace") if ended["ExitCode"] in {0, 1} else ""

    async def keep_running(self, container_id: str) -> None:
        """From now on the engine starts it again whenever it ends, also after its own restart."""
        policy = {"RestartPolicy": {"Name": "unless-stopped"}}
        await self._json("POST", f"containers/{container_id}/update", body=policy)

    async def ended(self, container_id: str) -> int:
        """Wait for its end; its exit status."""
        answer = await self._json("POST", f"containers/{container_id}/wait", timeout_s=None)
        return int(answer["StatusCode"])

    async def _until_gone(self, container_id: str) -> None:
        for _ in range(100):
            if await self.container(container_id) is None:
                return
            await asyncio.sleep(0.1)
        raise Unavailable(f"The Docker engine does not remove the container {container_id[:12]}")

    # ── what they print, what happens to them ────────────────────────────────────────────────────────────────────

    async def tail(self, container_id: str, lines: int) -> list[bytes]:
        """Its last lines, without times; none, if it is gone."""
        return [line async for line in self.logs(container_id, lines=lines, follow=False, times=False)]

    async def logs(
        self, container_id: str, *, lines: int | None, follow: bool, times: bool = True, since: str = "0"
    ) -> AsyncIterator[bytes]:
        """Its lines, each (`times`) with an RFC 3339 time and a space before it, without their ends.

        Args:
            container_id: Whose.
            lines: The last ones only, and no more than so many: the answer has no end where a container prints faster
                than it is read. None: all.
            follow: Go on until it ends.
            times: Whether lines begin with their time.
            since: Only later ones, in seconds since 1970 with a fraction.
        """
        params = {
            "stdout": "true",
            "stderr": "true",
            "follow": str(follow).lower(),
            "timestamps": str(times).lower(),
            "tail": "all" if lines is None else str(lines),
            "since": since,
        }
        streams: dict[int, Lines] = {}
        left = lines if lines is not None and not follow else sys.maxsize
        printed = self._pieces(f"containers/{container_id}/logs", params)
        with contextlib.suppress(NotFound, Conflict):  # Conflict: it is being removed
            async with contextlib.aclosing(printed):
                async for stream, data in printed:
                    for line in islice(streams.setdefault(stream, Lines()).add(data), left):
                        left -= 1
                        yield line
                    if not left:
                        return
        for rest in streams.values():
            for line in rest.end():
                yield line

    @contextlib.asynccontextmanager
    async def attached(self, container_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give what it prints, as it comes: also a line without an end. Attach before the start to miss nothing."""
        params = {"stream": "true", "stdout": "true", "stderr": "true"}
        path = f"containers/{container_id}/attach"
        async with self._answer("POST", path, params=params, timeout_s=None) as answer:
            yield _payloads(answer)

    async def events(self, labels: Mapping[str, str]) -> AsyncIterator[Mapping[str, Any]]:
        """What happens to containers with these labels, from now on, until the connection breaks."""
        params = {"filters": _filters(type=["container"], label=_pairs(labels))}
        async with self._answer("GET", "events", params=params, timeout_s=None) as answer:
            lines = Lines()
            async for data in answer.content.iter_chunked(_READ_BYTES):
                for line in lines.add(data):
                    yield orjson.loads(line)

    async def _pieces(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[tuple[int, bytes], None]:
        async with self._answer("GET", path, params=params, timeout_s=None) as answer:
            async for piece in _frames(answer):
                yield piece

    # ── images ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def image(self, reference: str) -> Mapping[str, Any] | None:
        """What the engine knows of an image that it has."""
        try:
            found: Mapping[str, Any] = await self._json("GET", f"images/{reference}/json")
        except NotFound:
            return None
        return found

    async def images(self, label: str) -> list[Mapping[str, Any]]:
        """All images with that label."""
        found: list[Mapping[str, Any]] = await self._json(
            "GET", "images/json", params={"filters": _filters(label=[label])}
        )
        return found

    async def pull(self, reference: str, *, login: Login | None = None) -> None:
        """Have the image, from its registry.

        Raises:
            NotFound: The registry does not have it.
            Misconfigured: The registry does not let us.
            Unavailable: The registry does not answer.
        """
        headers = {"X-Registry-Auth": _auth(reference, login)} if login else {}
        fault = ""
        params = {"fromImage": reference}
        async with self._answer("POST", "images/create", params=params, headers=headers, timeout_s=None) as answer:
            lines = Lines()
            async for data in answer.content.iter_chunked(_READ_BYTES):
                for line in lines.add(data):
                    fault = orjson.loads(line).get("error", fault)
        if not fault:
            return
        what = f"The Docker engine cannot pull {reference}"
        if _NO_ROOM in fault:
            raise StorageFull(what, why=fault)
        if "denied" in fault or "unauthorized" in fault or "no basic auth" in fault:
            raise Misconfigured(what, why=fault, todo="Check KNARR_REGISTRY_USER and KNARR_REGISTRY_PASSWORD.")
        if any(hint in fault for hint in _MISSING_IMAGE):
            raise NotFound(what, why=fault)
        raise Unavailable(what, why=fault, todo="KNARR_RUNTIME_REGISTRY names the registry as the engine sees it.")

    async def remove_image(self, reference: str) -> bool:
        """Remove it, unless something uses it."""
        try:
            await self._json("DELETE", f"images/{reference}")
        except (NotFound, Conflict):
            return False
        return True

    # ── networks and volumes ─────────────────────────────────────────────────────────────────────────────────────

    async def networks(self, labels: Mapping[str, str]) -> list[Mapping[str, Any]]:
        """All networks with these labels."""
        found: list[Mapping[str, Any]] = await self._json(
            "GET", "networks", params={"filters": _filters(label=_pairs(labels))}
        )
        return found

    async def ensure_network(self, name: str, labels: Mapping[str, str]) -> None:
        """A bridge of that name."""
        with contextlib.suppress(Conflict):  # CheckDuplicate: it is there
            try:
                await self._json(
                    "POST", "networks/create", body={"Name": name, "CheckDuplicate": True, "Labels": dict(labels)}
                )
            except KnarrError as error:
                if "address pool" not in error.why:
                    raise
                raise Unavailable(
                    "The Docker engine has no addresses left for another network",
                    why=error.why,
                    todo='Each app has a network of its own: give the engine more by "default-address-pools" in its'
                    " /etc/docker/daemon.json.",
                ) from error

    async def connect(self, network: str, container: str) -> None:
        """Let a container take part in a network."""
        try:
            await self._json("POST", f"networks/{network}/connect", body={"Container": container})
        except KnarrError as error:
            if "already exists" not in error.why:
                raise

    async def remove_network(self, name: str) -> bool:
        """Remove it with whatever connections are left; whether it was there."""
        try:
            known = await self._json("GET", f"networks/{name}")
        except NotFound:
            return False
        for container in known.get("Containers") or {}:
            with contextlib.suppress(NotFound):
                body = {"Container": container, "Force": True}
                await self._json("POST", f"networks/{name}/disconnect", body=body)
        with contextlib.suppress(NotFound):
            await self._json("DELETE", f"networks/{name}")
        return True

    async def ensure_volume(self, name: str, labels: Mapping[str, str]) -> None:
        """A named volume; one that is there keeps its content."""
        await self._json("POST", "volumes/create", body={"Name": name, "Labels": dict(labels)})

    async def volumes(self, labels: Mapping[str, str]) -> list[str]:
        """The names of all volumes with these labels."""
        found = await self._json("GET", "volumes", params={"filters": _filters(label=_pairs(labels))})
        return [str(each["Name"]) for each in found.get("Volumes") or ()]

    async def remove_volume(self, name: str) -> None:
        """Remove it with its content."""
        with contextlib.suppress(NotFound):
            await self._json("DELETE", f"volumes/{name}", params={"force": "true"})

    async def volume_sizes(self) -> dict[str, int]:
        """Bytes of each volume by its name, as far as the engine knows them. It counts them for this: takes a while."""
        found = await self._json("GET", "system/df", timeout_s=60)
        usage = {
            str(each["Name"]): (each.get("UsageData") or {}).get("Size", -1) for each in found.get("Volumes") or ()
        }
        return {name: int(size) for name, size in usage.items() if size >= 0}

    async def read_files(self, container_id: str, path: str) -> AsyncIterator[bytes]:
        """Pieces of a tar archive of a path inside a container.

        Raises:
            NotFound: There is no such path.
        """
        call = self._answer("GET", f"containers/{container_id}/archive", params={"path": path}, timeout_s=None)
        async with call as answer:
            async for piece in answer.content.iter_chunked(256 * 1024):
                yield piece

    async def write_files(self, container_id: str, path: str, archive: IO[bytes]) -> None:
        """Unpack a tar archive below a path inside a container, owners included."""
        params = {"path": path, "copyUIDGID": "true"}
        await self._send(f"containers/{container_id}/archive", params, archive, method="PUT")

    async def import_image(self, name: str, archive: bytes) -> None:
        """Make an image of one layer."""
        await self._send("images/create", {"fromSrc": "-", "repo": name, "tag": "latest"}, io.BytesIO(archive))

    # ── calls ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _json(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        timeout_s: float | None = CALL_S,
    ) -> Any:
        async with self._answer(method, path, params=params, body=body, timeout_s=timeout_s) as answer:
            data = await answer.read()
            return orjson.loads(data) if data.strip() else None

    async def _send(self, path: str, params: Mapping[str, str], archive: IO[bytes], *, method: str = "POST") -> None:
        """Send a tar archive; the answer is read to its end."""
        headers = {"Content-Type": "application/x-tar"}
        async with self._answer(method, path, params=params, raw=archive, headers=headers, timeout_s=None) as answer:
            await answer.read()

    @contextlib.asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        raw: IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None,
    ) -> "AsyncIterator[aiohttp.ClientResponse]":
        """A successful answer; its connection is closed afterwards, read or not."""
        import aiohttp
        from aiodocker.exceptions import DockerError
        from yarl import URL

        try:
            docker = await self._connected()
            async with docker.session.request(
                method,
                URL(f"{docker.docker_host}/{docker.api_version}/{path}", encoded=True),
                params=params,
                data=orjson.dumps(body) if body is not None else raw,
                headers={"Content-Type": "application/json", **(headers or {})},
                timeout=aiohttp.ClientTimeout(total=timeout_s, connect=CONNECT_S),
            ) as answer:
                if answer.status >= 400:
                    raise _fault(answer.status, await answer.read())
                yield answer
        except (aiohttp.ClientError, TimeoutError, OSError, DockerError) as error:
            raise Unavailable(
                "The Docker engine does not answer",
                why=str(error) or type(error).__name__,
                todo="Is it running, and may knarr use its socket? `docker info` shows it (KNARR_DOCKER_HOST).",
            ) from error

    async def _connected(self) -> "Docker":
        if self._docker is None:
            from aiodocker import Docker

            try:
                self._docker = Docker(self._url)
            except (ValueError, AssertionError) as error:
                raise Misconfigured(
                    "No Docker engine was found",
                    why="neither KNARR_DOCKER_HOST nor DOCKER_HOST names one, and there is no socket in /var/run",
                    todo="Install Docker, or set KNARR_RUNTIME to another runtime.",
                ) from error
        if self._docker.api_version == "auto":
            async with asyncio.timeout(CONNECT_S * 2):
                self._docker.api_version = f"v{(await self._docker.version())['ApiVersion']}"
        return self._docker


class CannotStart(FinalError):
    """The engine refuses to run the image in this way."""

    code = "start_failed"


_BAD_COMMAND = (
    "executable file not found",
    "exec format error",
    "no such file or directory",
    "permission denied",
    "is a directory",
    "unable to find user",
    "not a directory",
)


def _fault(status: int, body: bytes) -> KnarrError:
    try:
        why = str(orjson.loads(body)["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        why = body[:500].decode(errors="replace") or f"status {status}"
    what = "The Docker engine refused a request"
    if _NO_ROOM in why:
        return StorageFull(
            "The Docker engine has no room left", why=why, todo="`docker system df` shows what takes it."
        )
    if status == 404:
        return NotFound(what, why=why)
    if status == 409 or (status == 403 and "already exists" in why):
        return Conflict(what, why=why)
    return Unavailable(what, why=why) if status >= 500 else FinalError(what, why=why)


async def _frames(answer: "aiohttp.ClientResponse") -> AsyncGenerator[tuple[int, bytes], None]:
    """Yield the stream's number and what was printed, piece by piece."""
    while True:
        try:
            header = await answer.content.readexactly(_HEADER_BYTES)
            data = await answer.content.readexactly(int.from_bytes(header[4:], "big"))
        except asyncio.IncompleteReadError:
            return
        yield header[0], data


async def _payloads(answer: "aiohttp.ClientResponse") -> AsyncIterator[bytes]:
    async for _, data in _frames(answer):
        yield data


def _container(shown: Mapping[str, Any]) -> Container:
    state, config = shown["State"], shown["Config"]
    networks = shown["NetworkSettings"].get("Networks") or {}
    return Container(
        id=shown["Id"],
        name=shown["Name"].lstrip("/"),
        labels=config.get("Labels") or {},
        status=state["Status"],
        exit_code=int(state.get("ExitCode") or 0),
        error=state.get("Error") or "",
        out_of_memory=bool(state.get("OOMKilled")),
        started_ms=_ms(state.get("StartedAt", "")),
        finished_ms=_ms(state.get("FinishedAt", "")),
        restarts=int(shown.get("RestartCount") or 0),
        image=config["Image"],
        image_id=shown["Image"],
        addresses={name: each["IPAddress"] for name, each in networks.items() if each.get("IPAddress")},
        networks=frozenset(networks),
        restart_policy=shown["HostConfig"].get("RestartPolicy", {}).get("Name") or "no",
    )


def _ms(text: str) -> int:
    """Go's time with nanoseconds, in milliseconds since 1970; year 1 is its word for never."""
    if not text or text.startswith("0001-"):
        return 0
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def _pairs(labels: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" if value else name for name, value in labels.items()]


def _filters(**filters: Sequence[str]) -> str:
    return orjson.dumps({name: list(values) for name, values in filters.items()}).decode()


def _auth(reference: str, login: Login) -> str:
    import base64

    host = reference.split("/", 1)[0]
    said = {"username": login.user, "password": login.password, "serveraddress": host}
    return base64.urlsafe_b64encode(orjson.dumps(said)).decode()
