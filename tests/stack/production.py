"""The overlay `production` as docs/operate.md tells its installer to fill it in, and what it wants outside the cluster.

Pulsar, MySQL and a registry are containers of the test's own beside the cluster, since pods cannot reach a server that
listens on this machine's loopback; the BuildKit is one, too. The cluster's node must be this machine's Docker engine,
as for the overlay `dev`. Installing and upgrading are the commands of docs/operate.md, taken from its text.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from seedwork.messages import new_id
from seedwork.testing.servers import MYSQL_IMAGE, PULSAR_IMAGE
from tests.stack.buildkit import BuildKit, own_buildkit
from tests.stack.platforms import ROOT, eventually, run
from tests.stack.registries import OwnRegistry, docker, own_registry

NAMESPACE = "knarr-production"
"""Not `knarr`: the platform of the overlay `dev` and of the scenarios is there."""
NODE_PORTS = 30_600
DOMAIN = "apps.knarr.test"
_MANUAL = ROOT / "docs" / "operate.md"
_ROOT_PASSWORD = "of-the-tests"
_PULSAR = """\
export PULSAR_PREFIX_advertisedAddress=$(hostname -i)
bin/apply-config-from-env.py conf/standalone.conf && exec bin/pulsar standalone -nss -nfw
"""
_PULSAR_SETTINGS = {
    "PULSAR_MEM": "-Xms128m -Xmx384m -XX:MaxDirectMemorySize=384m",
    "PULSAR_GC": "-XX:+UseSerialGC",
    "PULSAR_PREFIX_journalSyncData": "true",
    "PULSAR_PREFIX_brokerDeleteInactiveTopicsEnabled": "false",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What is not in the cluster, by its containers."""

    mysql: str
    pulsar: str
    registry: OwnRegistry
    buildkit: BuildKit

    @property
    def on_node(self) -> str:
        """The registry, for this machine's engine and BuildKit: loopback, which they trust without TLS."""
        return f"localhost:{self.registry.host.rpartition(':')[2]}"

    def asked(self, statement: str) -> list[str]:
        """Lines that MySQL answers to its administrator."""
        client = ("mysql", "-uroot", f"-p{_ROOT_PASSWORD}", "-h127.0.0.1", "--batch", "--skip-column-names")
        return docker("exec", self.mysql, *client, "-e", statement).splitlines()

    def push(self, image: str, name: str) -> str:
        """Bring an image of this machine's engine into the registry; its name there."""
        there = f"{self.on_node}/{name}"
        docker("tag", image, there)
        run("docker", "push", "--quiet", there)
        docker("image", "rm", there)
        return there


@contextlib.contextmanager
def outside(disk: Path) -> Iterator[Outside]:
    """Start all four; they answer."""
    with contextlib.ExitStack() as stack:
        settings = {"MYSQL_ROOT_PASSWORD": _ROOT_PASSWORD}
        arguments = ("--innodb-buffer-pool-size=128M", "--max-connections=400", "--performance-schema=OFF")
        mysql = stack.enter_context(_container(MYSQL_IMAGE, settings, *arguments))
        pulsar = stack.enter_context(_container(PULSAR_IMAGE, _PULSAR_SETTINGS, "sh", "-c", _PULSAR))
        registry = stack.enter_context(own_registry(disk))
        there = Outside(mysql=mysql, pulsar=pulsar, registry=registry, buildkit=stack.enter_context(own_buildkit()))
        ready = "curl --fail --silent http://127.0.0.1:8080/admin/v2/namespaces/public/default"
        eventually("Pulsar", lambda: _succeeds("docker", "exec", pulsar, *ready.split()))
        eventually("MySQL", lambda: _succeeds("docker", "exec", mysql, "mysqladmin", "ping", "--host=127.0.0.1"))
        yield there


@contextlib.contextmanager
def _container(image: str, settings: Mapping[str, str], *command: str) -> Iterator[str]:
    options = [f"--env={name}={value}" for name, value in settings.items()]
    name = f"knarr-test-{new_id()[-12:]}"
    docker("run", "--detach", f"--name={name}", "--memory=1200m", *options, image, *command)
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


