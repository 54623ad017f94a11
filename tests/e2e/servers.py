"""The platform in containers, as the scenarios meet it: `InCompose` on a Docker engine, `InCluster` on Kubernetes.

Both are what people install, docker-compose.yml and deploy/k8s/overlays/dev, but for ports and the settings of a test.
Repositories are pushed to where the platform may fetch them. What is left is asked from the engine, the cluster and the
registry's disk, never from the platform.
"""

import base64
import json
import os
import subprocess
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from seedwork.chassis.settings import SERVICE_PORTS
from tests.e2e.harness import Knarr, Repository, eventually

ROOT = Path(__file__).parents[2]
SHELF = "/srv/repositories"
"""Where the repositories are, for the platform."""
STORE = "/var/lib/registry/docker/registry/v2/repositories"
HOMES = "/var/lib/knarr"
QUIET = {"KNARR_POLL_S": "0", "KNARR_DRAIN_S": "1", "KNARR_OBSERVE_S": "0"}
"""As on the laptop: no push is found by asking, no old instance is waited for, and no release is observed."""


def services() -> list[str]:
    """As compose and Kubernetes write their names."""
    return [name.replace("_", "-") for name in SERVICE_PORTS]


def run(*argv: str, **environment: str) -> str:
    """Run a program to its end; what it printed. Its errors are the test's."""
    done = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(argv)}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@dataclass
class InContainers(Knarr):
    """What both have in common: a command that runs another one beside a service's files."""

    patience_s: ClassVar[float] = 600
    least_start_s: ClassVar[int] = 30
    let_go_s: ClassVar[float] = 120

    _shared: set[str] = field(default_factory=set, kw_only=True)

    @abstractmethod
    def inside(self, system: str) -> Sequence[str]:
        """What runs a command where this service, `images` or `repositories` is."""

    @abstractmethod
    def where(self) -> str:
        """What runs the containers, with its version."""

    @abstractmethod
    def write_logs(self, file: Path) -> None:
        """What all of it has said."""

    @abstractmethod
    def close(self) -> None:
        """Take everything away."""

    def versions(self) -> str:
        """What it runs on, for people: each server with the version that it says it has."""
        mysql = run(*self.inside("mysql"), "mysqld", "--version").split()
        pulsar = run(*self.inside("pulsar"), "curl", "-s", "http://127.0.0.1:8080/admin/v2/brokers/version")
        registry = run(*self.inside("images"), "registry", "--version").split()
        version = mysql[mysql.index("Ver") + 1]
        return f"{self.where()}, MySQL {version}, Pulsar {pulsar.strip()}, registry {registry[-1]}"

    def stop(self) -> None:
        """Nothing: `start` replaces what has other settings, one service after the other."""
        self.forget()

    def remove_apps(self) -> None:
        """All of them: each has a network or a namespace, and an engine has some thirty networks to give."""
        apps = self.api.pages("webhook", "/apps", limit=1000)
        removals = [self.api.delete("webhook", f"/apps/{each['name']}")["saga_id"] for each in apps]
        for saga_id in removals:
            self.ended(saga_id)

    def url_of(self, repository: str) -> str:
        """On the platform's shelf."""
        return f"file://{SHELF}/{repository}.git"

    def share(self, repository: Repository) -> None:
        """`git push` everything."""
        into, place = self.inside("repositories"), f"{SHELF}/{repository.path.name}.git"
        if repository.path.name not in self._shared:
            run(*into, "git", "init", "--quiet", "--bare", "--initial-branch=main", place)
            self._shared.add(repository.path.name)
        repository.git(
            "-c", "protocol.ext.allow=always", "push", "--quiet", "--mirror", f"ext::{' '.join(into)} %S {place}"
        )

    def images(self) -> dict[str, list[str]]:
        """Manifests on the registry's disk."""
        links = run(*self.inside("images"), "find", STORE, "-path", "*/_manifests/revisions/*", "-name", "link")
        found: dict[str, list[str]] = {}
        for link in links.split():
            name, _, revision = link.removeprefix(f"{STORE}/").partition("/_manifests/revisions/sha256/")
            found.setdefault(name, []).append(revision.partition("/")[0])
        return {name: sorted(digests) for name, digests in found.items() if not name.startswith("cache/")}

    def files_named(self, saga_id: str) -> list[str]:
        """In the volumes of all services."""
        look = ("find", HOMES, "-name", f"*{saga_id}*", "-not", "-path", "*/logs/*")
        return [f"{each}: {path}" for each in services() for path in run(*self.inside(each), *look).split()]

    def size_of(self, service: str) -> int:
        """In its volume."""
        return int(run(*self.inside(service.replace("_", "-")), "du", "-sb", HOMES).split()[0])


