"""Places of a test's own on real servers: a schema on MySQL, a namespace on Pulsar; gone when the test is over.

The servers are named by the environment, as `testbed env` prints it: MYSQL_URL, PULSAR_URL, PULSAR_ADMIN_URL.
"""

import asyncio
import contextlib
import os
import socket
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import httpx2
from sqlalchemy import MetaData, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from seedwork.adapters.mysql import CHARSET, COLLATION
from seedwork.adapters.pulsar_client import PulsarAddress
from seedwork.messages import new_id
from seedwork.unit_of_work import Database

_DELETIONS = 60
"""How often a namespace's deletion is asked for, a second apart: a broker that compacts takes its time."""


@contextlib.asynccontextmanager
async def mysql_schema(server: str | None = None, *, name: str | None = None) -> AsyncIterator[str]:
    """The URL of an empty schema `paas_…`.

    Args:
        server: An SQLAlchemy URL of a user who may make such schemas; MYSQL_URL, if not given.
        name: Of the schema, if it matters; it must not be there yet.
    """
    url = make_url(server or os.environ["MYSQL_URL"])
    name = name or f"paas_{new_id().replace('-', '')[-16:]}"
    await _run(url, f"CREATE DATABASE `{name}` CHARACTER SET {CHARSET} COLLATE {COLLATION}")
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        await _run(url, f"DROP DATABASE IF EXISTS `{name}`")


@contextlib.asynccontextmanager
async def database(kind: str, folder: Path, metadata: MetaData) -> AsyncIterator[Database]:
    """An open database with these tables: `sqlite`, a file in `folder`, or `mysql`, a schema of its own."""
    async with contextlib.AsyncExitStack() as stack:
        url = f"sqlite+aiosqlite:///{folder}/test.db"
        if kind == "mysql":
            url = await stack.enter_async_context(mysql_schema())
        database = Database(url)
        await database.open()
        stack.push_async_callback(database.close)
        async with database.engine.begin() as conn:
            await conn.run_sync(metadata.create_all)
        yield database


@contextlib.asynccontextmanager
async def pulsar_namespace(tenant: str = "paas-tests") -> AsyncIterator[PulsarAddress]:
    """The address of an empty namespace, which `pulsar_admin.set_up` still has to fill."""
    address = PulsarAddress(
        url=os.environ["PULSAR_URL"],
        admin_url=os.environ["PULSAR_ADMIN_URL"],
        tenant=tenant,
        namespace=f"t{new_id().replace('-', '')[-16:]}",
    )
    try:
        yield address
    finally:
        await _remove(address)


async def _remove(address: PulsarAddress) -> None:
    """The broker refuses with 409 or 422 while it is not done with the topics; what is there then is deleted again."""
    space = f"{address.tenant}/{address.namespace}"
    async with httpx2.AsyncClient(base_url=f"{address.admin_url}/admin/v2/", timeout=60, trust_env=False) as http:
        for left in reversed(range(_DELETIONS)):
            await _delete_topics(http, space)
            answer = await http.delete(f"namespaces/{space}")
            if answer.status_code not in (409, 422) or not left:
                break
            await asyncio.sleep(1.0)
        if answer.status_code != 404:
            answer.raise_for_status()


async def _delete_topics(http: httpx2.AsyncClient, space: str) -> None:
    """Whether all of them are gone is seen when the namespace is deleted."""
    for listed, whole in ((f"{space}/partitioned", "/partitions"), (space, "")):
        topics = await http.get(f"persistent/{listed}")
        for topic in topics.json() if topics.status_code == 200 else ():
            await http.delete(topic.replace("://", "/", 1) + whole, params={"force": "true"})


async def _run(url: URL, statement: str) -> None:
    engine = create_async_engine(url)
    try:
        async with engine.begin() as conn:
            await conn.execute(text(statement))
    finally:
        await engine.dispose()


