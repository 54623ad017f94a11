"""What somebody does to an app's objects beside knarr is shown, repaired within seconds, and said."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ocistore.store import LABEL_CHECKS, Image
from seedwork.errors import Unavailable
from services.deployer.adapters.kubernetes import objects, reaching
from services.deployer.adapters.kubernetes.cluster import (
    BUDGETS,
    DEPLOYMENT,
    NAMESPACE,
    POLICY,
    SECRET,
    SERVICE,
    Cluster,
    Kind,
)
from services.deployer.adapters.kubernetes.runtime import KubernetesRuntime
from services.deployer.adapters.probe import REFUSED
from services.deployer.checks import Check
from services.deployer.ports import Instance, Release, Standing
from tests.services.deployer.conftest import PATIENCE_S, eventually
from tests.stack import kubernetes_bench
from tests.stack.containers_contract import get
from tests.stack.kubernetes_bench import Bench, answered, standing
from tests.stack.test_drift_docker import MOODY, checks

pytestmark = pytest.mark.stack("KUBECONFIG", "REGISTRY")

bench, images, runtime, shelf, sound = (
    kubernetes_bench.bench,
    kubernetes_bench.images,
    kubernetes_bench.runtime,
    kubernetes_bench.shelf,
    kubernetes_bench.sound,
)


class Told:
    """Asks the runtime again and again, as the service does, and keeps what it says."""

    def __init__(self, runtime: KubernetesRuntime, *apps: Standing) -> None:
        self._runtime = runtime
        self._apps: Sequence[Standing] = apps
        self.repaired: list[str] = []

    async def until(self, what: str) -> None:
        """Wait until a difference was told as repaired."""
        self._runtime._restoring._paces.clear()  # the next repair is not the next one of many in vain

        async def look() -> list[str]:
            self.repaired += [each.what for each in await self._runtime.reconcile(self._apps) if each.repaired]
            return self.repaired

        await eventually(look, until=lambda said: any(what in each for each in said), within_s=PATIENCE_S * 2)
        self.repaired.clear()


async def all_up(runtime: KubernetesRuntime, release: Release) -> None:
    """Wait until its instances are as the release wants them."""
    wanted = sum(release.formation.values())

    def good(found: Sequence[Instance]) -> bool:
        states = [(each.state, each.digest == release.digest) for each in found if each.state != "stopping"]
        return states == [("up", True)] * wanted

    await eventually(lambda: runtime.instances(release.app_id), until=good, within_s=PATIENCE_S * 2)


async def said(url: str) -> str:
    """What the app answers; nothing where no node leads to it."""
    return (await get(url)).text if await answered(url) else ""


async def patch(cluster: Cluster, kind: Kind, namespace: str, name: str, spec: object) -> None:
    """As `kubectl patch` does: under another field manager than ours."""
    await cluster._json(
        "PATCH",
        kind.path(namespace, name),
        query=[("fieldManager", "somebody")],
        body={"spec": spec},
        content_type="application/strategic-merge-patch+json",
    )


async def test_what_somebody_changed_is_shown_and_made_as_the_release_says(
    bench: Bench, runtime: KubernetesRuntime, sound: Image
) -> None:
    """Scale, image, Deployment, Service, Secret, policy and budget, one after the other."""
    release = bench.shelf.release(sound, formation={"web": 2})
    url = await bench.up(runtime, release)
    port = (await runtime.expose(release.app_id, release.app, taken=frozenset())).port
    told = Told(runtime, standing(release, port))
    await runtime.reconcile([standing(release, port)])
    (namespace,) = [each["metadata"]["name"] for each in await bench.namespaces()]
    (web,) = [each["metadata"]["name"] for each in await bench.the(DEPLOYMENT, release)]
    cluster = bench.cluster

    await patch(cluster, DEPLOYMENT, namespace, web, {"replicas": 0})
    shown = await eventually(
        lambda: runtime.instances(release.app_id), until=lambda found: any(each.state == "down" for each in found)
    )
    assert any("was scaled to 0 outside of knarr" in each.note for each in shown)
    await told.until("the Deployment of web was scaled to 0")
    await all_up(runtime, release)

    other = await bench.shelf.image(version="evil")
    evil = bench.pullable.reference(other.repository, other.digest)
    container = {"name": objects.CONTAINER, "image": evil}
    await patch(cluster, DEPLOYMENT, namespace, web, {"template": {"spec": {"containers": [container]}}})
    await told.until(f"the Deployment of web has the image {evil}")
    await all_up(runtime, release)
    await eventually(lambda: said(url), until=lambda text: text == "one")  # nodes lead to a pod a moment after it is up

    await cluster.delete(DEPLOYMENT, namespace, web)
    await told.until("the Deployment of web is gone")
    await all_up(runtime, release)

    await patch(cluster, SERVICE, namespace, objects.WEB, {"selector": {objects.SAGA: "somebody-else"}})
    await told.until("the app's Service was changed")
    await eventually(lambda: answered(url))
    await cluster.delete(SERVICE, namespace, objects.WEB)
    await told.until("the app's Service is gone")
    await eventually(lambda: answered(url))

    (secret,) = [each["metadata"]["name"] for each in await bench.the(SECRET, release)]
    for kind, name in ((SECRET, secret), (POLICY, "deny-all"), (BUDGETS[1], web)):
        assert await cluster.delete(kind, namespace, name)
        await told.until(f"the {kind.name} {name} is gone")
        assert await cluster.get(kind, namespace, name) is not None


async def test_an_app_whose_namespace_was_deleted_is_down_at_once_and_comes_back(
    bench: Bench, runtime: KubernetesRuntime, sound: Image
) -> None:
    """Under its address; a deployment of it that was under way can be tried again."""
    release = bench.shelf.release(sound)
    url = await bench.up(runtime, release)
    port = (await runtime.expose(release.app_id, release.app, taken=frozenset())).port
    await runtime.reconcile([standing(release, port)])
    (namespace,) = [each["metadata"]["name"] for each in await bench.namespaces()]

    await bench.cluster.delete(NAMESPACE, None, namespace)
    (instance,) = await runtime.instances(release.app_id)
    assert (instance.state, instance.process) == ("down", "web.1")
    assert "namespace was deleted" in instance.note
    await Told(runtime, standing(release, port)).until("the app's namespace is gone")
    await all_up(runtime, release)
    await eventually(lambda: answered(url))


async def test_a_repair_never_goes_by_an_older_fence(bench: Bench, runtime: KubernetesRuntime, sound: Image) -> None:
    """A process that did not hear of a newer deployment yet leaves it alone."""
    one, two = bench.shelf.release(sound), bench.shelf.release(sound, number=2)
    await bench.up(runtime, one)
    port = (await runtime.expose(one.app_id, one.app, taken=frozenset())).port
    late = bench.made()
    await late.reconcile([standing(one, port)])
    await bench.up(runtime, two)
    (namespace,) = [each["metadata"]["name"] for each in await bench.namespaces()]
    (web,) = [each["metadata"]["name"] for each in await bench.the(DEPLOYMENT, one)]
    await bench.cluster.delete(DEPLOYMENT, namespace, web)

    late._restoring.begin(standing(one, port), thorough=True)
    await asyncio.gather(*late._restoring.tasks.values())
    assert await bench.the(DEPLOYMENT, one) == []
    assert await late.reconcile([standing(one, port)]) == []
    assert await late._front.serves(namespace) == two.saga_id


async def test_a_first_deployment_that_failed_leaves_no_namespace(bench: Bench, runtime: KubernetesRuntime) -> None:
    """Its next one has the same address; a release that serves keeps its namespace when another one fails."""
    broken = bench.shelf.release(await bench.shelf.image({"app.py": "import sys; sys.exit(1)"}))
    address = await runtime.expose(broken.app_id, broken.app, taken=frozenset())
    await bench.fails(broken)
    assert await bench.namespaces() == []

    sound = bench.shelf.release(await bench.shelf.image(), number=2)
    await runtime.prepare(sound)
    await runtime.start(sound)
    await bench.observed(runtime, sound)
    await runtime.switch(sound.app_id, sound.saga_id, fence=2)
    await eventually(lambda: answered(address.url))
    await bench.fails(replace(broken, number=3))
    assert len(await bench.namespaces()) == 1


async def test_a_pod_that_fails_its_liveness_check_is_restarted_and_says_why(
    bench: Bench, runtime: KubernetesRuntime
) -> None:
    """The cluster counts it, and the kubelet names the check."""
    said = checks('{"type": "liveness", "path": "/live", "attempts": 2, "wait_s": 1}')
    assert LABEL_CHECKS in said
    # a startup check of its own, for liveness begins at once after it
    text = said[LABEL_CHECKS].replace('"web": [', '"web": [{"path": "/"}, ')
    release = bench.shelf.release(await bench.shelf.image({"app.py": MOODY}, labels={LABEL_CHECKS: text}))
    url = await bench.up(runtime, release)
    await get(url + "break/live")

    (instance,) = await eventually(
        lambda: runtime.instances(release.app_id), until=lambda found: found[0].restarts > 0, within_s=PATIENCE_S * 2
    )
    assert "Liveness probe failed: HTTP probe failed with statuscode: 500" in instance.note


async def test_a_deployer_that_does_not_reach_pods_asks_through_the_api_server(
    bench: Bench, runtime: KubernetesRuntime, sound: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one outside of the cluster; where it may not do that either, the app is not blamed."""

    async def nowhere(_host: str, _port: int, _check: Check) -> str:
        return REFUSED

    monkeypatch.setattr(reaching, "ask", nowhere)
    release = bench.shelf.release(sound)
    await bench.up(runtime, release)
    (namespace,) = [each["metadata"]["name"] for each in await bench.namespaces()]
    (instance,) = await runtime.instances(release.app_id)
    assert instance.state == "up"

    status, body = await bench.cluster.through(namespace, instance.id, 8080, "/", headers={}, timeout_s=20)
    assert (status, body) == (200, b"one")

    async def refused(*_arguments: object, **_named: object) -> tuple[int, bytes]:
        raise Unavailable("The Kubernetes API refused a request", why="pods/proxy is forbidden")

    monkeypatch.setattr(runtime._cluster, "through", refused)
    with pytest.raises(Unavailable, match="does not reach web"):
        await bench.observed(runtime, release)
