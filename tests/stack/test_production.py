"""The overlay `production`, applied: two of everything, with servers outside the cluster; and the upgrade of it.

The Ingress objects are taken by the server, and no controller serves them here: pushes go to a port of the node, apps
are asked through the API server.
"""

import base64
import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from knarr.client import Platform
from knarr.home import Address
from seedwork.chassis.settings import SERVICE_PORTS
from seedwork.errors import KnarrError
from tests.e2e.harness import Client
from tests.stack.platforms import ROOT, WEB, Running, answers, eventually, run
from tests.stack.production import DOMAIN, NAMESPACE, NODE_PORTS, Installation, Outside, kubectl, outside
from tests.stack.registries import docker

pytestmark = [pytest.mark.stack("KUBECONFIG", "DOCKER_HOST", "BUILDKIT_HOST"), pytest.mark.xdist_group("platform")]

THIS, NEXT = "knarr:test-this", "knarr:test-next"
OF_NEXT = "of_the_next_release"
"""A column and a field that `next_version` has more than the tree that is tested."""
ASK_EVERY_S = 0.5
PUSH_EVERY_S = 8.0


def objects(*arguments: str) -> list[dict[str, Any]]:
    """What `kubectl get` lists."""
    found: list[dict[str, Any]] = json.loads(kubectl("get", *arguments, "--output=json"))["items"]
    return found


def deployments() -> list[str]:
    return [service.replace("_", "-") for service in SERVICE_PORTS]


def _clear(*, wait: bool) -> None:
    """Nothing of these tests stays in the cluster.

    Args:
        wait: Until it is gone; else until the cluster has been told, and takes it away by itself.
    """
    apps = run("kubectl", "get", "namespaces", "-l", "knarr.io/installation=production", "--output=name").split()
    run("kubectl", "delete", f"--wait={wait}", "--ignore-not-found", f"namespace/{NAMESPACE}", *apps)
    for kind in ("clusterrole", "clusterrolebinding"):
        run("kubectl", "delete", kind, "--ignore-not-found", f"{NAMESPACE}-deployer", f"{NAMESPACE}-app")
    volumes = [f"{NAMESPACE}-{name}" for name in ("source", "builder")]
    run("kubectl", "delete", "persistentvolume", f"--wait={wait}", "--ignore-not-found", *volumes)


@dataclass
class Installed(Running):
    """The platform of the overlay."""

    installation: Installation = field(kw_only=True)
    proxy: str = field(kw_only=True)
    """Where `kubectl proxy` listens."""

    @property
    def servers(self) -> Outside:
        """What is outside."""
        return self.installation.servers

    def service_of(self, app: str) -> dict[str, Any]:
        """The app's Service."""
        app_id = self.platform.get("deployer", f"/apps/{app}")["id"]
        (service,) = objects("services", "--all-namespaces", "-l", f"knarr.io/app-id={app_id},!knarr.io/addon")
        return service

    def url_of(self, app: str) -> str:
        """Where it is asked, past the Ingress that nobody serves: its ready pods, by the API server."""
        service = self.service_of(app)
        place, port = service["metadata"], service["spec"]["ports"][0]["port"]
        return f"{self.proxy}/api/v1/namespaces/{place['namespace']}/services/{place['name']}:{port}/proxy/"

    def revision(self, service: str) -> str:
        """Of the service's tables."""
        (found,) = self.servers.asked(f"SELECT version_num FROM knarr_{service}.alembic_version")  # noqa: S608  a name of ours
        return found

    def step(self, saga_id: str, name: str) -> str:
        """That step's state."""
        saga = self.platform.get("saga_coordinator", f"/sagas/{saga_id}")
        return str(next(each["state"] for each in saga["steps"] if each["name"] == name))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """As the manual says it, from nothing to six ready services."""
    folder = tmp_path_factory.mktemp("production")
    _clear(wait=True)
    run("docker", "build", "--tag", THIS, ".")
    with outside(tmp_path_factory.mktemp("registry")) as servers, contextlib.ExitStack() as stack:
        stack.callback(_clear, wait=False)
        servers.push("python:3.11-slim", "python:3.11-slim")
        image = servers.push(THIS, "platform/knarr:this")
        installation = Installation(folder=folder, servers=servers, git=image)
        installation.write(image)
        installation.make_secrets()
        run("kubectl", "apply", "--filename", str(installation.volumes()))
        installation.apply()
        platform = Platform(Address(host="127.0.0.1", port_base=NODE_PORTS), _token())
        stack.callback(platform.close)
        eventually("six services on their ports", lambda: all(platform.answers(each) for each in SERVICE_PORTS))
        into = ["kubectl", "--namespace", NAMESPACE, "exec", "--stdin", "deploy/repositories", "--"]
        proxy = stack.enter_context(_proxy())
        yield Installed(platform, into, tmp_path_factory.mktemp("apps"), installation=installation, proxy=proxy)
    for image in (THIS, NEXT):
        docker("image", "rm", "--force", image)