class Wire:
    """A TCP connection between a client and a real server that a test can cut, at a moment of its choosing.

    Args:
        host: Of the server.
        port: Of the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._wanted: tuple[bytes, ...] = ()
        self._pairs: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Server | None = None
        self.cuts = 0
        """How often the wire was cut by `cut_after`."""
        self.connections = 0
        """How many there were."""

    async def open(self) -> int:
        """Listen on this machine; the port."""
        self._listening = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port: int = self._listening.sockets[0].getsockname()[1]
        return port

    def cut_after(self, *texts: bytes) -> None:
        """On the first connection that sends these in this order: the last one arrives, its answer never comes back."""
        self._wanted = texts

    def cut(self) -> None:
        """Cut every connection there is; new ones are let through."""
        for each in self._pairs:
            each.close()

    async def close(self) -> None:
        """Cut, and let nobody in any more."""
        if self._listening:
            self._listening.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self._server)
        except OSError:
            writer.close()
            return
        self.connections += 1
        pair = {writer, back}
        self._pairs |= pair
        for task in (self._carry(reader, back, pair, watch=True), self._carry(there, writer, pair, watch=False)):
            running = asyncio.create_task(task)
            self._tasks.add(running)
            running.add_done_callback(self._tasks.discard)

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pair: set[asyncio.StreamWriter],
        *,
        watch: bool,
    ) -> None:
        seen = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
                if watch and seen < len(self._wanted) and self._wanted[seen] in data:
                    seen += 1
                if watch and self._wanted and seen == len(self._wanted):
                    self._wanted = ()
                    self.cuts += 1
                    for each in pair - {writer}:  # the client first: it must not see the answer
                        each.transport.abort()
                    break
        for each in pair:
            each.close()
        self._pairs -= pair


class Container:
    """A server of the test's own in a Docker container, to be killed without asking anybody.

    Args:
        image: As the testbed has it.
        ports: Those that the server listens on inside, and ours.
        options: More for `docker run`.
        command: In place of the image's own.
    """

    def __init__(self, image: str, ports: Mapping[int, int], *options: str, command: Sequence[str] = ()) -> None:
        self.name = f"knarr-test-{new_id()[-12:]}"
        published = [part for inside, outside in ports.items() for part in ("-p", f"127.0.0.1:{outside}:{inside}")]
        self._run = ["run", "-d", "--name", self.name, "--memory", "1200m", *published, *options, image, *command]

    async def start(self) -> None:
        """Make it and start it."""
        await docker(*self._run)

    async def kill(self) -> None:
        """As a power cut: no shutdown, no flush."""
        await docker("kill", "-s", "KILL", self.name)

    async def restart(self) -> None:
        """Start it again on the data that it left."""
        await docker("start", self.name)

    async def remove(self) -> None:
        """With its data."""
        await docker("rm", "-f", "-v", self.name)


async def docker(*arguments: str) -> str:
    """Run Docker's command line.

    Raises:
        RuntimeError: It failed.
    """
    process = await asyncio.create_subprocess_exec("docker", *arguments, stdout=PIPE, stderr=PIPE)
    out, err = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"docker {arguments[0]}: {err.decode()[-500:]}")
    return out.decode()


def free_port() -> int:
    """A port of this machine that nobody has now."""
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        port: int = probing.getsockname()[1]
        return port


async def answers(look: Callable[[], Awaitable[object]], *, within_s: float = 180.0) -> None:
    """Wait until this raises no error of a connection any more: a server has come up."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                await look()
            except (OSError, DBAPIError, httpx2.HTTPError):
                await asyncio.sleep(0.25)
            else:
                return


TLS_FOLDER = "/etc/knarr-test"
"""Where a server finds its certificate and key."""


def _mounted(tls: Path | None) -> list[str]:
    return ["-v", f"{tls}:{TLS_FOLDER}:ro"] if tls else []


MYSQL_IMAGE = "mysql:9"