@dataclass
class InCompose(InContainers):
    """Six containers, Pulsar, MySQL and a registry on one engine; apps by the Docker runtime."""

    project: ClassVar[str] = "knarr-e2e"

    app_ports: int = field(kw_only=True)
    """The first of fifty ports for apps."""

    @property
    def compose(self) -> dict[str, str]:
        """What `docker compose` takes from its environment."""
        return {
            "COMPOSE_FILE": f"{ROOT / 'docker-compose.yml'}:{self.folder / 'settings.yml'}",
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_ANSI": "never",
            "KNARR_IMAGE": f"knarr:{self.project}",
            "KNARR_INSTALLATION": self.project,
            "KNARR_PORTS": str(self.port_base // 10),
            "KNARR_APP_PORTS": str(self.app_ports // 100),
            "KNARR_IMAGES_PORT": str(self.port_base + 7),
        }

    def start(self, **settings: str) -> Self:
        """`docker compose up --build`, with the settings on top; later only the services that they change."""
        both = {**QUIET, **self.settings, **settings}
        (self.folder / "settings.yml").write_text(
            json.dumps({"services": {each: {"environment": both} for each in services()}})
        )
        up = ("docker", "compose", "up", "--detach", "--wait")
        if self.home.exists():
            self._run(*up, "--no-deps", *services())
        else:
            self._run(*up, "--build")
            self._run("sh", "deploy/stack-home.sh", str(self.home))
            shelf = ("--detach", "--no-deps", "--name", self._shelf, "repositories", "sleep", "infinity")
            self._run("docker", "compose", "run", *shelf)
        return self

    def close(self) -> None:
        """Containers, volumes, networks, the image; and what the platform has made."""
        (self.folder / "settings.yml").write_text(json.dumps({"services": {"webhook": {}}}))
        label = f"io.knarr.installation={self.project}"
        self._remove("rm", self._ids("ps", "--all", name=self._shelf))
        self._run("docker", "compose", "--profile", "tools", "down", "--volumes")
        self._remove("rm", self._ids("ps", "--all", label=label))
        self._remove("volume rm", self._ids("volume ls", label=label))
        self._remove("network rm", self._ids("network ls", label=label))
        run("docker", "image", "rm", "--force", f"knarr:{self.project}")

    def write_logs(self, file: Path) -> None:
        """What all of it has said."""
        file.write_text(self._run("docker", "compose", "logs", "--no-color", "--timestamps"))

    def where(self) -> str:
        """The engine."""
        return f"Docker {run('docker', 'version', '--format', '{{.Server.Version}}').strip()}"

    def inside(self, system: str) -> Sequence[str]:
        """By the engine: `compose exec` takes its time."""
        if system == "repositories":
            return ("docker", "exec", "--interactive", self._shelf)
        return ("docker", "exec", f"{self.project}-{system}-1")

    def workloads(self, saga_id: str | None = None) -> set[str]:
        """Ids of containers."""
        label = f"io.knarr.saga={saga_id}" if saga_id else f"io.knarr.installation={self.project}"
        return self._ids("ps", label=label)

    def running(self, app: str) -> int:
        """Containers with its label."""
        return len(self._ids("ps", label=f"io.knarr.app={app}") & self.workloads())

    def leftovers(self, saga_id: str) -> list[str]:
        """Containers, volumes and networks with its label; files."""
        label = f"io.knarr.saga={saga_id}"
        things = [self._ids(*words, label=label) for words in (("ps", "--all"), ("volume ls",), ("network ls",))]
        return [*(each for found in things for each in sorted(found)), *self.files_named(saga_id)]

    @property
    def _shelf(self) -> str:
        return f"{self.project}-shelf"

    def _run(self, *argv: str) -> str:
        return run(*argv, **self.compose)

    def _ids(self, words: str, *options: str, **filters: str) -> set[str]:
        wanted = [f"--filter={name}={value}" for name, value in filters.items()]
        return set(run("docker", *words.split(), *options, "--quiet", *wanted).split())

    def _remove(self, words: str, ids: set[str]) -> None:
        if ids:
            force = ("--force", "--volumes") if words == "rm" else ()
            run("docker", *words.split(), *force, *sorted(ids))


@dataclass
class InCluster(InContainers):
    """The overlay `dev` in the namespace `knarr`; apps by the Kubernetes runtime in namespaces of their own."""

    namespace: ClassVar[str] = "knarr"
    installation: ClassVar[str] = "knarr.io/installation=knarr"

    _settings_now: dict[str, str] = field(default_factory=dict, kw_only=True)

    def start(self, **settings: str) -> Self:
        """`kubectl apply -k`, then the settings on the Deployments."""
        if not self._settings_now:
            run("docker", "build", "--tag", "knarr:dev", ".")
            run("kubectl", "apply", "--kustomize", "deploy/k8s/overlays/dev")
        both = {**QUIET, **self.settings, **settings}
        gone = [f"{name}-" for name in self._settings_now if name not in both]
        targets = [f"deployment/{each}" for each in services()]
        self._kubectl("set", "env", *targets, *(f"{name}={value}" for name, value in both.items()), *gone)
        self._settings_now = both
        for each in targets:
            self._kubectl("rollout", "status", each, "--timeout=900s")
        self._write_home()
        eventually("six services", lambda: all(self.api.answers(each) for each in SERVICE_PORTS))
        return self

    def close(self) -> None:
        """The platform's namespace and its apps', and what stands outside of them."""
        names = self._names("namespaces", "-l", self.installation)
        run("kubectl", "delete", "namespace", "--ignore-not-found", self.namespace, *names)
        for kind in ("clusterrole", "clusterrolebinding"):
            run("kubectl", "delete", kind, "--ignore-not-found", "knarr-deployer")

    def write_logs(self, file: Path) -> None:
        """What the services have said."""
        file.write_text("".join(self._kubectl("logs", f"deployment/{each}", "--timestamps") for each in services()))

    def where(self) -> str:
        """The cluster."""
        return f"Kubernetes {json.loads(run('kubectl', 'get', '--raw', '/version'))['gitVersion']}"

    def inside(self, system: str) -> Sequence[str]:
        """`kubectl exec`."""
        what = f"statefulset/{system}" if system in {"mysql", "pulsar"} else f"deployment/{system}"
        stdin = ("--stdin",) if system == "repositories" else ()
        return ("kubectl", f"--namespace={self.namespace}", "exec", *stdin, what, "--")

    def workloads(self, saga_id: str | None = None) -> set[str]:
        """Pods that are not on their way out."""
        label = f"knarr.io/saga={saga_id}" if saga_id else self.installation
        return set(self._names("pods", "-l", label))

    def running(self, app: str) -> int:
        """Its pods."""
        return len(self._names("pods", "-l", f"{self.installation},knarr.io/app={app}"))

    def leftovers(self, saga_id: str) -> list[str]:
        """Objects with its label, files."""
        kinds = "deployments,replicasets,statefulsets,jobs,pods,services,secrets,configmaps,persistentvolumeclaims"
        return [*self._names(kinds, "-l", f"knarr.io/saga={saga_id}"), *self.files_named(saga_id)]

    def _names(self, *what: str) -> list[str]:
        """Of objects in all namespaces that nobody has deleted."""
        found: list[dict[str, Any]] = json.loads(run("kubectl", "get", *what, "--all-namespaces", "--output=json"))[
            "items"
        ]
        there = [each["metadata"] for each in found if "deletionTimestamp" not in each["metadata"]]
        return sorted(each["name"] for each in there)

    def _kubectl(self, *arguments: str) -> str:
        return run("kubectl", f"--namespace={self.namespace}", *arguments)

    def _write_home(self) -> None:
        """As deploy/stack-home.sh does for compose: the command line finds the platform by it."""
        kept = self._kubectl("get", "secret", "knarr-platform", "--output=jsonpath={.data.KNARR_TOKEN}")
        self.home.mkdir(mode=0o700, exist_ok=True)
        (self.home / "token").write_bytes(base64.b64decode(kept))
        (self.home / "platform.json").write_text(
            json.dumps({"pid": 0, "host": "127.0.0.1", "port_base": self.port_base})
        )