def _token() -> str:
    return base64.b64decode(
        kubectl("get", "secret", "knarr-platform", "--output=jsonpath={.data.KNARR_TOKEN}")
    ).decode()


@contextlib.contextmanager
def _proxy() -> Iterator[str]:
    """The API server on a port of loopback."""
    with subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://{process.stdout.readline().split()[-1]}"
        process.terminate()


def test_two_of_each_service_are_ready_and_the_manifests_are_in_force(installed: Installed) -> None:
    """Also what the autoscaler asks for; each service has its own user in MySQL; the Ingress has its certificate."""
    for name in deployments():
        eventually(f"two of {name}", partial(_two_are_ready, name))
    users = set(installed.servers.asked("SELECT user FROM mysql.user"))
    assert {f"knarr_{service}" for service in SERVICE_PORTS} <= users
    (ingress,) = objects("ingresses")
    (tls,) = ingress["spec"]["tls"]
    assert tls["hosts"] == ["knarr.test"]
    (secret,) = [each for each in objects("secrets") if each["metadata"]["name"] == tls["secretName"]]
    assert secret["type"] == "kubernetes.io/tls"
    assert {each["metadata"]["name"] for each in objects("poddisruptionbudgets")} == set(deployments())


def _two_are_ready(name: str) -> bool:
    (status,) = [each["status"] for each in objects("deployments") if each["metadata"]["name"] == name]
    return bool(status.get("readyReplicas") == 2)


def test_a_push_deploys_an_app_with_an_ingress_of_its_own(installed: Installed) -> None:
    """Built by the BuildKit outside, pulled from the registry outside, by digest; under a name of the domain."""
    installed.create("shop", WEB.format(version="one"))
    saga_id = installed.push("shop")
    assert installed.ended(saga_id)["state"] == "SUCCEEDED", installed.log_of(saga_id)
    app = installed.platform.get("deployer", "/apps/shop")
    assert app["url"] == f"https://shop.{DOMAIN}/"
    (ingress,) = objects("ingresses", "--all-namespaces", "-l", f"knarr.io/app-id={app['id']}")
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == [f"shop.{DOMAIN}"]
    (pod,) = objects("pods", "--all-namespaces", "-l", f"knarr.io/saga={saga_id}")
    image = pod["spec"]["containers"][0]["image"]
    assert image.startswith(installed.servers.on_node)
    assert image.endswith(f"@{app['digest']}")
    assert eventually("the app's answer", lambda: answers(installed.url_of("shop"), "one"))


def sleeps(installed: Installed, seconds: int) -> dict[str, str]:
    """A build of at least so long, again for each commit."""
    base = f"{installed.servers.on_node}/python:3.11-slim"
    return {"Dockerfile": f'FROM {base}\nCOPY app.py /\nRUN sleep {seconds}\nCMD ["python3", "/app.py"]\n'}


@dataclass
class Underway:
    """Sagas that the release before has begun, and has not ended."""

    paused: str
    building: str
    releasing: str

    @property
    def all(self) -> list[str]:
        """Their ids."""
        return [self.paused, self.building, self.releasing]


def begun(installed: Installed) -> Underway:
    """One that waits for an operator behind its build, one in its build, one in its release command."""
    for name, seconds in (("paused", 20), ("building", 60)):
        installed.create(name, WEB.format(version="one"))
        installed.commit(name, sleeps(installed, seconds))
    installed.create("releasing", WEB.format(version="one"))
    release = "import time\n\ntime.sleep(60)\n"
    procfile = "release: python release.py\nweb: python app.py\n"
    installed.commit("releasing", {"Procfile": procfile, "release.py": release})

    paused = installed.push("paused")
    eventually("a build to pause", lambda: installed.step(paused, "build") == "SENT")
    installed.platform.post("saga_coordinator", f"/sagas/{paused}/pause", {"reason": "an upgrade comes"})
    eventually("it is built", lambda: installed.step(paused, "build") == "DONE")
    releasing = installed.push("releasing")
    eventually("a release command", lambda: installed.step(releasing, "deploy") == "SENT")
    building = installed.push("building")
    eventually("a build", lambda: installed.step(building, "build") == "SENT")
    return Underway(paused=paused, building=building, releasing=releasing)