def address(container: str) -> str:
    """Where pods reach it: they are on the engine's bridge, too."""
    return docker("inspect", "--format={{.NetworkSettings.IPAddress}}", container)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """A copy of deploy/k8s with an installer's changes.

    Args:
        folder: Holds the copy, as `deploy/k8s`.
        servers: What is outside.
        git: An image with git for the repositories of the tests, which no upgrade replaces.
    """

    folder: Path
    servers: Outside
    git: str

    @property
    def overlay(self) -> Path:
        """The overlay of that copy."""
        return self.folder / "deploy" / "k8s" / "overlays" / "production"

    def write(self, image: str) -> None:
        """The manual's list: addresses, the image, the volumes; and the namespace, ports and repositories of tests."""
        shutil.copytree(ROOT / "deploy", self.folder / "deploy", dirs_exist_ok=True)
        ours = "  - network.yaml\n  - repositories.yaml\n", "  - storage.yaml\n  - git.yaml\n  - node-ports.yaml\n"
        _change(
            self.overlay / "kustomization.yaml",
            _other_image(image)
            | {"namespace: knarr\n": f"namespace: {NAMESPACE}\n"}
            | {"  - network.yaml\n": ours[0], "  - storage.yaml\n": ours[1]},
        )
        _change(self.overlay / "ingress.yaml", {"knarr.example.com": "knarr.test"})
        base = self.folder / "deploy" / "k8s" / "base"
        _change(base / "namespace.yaml", {"name: knarr\n": f"name: {NAMESPACE}\n"})
        _change(
            base / "accounts.yaml",
            {
                "name: knarr-deployer\n": f"name: {NAMESPACE}-deployer\n",
                "name: knarr-app\n": f"name: {NAMESPACE}-app\n",
                "resourceNames: [knarr-app]\n": f"resourceNames: [{NAMESPACE}-app]\n",
            },
        )
        _change(
            self.overlay / "storage.yaml",
            {"accessModes: [ReadWriteMany]": f"accessModes: [ReadWriteMany]\n  storageClassName: {NAMESPACE}"},
        )
        self._write("settings.yaml", [{"kind": "ConfigMap", "name": "knarr", "data": self._settings()}])
        self._write("git.yaml", [_with_repositories(name) for name in ("webhook", "source")])
        dev = ROOT / "deploy" / "k8s" / "overlays" / "dev"
        repositories = (dev / "repositories.yaml").read_text()
        (self.overlay / "repositories.yaml").write_text(repositories.replace("image: knarr\n", f"image: {self.git}\n"))
        ports = (dev / "node-ports.yaml").read_text()
        (self.overlay / "node-ports.yaml").write_text(ports.replace("nodePort: 307", "nodePort: 306"))

    def volumes(self) -> Path:
        """A file with the volumes that several pods may write to: folders of the node."""
        volumes = []
        for name in ("source", "builder"):
            place = self.folder / "volumes" / name
            place.mkdir(parents=True, exist_ok=True)
            place.chmod(0o777)
            spec = {
                "capacity": {"storage": "20Gi"}, "accessModes": ["ReadWriteMany"], "storageClassName": NAMESPACE,
                "hostPath": {"path": str(place)}, "claimRef": {"namespace": NAMESPACE, "name": name},
                "persistentVolumeReclaimPolicy": "Retain",
            }  # fmt: skip
            metadata = {"name": f"{NAMESPACE}-{name}"}
            volumes.append({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec})
        path = self.folder / "volumes.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": volumes}))
        return path

    def make_secrets(self) -> None:
        """By the manual's commands, and a certificate of our own for the Ingress."""
        commands = console_block(_MANUAL.read_text(), "kubectl create namespace knarr")
        known = [line for line in commands if "knarr-systems" not in line and "KNARR_REGISTRY_PASSWORD" not in line]
        text = "\n".join(known).replace("ADMIN:PASSWORD@mysql.example.com", f"root:{_ROOT_PASSWORD}@mysql.example.com")
        self.shell(text.replace("mysql.example.com", address(self.servers.mysql)))
        key, certificate = self.folder / "tls.key", self.folder / "tls.crt"
        subject = ("-subj", "/CN=knarr.test", "-addext", "subjectAltName=DNS:knarr.test")
        made = ("-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", str(key), "-out", str(certificate))
        run("openssl", "req", "-x509", *subject, *made)
        kubectl("create", "secret", "tls", "knarr-tls", f"--key={key}", f"--cert={certificate}")

    def apply(self) -> None:
        """As the manual says; every service is there afterwards."""
        self.shell("kubectl apply -k deploy/k8s/overlays/production")
        self.shell(_of_upgrade("for each in "))

    def upgrade(self, image: str) -> None:
        """To this image, by the manual's commands."""
        self.write(image)
        self.shell("\n".join(_of_upgrade(beginning) for beginning in ("kubectl -n knarr delete", "kubectl apply")))
        self.shell(_of_upgrade("for each in "))

    def shell(self, commands: str) -> str:
        """What a person types, for the namespace of these tests; the first failure ends it."""
        ours = commands.replace("-n knarr ", f"-n {NAMESPACE} ").replace(
            "namespace knarr\n", f"namespace {NAMESPACE}\n"
        )
        argv = ["bash", "-euo", "pipefail", "-c", ours]
        done = subprocess.run(argv, cwd=self.folder, env=dict(os.environ), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{ours}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def _settings(self) -> Mapping[str, str]:
        there, on_node = self.servers, self.servers.on_node
        return {
            "KNARR_PULSAR_URL": f"pulsar://{address(there.pulsar)}:6650",
            "KNARR_PULSAR_ADMIN_URL": f"http://{address(there.pulsar)}:8080",
            "KNARR_IMAGE_STORE": f"http://{address(there.registry.container)}:5000",
            "KNARR_REGISTRY_INSECURE": "true",
            "KNARR_BUILDX_REGISTRY": on_node,
            "KNARR_RUNTIME_REGISTRY": on_node,
            "KNARR_BUILDKIT_HOST": there.buildkit.host_for_containers,
            "KNARR_BUILDX_CACHE": "registry",
            "KNARR_BUILDX_PYTHON_IMAGE": f"{on_node}/python:{{version}}-slim",
            "KNARR_KUBERNETES_DOMAIN": DOMAIN,
            "KNARR_KUBERNETES_INGRESS_CLASS": "nginx",
            "KNARR_KUBERNETES_TLS_SECRET": "",
            "KNARR_INSTALLATION": "production",
            "KNARR_KUBERNETES_APP_ROLE": f"{NAMESPACE}-app",
            "KNARR_SOURCE_ALLOW": "file:///srv/repositories/",
            "KNARR_OBSERVE_S": "0",  # the overlay `dev` is tested with the default
        }

    def _write(self, name: str, patches: list[dict[str, object]]) -> None:
        """Patches of objects, one a document."""
        versions = {"ConfigMap": "v1", "Deployment": "apps/v1"}
        documents = []
        for each in patches:
            body = {key: value for key, value in each.items() if key not in {"kind", "name"}}
            head = {"apiVersion": versions[str(each["kind"])], "kind": each["kind"], "metadata": {"name": each["name"]}}
            documents.append(json.dumps({**head, **body}, indent=2))
        (self.overlay / name).write_text("\n---\n".join(["# YAML, of which JSON is a part", *documents]))


def console_block(text: str, first: str) -> list[str]:
    """The commands of the page's block that has this one, without prompts; comments behind them stay."""
    (block,) = [each for each in text.split("```console\n")[1:] if first in each.partition("```")[0]]
    lines = block.partition("```")[0].splitlines()
    return [line[2:] for line in lines if line.startswith(("$ ", "> "))]


def _of_upgrade(beginning: str) -> str:
    """The command of the manual's section *Upgrade* that begins so."""
    (command,) = [
        line
        for line in console_block(_MANUAL.read_text(), "delete job db-upgrade bus-setup")
        if line.startswith(beginning)
    ]
    return command


def kubectl(*arguments: str) -> str:
    """Of the namespace."""
    return run("kubectl", f"--namespace={NAMESPACE}", *arguments)


def _succeeds(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _change(path: Path, changes: Mapping[str, str]) -> None:
    text = path.read_text()
    for old, new in changes.items():
        assert old in text, f"{path} has no {old!r}"
        text = text.replace(old, new)
    path.write_text(text)


def _other_image(image: str) -> dict[str, str]:
    name, _, tag = image.rpartition(":")
    return {"registry.example.com/platform/knarr": name, '"0.1.0"': json.dumps(tag)}


def _with_repositories(service: str) -> dict[str, object]:
    """The patch by which a service sees the repositories of the tests, which are in the place of a Git host."""
    mount = {"name": "repositories", "mountPath": "/srv/repositories", "readOnly": True}
    volume = {"name": "repositories", "persistentVolumeClaim": {"claimName": "repositories"}}
    pod = {"containers": [{"name": service, "volumeMounts": [mount]}], "volumes": [volume]}
    return {"kind": "Deployment", "name": service, "spec": {"template": {"spec": pod}}}
