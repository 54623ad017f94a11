"""TLS to servers outside: a MySQL, a Pulsar and a registry with certificates of an authority that we are told to trust.

Each certificate has one name, so that the same server called otherwise is one whose name does not match.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from ocistore import ImageStoreSettings, OpenedStore
from ocistore.registry import Busy
from ocistore.testing import put_image
from seedwork.adapters.pulsar_admin import Plan, set_up
from seedwork.adapters.pulsar_client import PulsarAddress, PulsarClient
from seedwork.chassis.buses import bus_of, pulsar_address
from seedwork.chassis.http import HttpClients
from seedwork.chassis.settings import ServiceSettings
from seedwork.errors import Misconfigured, Unavailable
from seedwork.messages import envelope, new_id
from seedwork.testing.bus_contract import Collected, publish
from seedwork.testing.http import running
from seedwork.testing.servers import own_mysql, own_pulsar
from seedwork.unit_of_work import Database, DatabaseUnavailable, opened
from services.source.contract import FetchSource
from services.webhook.app import create_app
from services.webhook.settings import WebhookSettings
from tests.stack.certificates import Authority
from tests.stack.registries import own_registry

pytestmark = [pytest.mark.stack("DOCKER_HOST"), pytest.mark.xdist_group("tls")]


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom a client may trust."""

    ours: Authority
    strangers: Authority
    """Nobody should: it has signed for none of the servers."""

    def file(self, which: str) -> str | None:
        """What a setting says for `ours`, `strangers` or `nobody`."""
        return {"ours": str(self.ours.file), "strangers": str(self.strangers.file), "nobody": None}[which]


@dataclass(frozen=True, slots=True)
class Doubt:
    """A client that must not use its server."""

    which: str
    """Whom it trusts."""
    called: str
    """How it calls the server."""
    why: str


def doubts(*cases: Doubt) -> pytest.MarkDecorator:
    """Run the test with each."""
    return pytest.mark.parametrize("doubt", [pytest.param(each, id=f"{each.which}-{each.called}") for each in cases])


NOT_ACCEPTED = "the server's certificate is not accepted"


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust(
        Authority("ours", tmp_path_factory.mktemp("ours")), Authority("strangers", tmp_path_factory.mktemp("strangers"))
    )


def knarr(home: Path, *words: str, **settings: str | None) -> "subprocess.CompletedProcess[str]":
    """The command line in a process of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("KNARR_")}
    env |= {name: value for name, value in settings.items() if value is not None} | {"KNARR_HOME": str(home)}
    argv = [sys.executable, "-m", "knarr", *words]
    return subprocess.run(argv, env=env, cwd=home, capture_output=True, text=True, timeout=300, check=False)


# --- MySQL ------------------------------------------------------------------------------------------------------------

NOT_TRUSTED = doubts(
    Doubt("strangers", "localhost", NOT_ACCEPTED),
    Doubt("ours", "127.0.0.1", "IP address mismatch"),
    Doubt("nobody", "localhost", "the server takes encrypted connections only"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mysql(trust: Trust) -> AsyncIterator[URL]:
    """As its administrator sees it: a server called `localhost`, which takes encrypted connections only."""
    async with own_mysql(tls=trust.ours.certified("mysql", "localhost")) as (_, url):
        async with opened(url) as db:
            await db.write(lambda conn: conn.execute(text("SET GLOBAL require_secure_transport = ON")))
        yield make_url(url).set(host="localhost")


@contextlib.asynccontextmanager
async def database(url: URL, tls_ca: str | None) -> AsyncIterator[Database]:
    db = Database(url.render_as_string(hide_password=False), tls_ca=tls_ca)
    await db.open()
    try:
        yield db
    finally:
        await db.close()


async def cipher(conn: AsyncConnection) -> str:
    """With what the server encrypts this connection; empty: it does not."""
    _, used = (await conn.execute(text("SHOW STATUS LIKE 'Ssl_cipher'"))).one()
    return str(used)


async def test_a_database_is_written_and_read_over_encrypted_connections(mysql: URL, trust: Trust) -> None:
    """The server says so of the connections of both kinds."""
    async with database(mysql, trust.file("ours")) as db:
        await db.write(lambda conn: conn.execute(text("CREATE TABLE ships (name VARCHAR(9) PRIMARY KEY)")))
        await db.write(lambda conn: conn.execute(text("INSERT INTO ships VALUES ('argo')")))
        assert await db.read(lambda conn: conn.scalar(text("SELECT name FROM ships"))) == "argo"
        assert await db.write(cipher)
        assert await db.read(cipher)


@NOT_TRUSTED
async def test_a_database_that_is_not_trusted_is_not_used(mysql: URL, trust: Trust, doubt: Doubt) -> None:
    """The error says why, and which setting it is about."""
    async with database(mysql.set(host=doubt.called), trust.file(doubt.which)) as db:
        with pytest.raises(DatabaseUnavailable, match=rf"{doubt.why}.*KNARR_DATABASE_TLS_CA names"):
            await db.write(cipher)
        with pytest.raises(DatabaseUnavailable, match=rf"{doubt.why}.*KNARR_DATABASE_TLS_CA names"):
            await db.read(cipher)


def of_services(mysql: URL, trust: Trust, which: str = "ours") -> dict[str, str | None]:
    """The settings with which schemas are made."""
    service = mysql.set(username="knarr_{service}", password="of-the-test", database="knarr_{service}")
    return {
        "KNARR_DATABASE_URL": service.render_as_string(hide_password=False).replace("%7B", "{").replace("%7D", "}"),
        "KNARR_DATABASE_ADMIN_URL": mysql.set(database="").render_as_string(hide_password=False),
        "KNARR_DATABASE_TLS_CA": trust.file(which),
    }


async def test_a_service_starts_on_a_schema_that_was_made_over_encrypted_connections(
    mysql: URL, trust: Trust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made, migrated and sealed anew by processes of their own, on a server that takes nothing else."""
    settings = of_services(mysql, trust)
    made = knarr(tmp_path, "db", "upgrade", "--service", "webhook", **settings)
    assert made.returncode == 0, made.stderr
    resealed = knarr(tmp_path, "db", "reseal", "--service", "webhook", **settings)
    assert resealed.returncode == 0, resealed.stderr
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    async with running(create_app(WebhookSettings(home=tmp_path))) as client:
        assert (await client.get("/readyz")).status_code == 200


