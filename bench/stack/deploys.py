"""A deployment to Kubernetes from push to `SUCCEEDED`, against the bare commands for the same commit in the same run.

By hand: `git clone` (later `git fetch`) and a checkout, `docker build`, `docker push`, `kubectl apply` of a namespace,
a Deployment and a Service, `kubectl rollout status`. With knarr: a signed push to six services on MySQL and Pulsar,
which build with the same engine, push to the same registry and deploy to the same cluster.

`kubectl rollout status` ends when the new pods are ready and the old ones have been told to go. With knarr that is when
the new version answers at the app's address; the saga of a redeployment goes on until nothing of the old release runs.
A first deployment ends with its saga, when the app's port takes connections.

Both build the app's own Dockerfile. Its build argument MADE_BY keeps the engine's cache of the one from being of use to
the other. Each pair is taken one right after the other, by turns beginning with the one and the other, each of them
after a pause of random length below a second: a kubelet looks for new states once a second, and what always begins
right after such a look, with which the last deployment ended, meets the next ones at moments of its own. What is still
chance is noted (`looks`), and the difference told without it, too. That of a build, one and the same by hand and with
knarr, cannot be taken out; so the difference is told in two parts, that of the build and that of all else.

Before the first pair an app is deployed that does not count: engine, cluster and services have been at work before. A
cold one is a new app, with dependencies that were not installed before: twelve packages of 40 modules, from wheels in
the repository, so that no network is measured. A warm one changes one line of the app.
"""

import argparse
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import httpx2
import yaml
from cryptography.fernet import Fernet

from bench.deploys import PACKAGES, Deployed, by_knarr, make_wheels, program
from bench.figures import Figure
from bench.platform import Knarr, Repository, environment, git
from bench.stack.looks import Looks, watched
from bench.stack.place import TOKEN, Place, place, running
from knarr.home import Address
from seedwork.chassis.settings import SERVICE_PORTS
from seedwork.leaving import leave

NODE_PORTS = 31_600
"""Where the apps of this measurement get theirs from."""
PORT = 8080
DOCKERFILE = """\
FROM python:3.11-slim
ARG MADE_BY=knarr
RUN echo "$MADE_BY {seed}" > /made-by
WORKDIR /app
COPY requirements.txt ./
COPY wheels wheels
RUN pip install --no-cache-dir --disable-pip-version-check --no-index --find-links wheels -r requirements.txt
COPY app.py ./
USER 10001
CMD ["python", "app.py"]
"""


def app(version: str, seed: str) -> Mapping[str, str]:
    """The app's files; a new version is one line, a new seed is another cache."""
    names = [f"cargo{number}" for number in range(PACKAGES)]
    return {
        "Dockerfile": DOCKERFILE.format(seed=seed),
        "requirements.txt": "".join(f"{name}==1.0\n" for name in names),
        "app.py": program(version, host="0.0.0.0"),  # noqa: S104  whoever asks comes by the pod's address
    }


class ByHand:
    """The bare commands.

    Args:
        home: A folder of its own.
        repository: What is deployed.
        name: Of namespace and image.
    """

    def __init__(self, home: Path, repository: Repository, name: str) -> None:
        self._home = home
        self._repository = repository
        self._name = name
        self._image = f"{os.environ['REGISTRY']}/{name}"
        self._built: list[str] = []
        self.engine_s = 0.0
        """What `docker build` and `docker push` took the last time."""

    def deploy_s(self, version: str) -> float:
        """All of it; the first time a clone, later a fetch."""
        began = perf_counter()
        if self._built:
            git(self._home / "mirror", "fetch", "--quiet", "origin", "main:main", "--force")
        else:
            origin = self._repository.path
            git(origin, "clone", "--quiet", "--bare", origin.as_uri(), str(self._home / "mirror"))
        place = self._home / version
        place.mkdir(parents=True)
        git(self._home / "mirror", f"--work-tree={place}", "checkout", "--force", "main", "--", ".")
        image = f"{self._image}:{version}"
        self._built.append(image)
        asked = perf_counter()
        command(
            "docker", "build", "--quiet", "--build-arg", "MADE_BY=hand", "--tag", image, str(place), DOCKER_BUILDKIT="1"
        )
        command("docker", "push", "--quiet", image)
        self.engine_s = perf_counter() - asked
        command("kubectl", "apply", "--filename", "-", given=manifests(self._name, image))
        command("kubectl", "--namespace", self._name, "rollout", "status", "deployment/web", "--timeout=300s")
        return perf_counter() - began

    def remove(self) -> None:
        """The namespace, the images on the engine, and those on the registry."""
        command("kubectl", "delete", "namespace", self._name, "--ignore-not-found", "--wait=false")
        for image in self._built:
            tag = image.rpartition(":")[2]
            with contextlib.suppress(subprocess.CalledProcessError):
                command("docker", "image", "rm", "--force", image)
            url = f"http://{os.environ['REGISTRY']}/v2/{self._name}/manifests"
            kind = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
            with httpx2.Client(trust_env=False) as http:
                digest = http.head(f"{url}/{tag}", headers=kind).headers.get("Docker-Content-Digest")
                if digest:
                    http.delete(f"{url}/{digest}")