@contextlib.asynccontextmanager
async def own_mysql(*, tls: Path | None = None) -> AsyncIterator[tuple[Container, str]]:
    """A MySQL of the test's own, and the URL of an empty schema in it.

    Args:
        tls: A folder with what it shows to clients that ask for TLS, `server.pem` and `server.key`; none: what it has
            made itself.
    """
    port = free_port()
    shown = [f"--ssl-cert={TLS_FOLDER}/server.pem", f"--ssl-key={TLS_FOLDER}/server.key"] if tls else []
    server = Container(
        MYSQL_IMAGE, {3306: port}, "-e", "MYSQL_ROOT_PASSWORD=root", "-e", "MYSQL_DATABASE=paas",
        *_mounted(tls),
        command=["--innodb-buffer-pool-size=64M", "--performance-schema=OFF", *shown],
    )  # fmt: skip
    await server.start()
    url = make_url(f"mysql+asyncmy://root:root@127.0.0.1:{port}/paas")
    try:
        await answers(lambda: _run(url, f"ALTER DATABASE CHARACTER SET {CHARSET} COLLATE {COLLATION}"))
        yield server, url.render_as_string(hide_password=False)
    finally:
        await server.remove()


PULSAR_IMAGE = "apachepulsar/pulsar:4.0.6"
PULSAR_COMMAND = (
    "sh", "-c", "bin/apply-config-from-env.py conf/standalone.conf && exec bin/pulsar standalone -nss -nfw"
)  # fmt: skip


def pulsar_settings(port: int) -> dict[str, str]:
    """The environment of a small container of Pulsar, as durable as the testbed's; clients find it at that port."""
    return {
        "PULSAR_MEM": "-Xms128m -Xmx384m -XX:MaxDirectMemorySize=384m",
        "PULSAR_GC": "-XX:+UseSerialGC",
        "PULSAR_PREFIX_advertisedAddress": "127.0.0.1",
        "PULSAR_PREFIX_brokerServicePort": str(port),
        "PULSAR_PREFIX_journalSyncData": "true",
        "PULSAR_PREFIX_brokerDeleteInactiveTopicsEnabled": "false",
        "PULSAR_PREFIX_managedLedgerNewEntriesCheckDelayInMillis": "0",
        "PULSAR_PREFIX_managedLedgerCacheSizeMB": "16",
        "PULSAR_PREFIX_dbStorage_writeCacheMaxSizeMb": "16",
        "PULSAR_PREFIX_dbStorage_readAheadCacheMaxSizeMb": "8",
        "PULSAR_PREFIX_dbStorage_rocksDB_blockCacheSize": "8388608",
    }


@contextlib.asynccontextmanager
async def own_pulsar(*, tls: Path | None = None) -> AsyncIterator[tuple[Container, PulsarAddress]]:
    """A Pulsar of the test's own, durable as the testbed's is.

    Args:
        tls: A folder with `server.pem` and `server.key`, by which it speaks TLS, too: the address is of that then.
    """
    broker, admin = free_port(), free_port()
    settings = pulsar_settings(broker)
    ports = {broker: broker, 8080: admin}
    if tls:
        secure, secure_admin = free_port(), free_port()
        ports |= {secure: secure, 8443: secure_admin}
        settings |= {
            "PULSAR_PREFIX_brokerServicePortTls": str(secure),
            "PULSAR_PREFIX_webServicePortTls": "8443",
            "PULSAR_PREFIX_tlsCertificateFilePath": f"{TLS_FOLDER}/server.pem",
            "PULSAR_PREFIX_tlsKeyFilePath": f"{TLS_FOLDER}/server.key",
        }
    options = [part for name, value in settings.items() for part in ("-e", f"{name}={value}")]
    server = Container(PULSAR_IMAGE, ports, *options, *_mounted(tls), command=PULSAR_COMMAND)
    await server.start()
    address = PulsarAddress(
        url=f"pulsar://127.0.0.1:{broker}", admin_url=f"http://127.0.0.1:{admin}", tenant="paas-tests", namespace="own"
    )
    try:
        await answers(lambda: healthy(address))
        if tls:
            encrypted = f"pulsar+ssl://127.0.0.1:{secure}"
            address = replace(address, url=encrypted, admin_url=f"https://127.0.0.1:{secure_admin}")
        yield server, address
    finally:
        await server.remove()


async def healthy(address: PulsarAddress) -> None:
    """Ask the broker whether it is well.

    Raises:
        httpx2.HTTPError: It is not, or does not answer.
    """
    async with httpx2.AsyncClient(base_url=address.admin_url, timeout=20, trust_env=False) as http:
        (await http.get("/admin/v2/brokers/health")).raise_for_status()
        (await http.get("/admin/v2/namespaces/public/default")).raise_for_status()