@NOT_TRUSTED
def test_schemas_are_not_made_on_a_server_that_is_not_trusted(
    mysql: URL, trust: Trust, tmp_path: Path, doubt: Doubt
) -> None:
    """`knarr db upgrade` ends, with three sentences: what, why, what to do."""
    settings = of_services(mysql.set(host=doubt.called), trust, doubt.which)
    done = knarr(tmp_path, "db", "upgrade", "--service", "source", **settings)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "The schema 'knarr_source' could not be made" in said
    assert doubt.why.lower() in said.lower()
    assert "the file that KNARR_DATABASE_TLS_CA names" in said


@NOT_TRUSTED
async def test_a_service_does_not_start_on_a_database_that_is_not_trusted(
    mysql: URL, trust: Trust, tmp_path: Path, doubt: Doubt
) -> None:
    """It says so once, and ends."""
    url = mysql.set(host=doubt.called).render_as_string(hide_password=False)
    settings = WebhookSettings(home=tmp_path, database_url=url, database_tls_ca=trust.file(doubt.which))
    with pytest.raises(
        Misconfigured, match=rf"The database of webhook is not used: .*{doubt.why}.*KNARR_DATABASE_TLS_CA"
    ):
        async with running(create_app(settings)):
            pass


# --- the registry -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry_port(trust: Trust, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a registry called `localhost`."""
    env = {"REGISTRY_HTTP_TLS_CERTIFICATE": "/tls/server.pem", "REGISTRY_HTTP_TLS_KEY": "/tls/server.key"}
    folder = trust.ours.certified("registry", "localhost")
    with own_registry(tmp_path_factory.mktemp("images"), env=env, volumes=[f"{folder}:/tls:ro"]) as registry:
        yield registry.host.rpartition(":")[2]


@contextlib.asynccontextmanager
async def images_at(host: str, tls_ca: str | None, *, shared: bool) -> AsyncIterator[OpenedStore]:
    """The store, by a client that it shares with the rest of its service, or by one of its own."""
    settings = ImageStoreSettings(image_store=f"https://{host}", registry_tls_ca=tls_ca)
    clients = HttpClients(service_token=None, trusted=())
    store = settings.open_image_store(clients.client if shared else None)
    try:
        yield store
    finally:
        await store.close()
        await clients.close()


@pytest.mark.parametrize("shared", [True, False])
async def test_images_are_put_and_got_over_encrypted_connections(
    registry_port: str, trust: Trust, tmp_path: Path, *, shared: bool
) -> None:
    """By both kinds of clients."""
    async with images_at(f"localhost:{registry_port}", trust.file("ours"), shared=shared) as store:
        image = await put_image(store, "shop", tmp_path, {"app.py": f"shared = {shared}"}, tags=["v1"])
        assert await store.get("shop", image.digest, verify=True) == image


