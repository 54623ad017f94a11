"""The platform under test: two processes of each service, on servers that can be killed.

MySQL, Pulsar and the registry are containers of this run; the registry is reached through a proxy that spoils answers,
the cluster's API through a port that can be closed, each service through a `Door`, as a Service of Kubernetes would be.
Apps run in the cluster of KUBECONFIG, images are built by the engine of DOCKER_HOST. Everything goes at the end.
"""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

import httpx2
import yaml
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from seedwork.adapters.pulsar_client import PulsarAddress
from seedwork.chassis.settings import SERVICE_PORTS
from seedwork.messages import new_id
from seedwork.testing.ports import block_of_ports
from seedwork.testing.servers import (
    MYSQL_IMAGE,
    PULSAR_COMMAND,
    PULSAR_IMAGE,
    Container,
    answers,
    free_port,
    healthy,
    pulsar_settings,
)
from tests.chaos.doors import Door, LoopThread, says_200
from tests.chaos.plans import REPLICAS
from tests.e2e.harness import Knarr, Repository, eventually
from tests.stack.faulty_proxy import FaultyProxy, faulty_proxy

REGISTRY_IMAGE = "registry:2"
STORE = "/var/lib/registry/docker/registry/v2/repositories"
SHARING = ("source", "builder")
"""Services whose replicas have one folder together, as deploy/k8s/overlays/production gives them one volume."""
_STAYS = "--restart=unless-stopped"
"""As docker-compose.yml: back after a restart of the engine. One that was killed stays away until it is started."""


def run(*argv: str, **environment: str) -> str:
    """Run a program to its end; what it printed. Its errors are ours."""
    done = subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def kubectl_items(*what: str) -> list[dict[str, Any]]:
    """What `kubectl get` lists in all namespaces; without what is on its way out."""
    found = json.loads(run("kubectl", "get", *what, "--all-namespaces", "--output=json"))["items"]
    return [each for each in found if "deletionTimestamp" not in each["metadata"]]


@dataclass
class Replica:
    """One process of a service."""

    service: str
    letter: str
    port: int
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    @property
    def name(self) -> str:
        """Such as `builder.a`."""
        return f"{self.service}.{self.letter}"

    def start(self) -> None:
        """Start it, if it does not run."""
        if self.process is not None and self.process.poll() is None:
            return
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"services.{self.service}"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[2],
                start_new_session=True,
            )

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: signal.Signals, *, within_s: float = 60) -> int:
        """Send it this signal and wait for its end; how it ended."""
        assert self.process is not None
        self.send(number)
        return self.process.wait(within_s)

    async def is_ready(self) -> bool:
        """Whether it takes work."""
        return await says_200("127.0.0.1", self.port, "/readyz", within_s=5)


@dataclass
class Servers:
    """What the platform stands on."""

    mysql: Container
    mysql_port: int
    pulsar: Container
    pulsar_address: PulsarAddress
    registry: Container
    registry_port: int

    @classmethod
    def planned(cls) -> Self:
        """Names and ports; nothing is started."""
        mysql_port, broker, admin, registry_port = free_port(), free_port(), free_port(), free_port()
        environment = [part for name, value in pulsar_settings(broker).items() for part in ("-e", f"{name}={value}")]
        return cls(
            Container(
                MYSQL_IMAGE, {3306: mysql_port}, _STAYS, "-e", "MYSQL_ROOT_PASSWORD=root",
                command=["--innodb-buffer-pool-size=128M", "--performance-schema=OFF", "--max-connections=400"],
            ),
            mysql_port,
            Container(PULSAR_IMAGE, {broker: broker, 8080: admin}, _STAYS, *environment, command=PULSAR_COMMAND),
            PulsarAddress(
                url=f"pulsar://127.0.0.1:{broker}", admin_url=f"http://127.0.0.1:{admin}",
                tenant="knarr", namespace="chaos",
            ),
            Container(
                REGISTRY_IMAGE, {5000: registry_port}, _STAYS, "-e", "REGISTRY_STORAGE_DELETE_ENABLED=true",
                "-e", "REGISTRY_STORAGE_CACHE_BLOBDESCRIPTOR=", "-e", "REGISTRY_LOG_LEVEL=warn",
            ),
            registry_port,
        )  # fmt: skip

    def mysql_url(self, schema: str = "", *, login: str = "root:root") -> str:
        """An SQLAlchemy URL; the administrator's, unless a login is given."""
        return f"mysql+asyncmy://{login}@127.0.0.1:{self.mysql_port}/{schema}"

    @property
    def containers(self) -> tuple[Container, ...]:
        """All of them."""
        return self.mysql, self.pulsar, self.registry

    async def answer(self) -> None:
        """Wait until all of them do."""
        await answers(self._ask_mysql)
        await answers(lambda: healthy(self.pulsar_address))
        await answers(self._ask_registry)

    async def _ask_registry(self) -> None:
        async with httpx2.AsyncClient(timeout=20, trust_env=False) as http:
            (await http.get(f"http://127.0.0.1:{self.registry_port}/v2/")).raise_for_status()

    async def _ask_mysql(self) -> None:
        engine = create_async_engine(self.mysql_url())
        try:
            async with engine.connect() as conn:
                await conn.execute(text("SELECT 1"))
        finally:
            await engine.dispose()