def command(*argv: str, given: str = "", **more: str) -> None:
    """Run it to its end.

    Raises:
        subprocess.CalledProcessError: It failed; what it said stands below.
    """
    try:
        subprocess.run(argv, input=given, env={**environment(), **more}, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise


def manifests(name: str, image: str) -> str:
    """What a team would keep in a file: as knarr's pods, asked each second whether they take connections."""
    labels = {"app": "web"}
    container = {
        "name": "web",
        "image": image,
        "env": [{"name": "PORT", "value": str(PORT)}],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 1},
        "resources": {"limits": {"cpu": "1", "memory": "512Mi"}, "requests": {"cpu": "50m", "memory": "64Mi"}},
    }
    pod = {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}}
    deployment = {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod}
    service = {"selector": labels, "ports": [{"port": 80, "targetPort": "http", "protocol": "TCP"}]}
    return yaml.safe_dump_all(
        [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
            _object("apps/v1", "Deployment", name, deployment),
            _object("v1", "Service", name, service),
        ]
    )


def _object(version: str, kind: str, namespace: str, spec: Mapping[str, object]) -> Mapping[str, object]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "web", "namespace": namespace}, "spec": spec}


@contextlib.contextmanager
def platform(where: Place, replicas: int) -> Iterator[Knarr]:
    """Six services, that many of each; at the end the apps are removed with all that was made for them."""
    repositories = where.folder / "repositories"
    repositories.mkdir()
    (where.folder / "home" / "token").write_text(TOKEN)
    settings = {
        "KNARR_SOURCE_ALLOW": f"{repositories.as_uri()}/",
        "KNARR_IMAGE_STORE": f"http://{os.environ['REGISTRY']}",
        "KNARR_REGISTRY_INSECURE": "true",
        "KNARR_BUILDER": "buildx",
        "KNARR_RUNTIME": "kubernetes",
        "KNARR_KUBERNETES_NODE_PORT_BASE": str(NODE_PORTS),
        "KNARR_INSTALLATION": "knarr-bench",
        "KNARR_SECRET_KEY": Fernet.generate_key().decode(),
        "KNARR_CONFIG_KEY": Fernet.generate_key().decode(),
        "KNARR_APP_STOP_GRACE_S": "1",  # as in the manifests by hand, which leave no time to requests under way either
        "KNARR_DRAIN_S": "0",
    }
    with running(where, SERVICE_PORTS, replicas=replicas, **settings) as services:
        knarr = Knarr(where.folder, services[0], Address(host="127.0.0.1", port_base=where.port_base))
        try:
            yield knarr
        finally:
            for each in knarr.api.pages("webhook", "/apps", limit=100):
                knarr.ended(knarr.api.delete("webhook", f"/apps/{each['name']}")["saga_id"])
                _forget_images(each["name"])


def _forget_images(name: str) -> None:
    """Those that the engine still has; where it is the cluster's node, the kubelet would take them one day."""
    listed = ["docker", "images", "--quiet", "--filter", f"reference={os.environ['REGISTRY']}/{name}"]
    ids = subprocess.run(listed, capture_output=True, check=True, text=True).stdout.split()
    with contextlib.suppress(subprocess.CalledProcessError):  # a pod that is ending still has one
        command("docker", "image", "rm", "--force", *ids)


@dataclass(frozen=True, slots=True)
class Pair:
    """One deployment both ways, in seconds."""

    both: Deployed
    hand_engine_s: float
    """Of `docker build` and `docker push`."""
    hand_looks_s: float
    """How long a kubelet took to notice that the container runs, and that it answers."""
    knarr_looks_s: float


@dataclass(frozen=True, slots=True)
class Pairs:
    """What was measured, in the order of time."""

    cold: list[Pair]
    warm: list[Pair]


@dataclass(frozen=True, slots=True)
class Site:
    """Where pairs are taken."""

    where: Place
    knarr: Knarr
    looks: Looks

    @property
    def wheels(self) -> Path:
        """What the apps depend on."""
        return self.where.folder / "wheels"


def measure(site: Site, runs: int, warm_runs: int) -> Pairs:
    """New apps, and some redeployments of each; before them one that does not count, as nothing was used before."""
    make_wheels(site.wheels)
    _pairs(site, range(1), 0)
    return _pairs(site, range(1, runs + 1), warm_runs)


def _pairs(site: Site, runs: range, warm_runs: int) -> Pairs:
    where, knarr, pairs = site.where, site.knarr, Pairs([], [])
    for run in runs:
        name = f"knarr-bench-{where.pulsar.namespace[-8:]}-{run}"
        repository = knarr.app(name)
        shutil.copytree(site.wheels, repository.path / "wheels")
        by_hand = ByHand(where.folder / f"hand-{run}", repository, f"{name}-hand")
        try:
            repository.commit(app("v0", name))
            pairs.cold.append(_pair(site, repository, by_hand, "v0", hand_first=run % 2 == 0))
            url = knarr.api.get("deployer", f"/apps/{name}")["url"]
            for change in range(1, warm_runs + 1):
                version = f"v{change}"
                repository.commit(app(version, name))
                pairs.warm.append(_pair(site, repository, by_hand, version, url, hand_first=change % 2 == 0))
        finally:
            by_hand.remove()
    return pairs