@pytest.mark.parametrize("shared", [True, False])
@doubts(
    Doubt("strangers", "localhost", NOT_ACCEPTED),
    Doubt("ours", "127.0.0.1", "IP address mismatch"),
    Doubt("nobody", "localhost", NOT_ACCEPTED),
)
async def test_a_registry_that_is_not_trusted_is_not_used(
    registry_port: str, trust: Trust, doubt: Doubt, *, shared: bool
) -> None:
    """Nor asked again at once: what is wrong waits for a person, and so does the saga."""
    async with images_at(f"{doubt.called}:{registry_port}", trust.file(doubt.which), shared=shared) as store:
        with pytest.raises(Unavailable, match=rf"{doubt.why}.*KNARR_REGISTRY_TLS_CA names") as refused:
            await store.get("shop", "sha256:" + "0" * 64)
    assert not isinstance(refused.value, Busy)


# --- Pulsar -----------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pulsar(trust: Trust) -> AsyncIterator[ServiceSettings]:
    """Settings for a broker called `127.0.0.1`, as it calls itself when it says where a topic is."""
    async with own_pulsar(tls=trust.ours.certified("pulsar", "127.0.0.1")) as (_, address):
        yield ServiceSettings(
            bus="pulsar",
            pulsar_url=address.url,
            pulsar_admin_url=address.admin_url,
            pulsar_tls_ca=trust.file("ours"),
        )


async def test_messages_and_their_schemas_go_over_encrypted_connections(
    pulsar: ServiceSettings, tmp_path: Path
) -> None:
    """`knarr bus setup` by the admin API and the broker, then a command from one process to another."""
    made = knarr(
        tmp_path,
        "bus",
        "setup",
        KNARR_BUS="pulsar",
        KNARR_PULSAR_URL=pulsar.pulsar_url,
        KNARR_PULSAR_ADMIN_URL=pulsar.pulsar_admin_url,
        KNARR_PULSAR_TLS_CA=pulsar.pulsar_tls_ca,
    )
    assert made.returncode == 0, made.stderr
    source, coordinator = bus_of(pulsar, lambda: ()), bus_of(pulsar, lambda: (FetchSource,))
    got = Collected()
    await source.subscribe("source", (FetchSource,), got.handle)
    await source.open()
    await coordinator.open()
    sent = envelope(FetchSource.example(), source="test", saga_id=new_id(), app_id=new_id(), step="source", attempt=1)
    await publish(coordinator, [sent])
    await got.until({sent.id})
    assert got.envelopes == [sent]
    await source.close()
    await coordinator.close()
    client = PulsarClient(pulsar_address(pulsar))
    assert (await client.schema("FetchSource", 0))["name"] == "FetchSource"
    await client.close()


@doubts(
    Doubt("strangers", "127.0.0.1", NOT_ACCEPTED),
    Doubt("ours", "localhost", "Hostname mismatch"),
    Doubt("nobody", "127.0.0.1", NOT_ACCEPTED),
)
async def test_a_broker_that_is_not_trusted_is_not_used(pulsar: ServiceSettings, trust: Trust, doubt: Doubt) -> None:
    """Neither by its admin API nor by the client, whose library does not tell an authority from a name."""
    address = as_called(pulsar_address(pulsar), doubt.called, trust.file(doubt.which))
    with pytest.raises(Misconfigured, match=rf"admin API.*{doubt.why}.*KNARR_PULSAR_TLS_CA names"):
        await set_up(address, Plan(types=(), subscriptions={}))
    client = PulsarClient(address)
    with pytest.raises(Misconfigured, match=r"Cannot send to FetchSource: .*verify failed.*KNARR_PULSAR_TLS_CA names"):
        await client.sender("FetchSource", None)
    with pytest.raises(Misconfigured, match=r"cannot take messages.*verify failed.*KNARR_PULSAR_TLS_CA names"):
        await client.receiver("FetchSource", "source", None)
    await client.close()


def as_called(address: PulsarAddress, name: str, tls_ca: str | None) -> PulsarAddress:
    """The same broker by this name."""
    return replace(
        address,
        url=address.url.replace("127.0.0.1", name),
        admin_url=address.admin_url.replace("127.0.0.1", name),
        tls_ca=tls_ca,
    )