def pushes_until(installed: Installed, over: "Future[None]") -> list[tuple[str, str]]:
    """Commits of `busy` and their sagas, one after the other, each sent until somebody has taken it."""
    pushed: list[tuple[str, str]] = []
    while not over.done() or len(pushed) < 3:
        commit = installed.commit("busy", {"app.py": WEB.format(version=f"push {len(pushed)}")})
        pushed.append((commit, eventually("somebody takes the push", lambda: taken(installed))))
        wait([over], timeout=PUSH_EVERY_S)
    return pushed


def taken(installed: Installed) -> str | None:
    """The push's saga; nothing while nobody takes it."""
    try:
        return installed.push("busy")
    except KnarrError:
        return None


def test_an_upgrade_loses_no_push_and_no_saga_and_apps_serve_on(
    installed: Installed, record_property: Callable[[str, object], None]
) -> None:
    """By the manual's commands, to a release with newer tables and messages, while sagas are under way and pushes come.

    Those under way are carried to their end; each push has one saga, which ends; an app of before answers throughout.
    """
    installed.create("steady", WEB.format(version="steady"))
    steady = installed.push("steady")
    assert installed.ended(steady)["state"] == "SUCCEEDED", installed.log_of(steady)
    installed.create("busy", WEB.format(version="zero"))
    before = {service: installed.revision(service) for service in ("saga_coordinator", "builder")}
    run(
        "docker",
        "build",
        "--tag",
        NEXT,
        "--build-arg",
        f"BEFORE={THIS}",
        str(ROOT / "tests" / "stack" / "next_version"),
    )
    image = installed.servers.push(NEXT, "platform/knarr:next")
    underway = begun(installed)

    with ThreadPoolExecutor() as pool, Client(installed.url_of("steady"), ("steady",), every_s=ASK_EVERY_S) as client:
        assert [installed.step(each, "deploy") for each in underway.all] == ["PENDING", "PENDING", "SENT"]
        began = time.monotonic()
        upgrading = pool.submit(installed.installation.upgrade, image)
        pushed = pushes_until(installed, upgrading)
        upgrading.result()
        seconds = time.monotonic() - began
        resume = f"/sagas/{underway.paused}/resume"
        eventually(
            "it is resumed", lambda: installed.platform.post("saga_coordinator", resume, {"reason": "all is new"})
        )
        sagas = {saga_id: installed.ended(saga_id) for saga_id in [*underway.all, *(each for _, each in pushed)]}

    record_property(
        "summary",
        f"upgrade with two replicas each: {seconds:.0f} s, {len(pushed)} pushes meanwhile; an app of before answered "
        f"{client.answers} times, {len(client.faults)} errors",
    )
    pods = objects("pods", "-l", "app.kubernetes.io/component=service")
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]  # a node may keep an old one for 70 s
    assert {pod["spec"]["containers"][0]["image"] for pod in staying} == {image}
    assert {service: installed.revision(service) for service in before} == dict.fromkeys(before, "next")
    for saga_id in underway.all:
        assert sagas[saga_id]["state"] == "SUCCEEDED", installed.log_of(saga_id)
    for commit, saga_id in pushed:
        found = installed.platform.pages("saga_coordinator", "/sagas", limit=100, commit=commit)
        assert [each["id"] for each in found] == [saga_id]
        saga = sagas[saga_id]
        assert saga["state"] == "SUCCEEDED" or saga["reason"] == "superseded", installed.log_of(saga_id)
    last = pushed[-1][1]
    assert sagas[last]["state"] == "SUCCEEDED", installed.log_of(last)
    assert eventually("the last push", lambda: answers(installed.url_of("busy"), f"push {len(pushed) - 1}"))
    assert OF_NEXT in installed.log_of(last)
    assert client.faults == []
    for service in SERVICE_PORTS:
        assert installed.platform.pages(service, "/dead-letters", limit=100) == []