@dataclass
class Replicated(Knarr):
    """Twelve processes behind six doors."""

    lease_s: float = field(default=10.0, kw_only=True)
    loop: LoopThread = field(kw_only=True)
    servers: Servers = field(default_factory=Servers.planned, kw_only=True)
    registry: FaultyProxy = field(kw_only=True)
    cluster: Door = field(kw_only=True)
    installation: str = field(kw_only=True)
    replicas: list[Replica] = field(default_factory=list, kw_only=True)
    doors: dict[str, Door] = field(default_factory=dict, kw_only=True)

    patience_s: ClassVar[float] = 900
    least_start_s: ClassVar[int] = 30
    let_go_s: ClassVar[float] = 240

    # How it runs

    def start(self, **settings: str) -> Self:
        """Make schemas and topics, then start all replicas and wait until each is ready."""
        self.settings |= settings
        for folder in ("logs", "a", "b", "shared", "home", "repositories"):
            (self.folder / folder).mkdir(mode=0o700, exist_ok=True)
        (self.home / "token").write_text(self._token)
        (self.folder / "kubeconfig").write_text(self._kubeconfig())
        setup = self._common() | {"KNARR_HOME": str(self.home), "KNARR_DATABASE_ADMIN_URL": self.servers.mysql_url()}
        for command in ("db", "upgrade"), ("bus", "setup"):
            run(sys.executable, "-m", "knarr", *command, **setup)
        self.replicas = [self._replica(service, letter) for service in SERVICE_PORTS for letter in REPLICAS]
        for service in SERVICE_PORTS:
            behind = [("127.0.0.1", each.port) for each in self.of(service)]
            door = Door(self.port_base + 1 + SERVICE_PORTS.index(service), behind, probe="/readyz")
            self.doors[service] = self.loop.run(door.open())
        for each in self.replicas:
            each.start()
        self.await_ready(self.replicas)
        return self

    def stop(self) -> None:
        """End all replicas at once; their doors close."""
        self.forget()
        for each in self.replicas:
            if each.process is not None and each.process.poll() is None:
                each.send(signal.SIGCONT)
                each.end(signal.SIGKILL)
        for door in self.doors.values():
            self.loop.run(door.close())

    def of(self, target: str) -> list[Replica]:
        """`builder` or `builder.*`: both replicas; `builder.a`: that one."""
        service, _, letter = target.partition(".")
        return [each for each in self.replicas if each.service == service and letter in {"", "*", each.letter}]

    def await_ready(self, replicas: Sequence[Replica]) -> None:
        """Until each of them takes work; one that ended by itself is an error."""

        def ready(each: Replica) -> bool:
            assert each.process is not None
            code = each.process.poll()
            assert code is None, f"{each.name} ended with {code}:\n{each.log.read_text(errors='replace')[-3000:]}"
            return self.loop.run(each.is_ready())

        for each in replicas:
            eventually(f"{each.name} is ready", partial(ready, each), patience_s=180)

    def url_of(self, repository: str) -> str:
        """Its folder."""
        return (self.repositories / repository).as_uri()

    def share(self, repository: Repository) -> None:
        """It reads the folder itself."""

    # What is there, seen from outside

    def objects(self, *kinds: str) -> list[dict[str, Any]]:
        """Of this platform, in the cluster; not a pod that is over and only stands in its records."""
        found = kubectl_items(",".join(kinds), "-l", f"knarr.io/installation={self.installation}")
        return [each for each in found if each["kind"] != "Pod" or not _is_over(each)]

    def workloads(self, saga_id: str | None = None) -> set[str]:
        """Pods."""
        pods = self.objects("pods")
        return {each["metadata"]["name"] for each in pods if saga_id in {None, _label(each, "saga")}}

    def running(self, app: str) -> int:
        """Its pods."""
        return sum(1 for each in self.objects("pods") if _label(each, "app") == app)

    def images(self) -> dict[str, list[str]]:
        """Manifests on the registry's disk."""
        look = f"[ ! -d {STORE} ] || find {STORE} -path '*/_manifests/revisions/*' -name link"
        found: dict[str, list[str]] = {}
        for link in run("docker", "exec", self.servers.registry.name, "sh", "-c", look).split():
            name, _, revision = link.removeprefix(f"{STORE}/").partition("/_manifests/revisions/sha256/")
            found.setdefault(name, []).append(f"sha256:{revision.partition('/')[0]}")
        return {name: sorted(digests) for name, digests in found.items()}

    def leftovers(self, saga_id: str) -> list[str]:
        """Objects with its label, files with its name."""
        kinds = ("deployments", "replicasets", "jobs", "pods", "secrets")
        carrying = [each["metadata"]["name"] for each in self.objects(*kinds) if _label(each, "saga") == saga_id]
        return carrying + [each for each in self.files() if saga_id in each]

    def files(self) -> list[str]:
        """Files and folders of the services, without logs, mirrors and locks: those are kept on purpose."""
        kept = {"logs", "mirrors", "locks", "buildx"}
        found = (path for letter in ("a", "b", "shared") for path in (self.folder / letter).rglob("*"))
        named = (path.relative_to(self.folder) for path in found)
        return sorted(str(path) for path in named if not kept & set(path.parts))

    def size_of(self, service: str) -> int:
        """In its folders."""
        return sum(
            path.stat().st_size
            for letter in ("a", "b", "shared")
            for path in (self.folder / letter / service).rglob("*")
            if path.is_file()
        )

    # Settings

    def __post_init__(self) -> None:
        """Secrets that all replicas share."""
        super().__post_init__()
        self._token, self._service_token = new_id(), new_id()
        self._keys = [base64.urlsafe_b64encode(os.urandom(32)).decode() for _ in range(2)]

    def _common(self) -> dict[str, str]:
        secret_key, config_key = self._keys
        urls = {
            f"KNARR_{each.upper()}_URL": f"http://127.0.0.1:{self.port_base + 1 + number}"
            for number, each in enumerate(SERVICE_PORTS)
        }
        address = self.servers.pulsar_address
        return self.environment() | urls | {
            "PYTHONPATH": os.pathsep.join([".", "libs"]),
            "KNARR_HOST": "127.0.0.1",
            "KNARR_DATABASE_URL": self.servers.mysql_url("knarr_{service}", login="knarr_{service}:of-the-tests"),
            "KNARR_BUS": "pulsar",
            "KNARR_PULSAR_URL": address.url,
            "KNARR_PULSAR_ADMIN_URL": address.admin_url,
            "KNARR_PULSAR_TENANT": address.tenant,
            "KNARR_PULSAR_NAMESPACE": address.namespace,
            "KNARR_LEASE_S": f"{self.lease_s:g}",
            "KNARR_TOKEN": self._token,
            "KNARR_SERVICE_TOKEN": self._service_token,
            "KNARR_SECRET_KEY": secret_key,
            "KNARR_CONFIG_KEY": config_key,
            "KNARR_SOURCE_ALLOW": f"{self.repositories.as_uri()}/",
            "KNARR_POLL_S": "0",  # every push has its webhook: no other saga can be right
            "KNARR_OBSERVE_S": "0",  # what is broken here is the platform, not an app in use
            "KNARR_IMAGE_STORE": self.registry.url,
            "KNARR_BUILDER": "buildx",
            "KNARR_BUILDX_REGISTRY": f"localhost:{self.registry.host.partition(':')[2]}",
            "KNARR_RUNTIME": "kubernetes",
            "KNARR_RUNTIME_REGISTRY": f"localhost:{self.registry.host.partition(':')[2]}",
            "KNARR_KUBECONFIG": str(self.folder / "kubeconfig"),
            "KNARR_KUBERNETES_NODE_PORT_BASE": "31800",
            "KNARR_INSTALLATION": self.installation,
            "KNARR_REGISTRY_KEEP": "3",  # so that images fall out of the register while all this goes on
            "KNARR_APP_STOP_GRACE_S": "3",
            "KNARR_LOG_FORMAT": "json",
            **self.settings,
        }  # fmt: skip

    def _replica(self, service: str, letter: str) -> Replica:
        base = self.port_base + 10 * (1 + REPLICAS.index(letter))
        home = self.folder / ("shared" if service in SHARING else letter)
        return Replica(
            service,
            letter,
            base + 1 + SERVICE_PORTS.index(service),
            self._common() | {"KNARR_HOME": str(home), "KNARR_PORT_BASE": str(base)},
            self.folder / "logs" / f"{service}.{letter}.log",
        )

    def _kubeconfig(self) -> str:
        """As KUBECONFIG, with the API server behind our door."""
        config = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
        for each in config["clusters"]:
            each["cluster"]["server"] = f"https://127.0.0.1:{self.cluster.port}"
        return yaml.safe_dump(config)