def _pair(
    site: Site, repository: Repository, by_hand: ByHand, version: str, url: str = "", *, hand_first: bool
) -> Pair:
    def hand() -> tuple[float, float]:
        _out_of_step()
        began = perf_counter()
        return by_hand.deploy_s(version), site.looks.took_s(began)

    hand_s, hand_looks_s = hand() if hand_first else (0.0, 0.0)
    _out_of_step()
    began = perf_counter()
    deployed = by_knarr(site.knarr, repository, version, hand_s, url)
    knarr_looks_s = site.looks.took_s(began)
    if not hand_first:
        hand_s, hand_looks_s = hand()
    return Pair(replace(deployed, hand_s=hand_s), by_hand.engine_s, hand_looks_s, knarr_looks_s)


def _out_of_step() -> None:
    """With the kubelet's looks, to which the end of the last deployment was bound."""
    time.sleep(random.random())  # noqa: S311  nothing is kept secret with it


def tell(what: str, pairs: Sequence[Pair], *, live: bool) -> None:
    """By hand, with knarr, what its steps took, and what is left beyond 5 %: of the same by hand, and of its steps."""
    deployed = [each.both for each in pairs]
    bare = "git, build, push, apply and rollout by hand"
    reached = "push to answer" if live else "push to SUCCEEDED"
    Figure(group=what, name=bare, values=[each.hand_s for each in deployed], unit="s").tell()
    Figure(group=what, name=reached, values=[each.live_s for each in deployed], unit="s").tell()
    ratio = [each.live_s / each.hand_s for each in deployed]
    Figure(group=what, name=f"{reached} / by hand", values=ratio, unit="").tell()
    more = [(each.live_s - 1.05 * each.hand_s) * 1000 for each in deployed]
    _tell_ms(what, "more than by hand and 5 %", "standard error of this median", more, target="<= 100")
    looks = [(each.knarr_looks_s - each.hand_looks_s) * 1000 for each in pairs]
    without = [whole - chance for whole, chance in zip(more, looks, strict=True)]
    _tell_ms(what, "the same, without a kubelet's looks", "standard error of this one", without, target="<= 100")
    Figure(group=what, name="a kubelet's looks: by hand", values=[each.hand_looks_s for each in pairs], unit="s").tell()
    Figure(group=what, name="with knarr", values=[each.knarr_looks_s for each in pairs], unit="s").tell()
    builds = [(each.both.steps_s["build"] - each.hand_engine_s) * 1000 for each in pairs]
    _tell_ms(what, "the step build, more than `docker build` and `docker push`", "standard error of it", builds)
    rest = [
        (each.live_s - each.hand_s) * 1000 - chance - build
        for each, chance, build in zip(deployed, looks, builds, strict=True)
    ]
    _tell_ms(what, "all else, more than by hand, without a kubelet's looks", "standard error of that", rest)
    if live:
        ended = [each.ended_s for each in deployed]
        Figure(group=what, name="push to SUCCEEDED: nothing of the old release runs", values=ended, unit="s").tell()
    for step in deployed[0].steps_s:
        Figure(group=what, name=f"of which {step}", values=[each.steps_s[step] for each in deployed], unit="s").tell()
    own = [(each.ended_s - sum(each.steps_s.values())) * 1000 for each in deployed]
    Figure(group=what, name="beside the steps' own time", values=own, unit="ms").tell()


def _tell_ms(group: str, name: str, error: str, values: Sequence[float], *, target: str = "") -> None:
    Figure(group=group, name=name, values=values, unit="ms", target=target).tell()
    Figure(group=group, name=error, values=[standard_error(values)], unit="ms").tell()


def standard_error(values: Sequence[float]) -> float:
    """Of their median: how it differs between samples that are drawn from them again (bootstrap)."""
    drawn = random.Random(0)  # noqa: S311  nothing is kept secret with it
    medians = [statistics.median(drawn.choices(values, k=len(values))) for _ in range(2000)]
    return statistics.stdev(medians)


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument("--warm-runs", type=int, default=1)
    parser.add_argument("--replicas", nargs="*", type=int, default=(1, 2))
    given = parser.parse_args()
    for replicas in given.replicas:
        many = "" if replicas == 1 else f", {replicas} replicas of everything"
        with place(SERVICE_PORTS) as where, platform(where, replicas) as knarr, watched() as looks:
            pairs = measure(Site(where, knarr, looks), given.runs, given.warm_runs)
        tell(f"Kubernetes, a new app with 12 packages{many}", pairs.cold, live=False)
        if pairs.warm:
            tell(f"Kubernetes, one line changed{many}", pairs.warm, live=True)
    leave(0)


if __name__ == "__main__":
    main()