def _is_over(pod: dict[str, Any]) -> bool:
    """Told to go, and nothing of it runs."""
    states = [each["state"] for each in pod["status"].get("containerStatuses", ())]
    return "deletionTimestamp" in pod["metadata"] and bool(states) and all("terminated" in each for each in states)


def _label(each: dict[str, Any], name: str) -> str | None:
    found: str | None = each["metadata"].get("labels", {}).get(f"knarr.io/{name}")
    return found


def api_server() -> tuple[str, int]:
    """Host and port of the cluster's API, as KUBECONFIG has it."""
    config = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    url = urlsplit(config["clusters"][0]["cluster"]["server"])
    return str(url.hostname), url.port or 443


@contextlib.contextmanager
def replicated(folder: Path, *, lease_s: float, **settings: str) -> Iterator[Replicated]:
    """The platform, started; gone afterwards, with everything that it made but its logs."""
    with ExitStack() as stack:
        loop = stack.enter_context(LoopThread())
        servers = Servers.planned()
        for each in servers.containers:
            stack.callback(_removed, loop, each)
            loop.run(each.start())
        spoiling = faulty_proxy(f"127.0.0.1:{servers.registry_port}")
        proxy = loop.run(spoiling.__aenter__())
        stack.callback(lambda: loop.run(spoiling.__aexit__(None, None, None)))
        cluster = loop.run(Door(0, [api_server()]).open())
        stack.callback(lambda: loop.run(cluster.close()))
        loop.run(servers.answer())
        platform = Replicated(
            folder,
            stack.enter_context(block_of_ports()),
            lease_s=lease_s,
            loop=loop,
            servers=servers,
            registry=proxy,
            cluster=cluster,
            installation=f"chaos-{new_id()[-8:]}",
        )
        stack.callback(_remove_images, proxy)
        stack.callback(_remove_apps, platform)
        stack.callback(platform.stop)
        yield platform.start(**settings)


def _removed(loop: LoopThread, container: Container) -> None:
    loop.run(container.remove())


def _remove_apps(platform: Replicated) -> None:
    names = [each["metadata"]["name"] for each in platform.objects("namespaces")]
    if names:
        run("kubectl", "delete", "namespace", *names)


def _remove_images(registry: FaultyProxy) -> None:
    """What the engine has pulled or built under the registry's name."""
    name = f"localhost:{registry.host.partition(':')[2]}/*"
    ids = run(
        "docker", "image", "ls", "--quiet", "--digests", f"--filter=reference={name}/*", f"--filter=reference={name}"
    )
    if ids:
        subprocess.run(
            ["docker", "image", "rm", "--force", *sorted(set(ids.split()))], capture_output=True, check=False
        )
