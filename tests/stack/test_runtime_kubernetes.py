"""A Kubernetes cluster keeps the contract of the runtime, and what only a cluster can get wrong."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from ocistore.store import Image
from seedwork.errors import Unavailable
from seedwork.messages import new_id
from services.deployer.adapters.kubernetes import objects
from services.deployer.adapters.kubernetes.cluster import (
    DEPLOYMENT,
    LIMITS,
    POD,
    POLICY,
    QUOTA,
    SECRET,
    Cluster,
    Kind,
)
from services.deployer.adapters.kubernetes.runtime import KubernetesRuntime
from services.deployer.errors import Fenced, NoCapacity, ReleaseCommandFailed
from services.deployer.ports import Needed, Release
from tests.services.deployer.conftest import PATIENCE_S, eventually
from tests.services.deployer.test_verdicts import MISSED, STARTING
from tests.stack import kubernetes_bench
from tests.stack.container_images import PYTHON, READ_ONLY, WRITES
from tests.stack.containers_contract import ContainersContract, get
from tests.stack.kubernetes_bench import Bench, answered, standing

pytestmark = pytest.mark.stack("KUBECONFIG", "REGISTRY")


bench, images, runtime, shelf, sound = (
    kubernetes_bench.bench,
    kubernetes_bench.images,
    kubernetes_bench.runtime,
    kubernetes_bench.shelf,
    kubernetes_bench.sound,
)
broken, unmigrated = kubernetes_bench.broken, kubernetes_bench.unmigrated


class TestKubernetesRuntime(ContainersContract):
    """Everything that local processes and other containers keep."""

    REFUSES = "web.1 refuses connections on PORT"


# ── what instances get ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_pods_have_no_rights_and_everything_is_labelled(
    bench: Bench, runtime: KubernetesRuntime, sound: Image
) -> None:
    """A namespace with quota, limits and policies; a restricted pod without a token: as the server has them."""
    release = bench.shelf.release(sound, number=3)
    url = await bench.up(runtime, release)

    assert "WEB_SERVICE_HOST" not in (await get(url + "env")).text  # nor what else runs in the namespace
    (pod,) = await bench.the(POD, release)
    namespace = pod["metadata"]["namespace"]
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert not [each for each in spec.get("volumes") or () if "token" in each["name"]]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "96Mi"}
    assert container["image"] == bench.pullable.reference(release.repository, release.digest)
    for item in [pod, *await bench.the(DEPLOYMENT, release), *await bench.the(SECRET, release)]:
        labels = item["metadata"]["labels"]
        assert (labels[objects.APP_ID], labels[objects.SAGA]) == (release.app_id, release.saga_id)
        assert (labels[objects.RELEASE], labels[objects.STEP]) == ("3", "deploy")
    (quota,) = (await bench.cluster.list(QUOTA, namespace, {})).items
    assert quota["status"]["hard"]["pods"] == "100"
    assert len((await bench.cluster.list(LIMITS, namespace, {})).items) == 1
    policies = {
        each["metadata"]["name"]: each["spec"] for each in (await bench.cluster.list(POLICY, namespace, {})).items
    }
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    manager = {each["manager"] for each in (await bench.the(DEPLOYMENT, release))[0]["metadata"]["managedFields"]}
    assert "knarr" in manager


async def test_files_of_an_instance_are_read_only_where_the_setting_says_so(bench: Bench) -> None:
    """An app that is broken into changes no program; `/tmp` is there for what it writes."""
    release = bench.shelf.release(await bench.shelf.image({"app.py": WRITES}))
    url = await bench.up(bench.made(tmp_mb=8), release)
    await eventually(lambda: answered(url))
    assert (await get(url)).text == READ_ONLY


async def test_names_that_the_cluster_does_not_take_are_mapped_without_collisions(
    bench: Bench, runtime: KubernetesRuntime
) -> None:
    """Process types that differ in a character only, and apps that are called alike."""
    waits = (PYTHON, "-c", "import time; time.sleep(600)")
    processes = {"Worker_1": waits, "worker-1": waits, "worker.1": waits}
    image = await bench.shelf.image(processes=processes)
    one = bench.shelf.release(image, formation={"web": 1, "Worker_1": 1, "worker-1": 1, "worker.1": 1})
    await bench.up(runtime, one)
    names = sorted(each.process for each in await runtime.instances(one.app_id))
    assert names == ["Worker_1.1", "web.1", "worker-1.1", "worker.1.1"]

    two, three = replace(one, app_id=new_id(), app="Shop!"), replace(one, app_id=new_id(), app="shop?")
    for each in (two, three):
        await runtime.expose(each.app_id, each.app, taken=frozenset())
    assert len(await bench.namespaces()) == 3


# ── how it fails ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_image_that_the_nodes_cannot_pull_is_a_verdict(bench: Bench) -> None:
    """It was there when we looked, and is not when the node asks."""
    image = await bench.shelf.image(version=new_id())
    release = bench.shelf.release(image)
    runtime = bench.made()
    await runtime.prepare(release)
    await bench.images.remove(image.repository, image.digest)
    await runtime.start(release)
    with pytest.raises(Unavailable, match="cannot pull the image") as caught:
        await bench.observed(runtime, release)
    assert image.digest in caught.value.message


async def test_a_program_that_is_not_there_is_a_verdict(bench: Bench) -> None:
    """Its name is in the reason that the pod gives."""
    fault = await bench.fails(bench.shelf.release(await bench.shelf.image(web=("no-such-program",))))
    assert "web.1 cannot be started" in fault.message
    assert "no-such-program" in fault.message


async def test_an_app_that_takes_too_much_memory_is_a_verdict(bench: Bench) -> None:
    """The text names the setting."""
    image = await bench.shelf.image({"app.py": "x = []\nwhile True: x.append(bytes(2**20))"})
    fault = await bench.fails(bench.shelf.release(image), memory_mb=32, requested_memory_mb=16)
    assert "KNARR_APP_MEMORY_MB" in fault.message


async def test_a_release_for_which_there_is_no_room_leaves_the_old_one_serving(
    bench: Bench, runtime: KubernetesRuntime, sound: Image
) -> None:
    """In the namespace's quota, or on any node; each says which."""
    one = bench.shelf.release(sound)
    url = await bench.up(runtime, one)

    two = bench.shelf.release(sound, number=2)
    fault = await bench.fails(two, start_timeout_s=3, because=NoCapacity, quota_pods=1)
    assert "There is no room for web" in fault.message
    assert "exceeded quota" in fault.message
    assert "KNARR_KUBERNETES_QUOTA_PODS" in fault.message
    three = bench.shelf.release(sound, number=3)
    much = {"cpus": 1000, "requested_cpus": 1000, "quota_cpus": 2000}
    fault = await bench.fails(three, start_timeout_s=3, because=NoCapacity, **much)
    assert "No node has room for web.1" in fault.message
    assert "Insufficient cpu" in fault.message
    assert "Add a node" in fault.message
    assert "on your machine" not in fault.message
    assert (await get(url)).text == "one"
    assert {each.saga_id for each in await runtime.instances(one.app_id)} == {one.saga_id}


async def test_a_release_command_that_takes_too_long_is_ended(bench: Bench) -> None:
    """Its last lines are in the verdict."""
    command = (PYTHON, "-c", "import time; print('migrating', flush=True); time.sleep(600)")
    release = bench.shelf.release(await bench.shelf.image(release=command))
    runtime = bench.made(release_command_timeout_s=3)
    await runtime.prepare(release)
    with pytest.raises(ReleaseCommandFailed, match="longer than 3 s") as caught:
        await runtime.run_release_command(release)
    assert caught.value.log_tail == ("migrating",)
    await runtime.stop(release.app_id, release.saga_id)
    assert await bench.of_saga(release) == []


async def test_the_address_is_found_while_the_release_is_prepared(bench: Bench, sound: Image) -> None:
    """Both make the namespace of a new app, and the one takes nothing back of what the other wants."""
    runtime, releases = bench.made(), [bench.shelf.release(sound, app_id=new_id()) for _ in range(5)]
    for each in releases:
        await asyncio.gather(
            runtime.expose(each.app_id, each.app, taken=frozenset()),
            runtime.prepare(each),
        )
    teams = [each["metadata"]["labels"].get(objects.TEAM) for each in await bench.namespaces()]
    assert teams == ["default"] * 5


async def test_a_cluster_that_is_away_is_worth_another_attempt(bench: Bench, sound: Image, tmp_path: Path) -> None:
    """Nothing is said about the app."""
    nowhere = tmp_path / "kubeconfig"
    nowhere.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{name: x, context: {cluster: x, user: x}}]\n"
        "clusters: [{name: x, cluster: {server: 'http://127.0.0.1:9'}}]\nusers: [{name: x, user: {}}]\n"
    )
    release = bench.shelf.release(sound)
    bench.kubeconfig = nowhere
    runtime = bench.made()
    bench.kubeconfig = None
    with pytest.raises(Unavailable, match="does not answer"):
        await runtime.start(release)


# ── traffic ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_no_request_is_lost_while_a_release_replaces_another(bench: Bench, runtime: KubernetesRuntime) -> None:
    """The old pod serves until the new one was seen to answer; what is stopped is gone."""
    one = bench.shelf.release(await bench.shelf.image(version="one"))
    two = bench.shelf.release(await bench.shelf.image(version="two"), number=2)
    url = await bench.up(runtime, one)
    answers: list[str] = []

    async def ask() -> None:
        each_its_own = httpx2.Limits(max_keepalive_connections=0)  # a connection that is open stays with its pod
        async with httpx2.AsyncClient(trust_env=False, limits=each_its_own) as client:
            while True:
                answer = await client.get(url)
                assert answer.status_code == 200
                answers.append(answer.text)
                await asyncio.sleep(0.01)

    asking = [asyncio.create_task(ask()) for _ in range(3)]
    await bench.up(runtime, two)
    found = await runtime.stop(one.app_id, one.saga_id)
    assert "instance web.1 of release 1" in found
    assert {each.saga_id for each in await runtime.instances(one.app_id)} == {two.saga_id}
    assert await bench.of_saga(one) == []
    seen = len(answers)
    await eventually(
        lambda: _length(answers), until=lambda length: length > seen + 20 or any(task.done() for task in asking)
    )
    for task in asking:
        task.cancel()
    faults = [each for each in await asyncio.gather(*asking, return_exceptions=True) if isinstance(each, Exception)]
    assert faults == []
    assert (answers[0], answers[-1]) == ("one", "two")
    assert await runtime.stop(one.app_id, one.saga_id) == []


async def test_an_older_fence_is_refused_whichever_process_moved_the_traffic(
    bench: Bench, runtime: KubernetesRuntime, sound: Image
) -> None:
    """The fence stands on the Service, not in anybody's memory."""
    release = bench.shelf.release(sound, number=7)
    await bench.up(runtime, release)
    other = bench.made()
    with pytest.raises(Fenced):
        await other.switch(release.app_id, new_id(), fence=6)
    await other.switch(release.app_id, release.saga_id, fence=8)
    with pytest.raises(Fenced):
        await runtime.switch(release.app_id, release.saga_id, fence=7)


async def test_what_crashes_is_started_again_by_the_cluster(
    bench: Bench, runtime: KubernetesRuntime, sound: Image
) -> None:
    """And counted."""
    release = bench.shelf.release(sound)
    url = await bench.up(runtime, release)
    await eventually(lambda: answered(url))  # a node may need a moment until it leads there
    with contextlib.suppress(httpx2.HTTPError):
        await get(url + "die")

    (instance,) = await eventually(
        lambda: runtime.instances(release.app_id), until=lambda found: found[0].restarts == 1 and found[0].state == "up"
    )
    assert instance.process == "web.1"


async def test_a_watch_whose_version_has_expired_counts_as_a_change(
    bench: Bench, runtime: KubernetesRuntime, sound: Image
) -> None:
    """Whoever waits lists again; here the wait would be an hour."""
    release = bench.shelf.release(sound)
    await bench.up(runtime, release)
    (pod,) = await bench.the(POD, release)
    async with asyncio.timeout(PATIENCE_S):
        await bench.cluster.changed(POD, pod["metadata"]["namespace"], pod["metadata"]["labels"], "1", limit_s=3600)


async def test_no_pod_is_made_for_a_release_that_is_stopped(
    bench: Bench, runtime: KubernetesRuntime, sound: Image
) -> None:
    """Its controllers want none before one goes: some redeployments took a minute, until its replacement had gone."""
    release = bench.shelf.release(sound, formation={"web": 6})
    await bench.up(runtime, release)
    before = {each["metadata"]["name"] for each in await bench.the(POD, release)}
    stopping = asyncio.create_task(runtime.stop(release.app_id, release.saga_id))
    seen: set[str] = set()
    while not stopping.done():
        seen |= {each["metadata"]["name"] for each in await bench.the(POD, release)}
        await asyncio.sleep(0.05)
    await stopping
    assert seen - before == set()
    assert await bench.of_saga(release) == []


@contextlib.asynccontextmanager
async def node_without_a_kubelet(cluster: Cluster) -> AsyncIterator[str]:
    """One that nobody schedules to, and that does nothing about its pods."""
    name = f"knarr-t{new_id()[-12:]}"
    node = {"metadata": {"name": name, "labels": {"knarr.io/test": "true"}}, "spec": {"unschedulable": True}}
    await cluster._json("POST", "/api/v1/nodes", body={"apiVersion": "v1", "kind": "Node", **node})
    try:
        yield name
    finally:
        await cluster._json("DELETE", f"/api/v1/nodes/{name}")


async def test_a_pod_that_its_node_keeps_is_cleared_away_when_nothing_of_it_runs(
    bench: Bench, runtime: KubernetesRuntime, sound: Image
) -> None:
    """A kubelet that missed how a container ended says so at once, and lets go of the pod up to 70 s later."""
    release = bench.shelf.release(sound)
    await bench.up(runtime, release)
    (pod,) = await bench.the(POD, release)
    labels = {name: value for name, value in pod["metadata"]["labels"].items() if name != "pod-template-hash"}
    metadata = {"name": "kept", "namespace": pod["metadata"]["namespace"], "labels": labels}
    waiting = {"state": STARTING, "lastState": {"terminated": MISSED}}
    status = {"name": "web", "image": "", "imageID": "", "ready": False, "restartCount": 0, **waiting}
    async with node_without_a_kubelet(bench.cluster) as node:
        kept = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**pod["spec"], "nodeName": node}}
        await bench.cluster._json("POST", POD.path(metadata["namespace"]), body=kept)
        await bench.cluster._json(
            "PATCH",
            f"{POD.path(metadata['namespace'], 'kept')}/status",
            body={"status": {"containerStatuses": [status]}},
            content_type="application/merge-patch+json",
        )

        await runtime.stop(release.app_id, release.saga_id)

        assert await bench.of_saga(release) == []


# ── restarts of ours ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_pods_outlive_us(bench: Bench, runtime: KubernetesRuntime, sound: Image) -> None:
    """The same pods, not even restarted."""
    live = bench.shelf.release(sound)
    url = await bench.up(runtime, live)
    port = (await runtime.expose(live.app_id, live.app, taken=frozenset())).port
    before = [each["metadata"]["uid"] for each in await bench.the(POD, live)]
    await runtime.close()

    again = bench.made()
    await again.recover([standing(live, port)])
    assert (await get(url)).status_code == 200
    await asyncio.gather(*again._restoring.tasks.values())
    assert [each["metadata"]["uid"] for each in await bench.the(POD, live)] == before
    assert [each.restarts for each in await again.instances(live.app_id)] == [0]


@pytest.mark.parametrize("kind", [DEPLOYMENT, SECRET], ids=lambda kind: kind.name)
async def test_what_is_live_and_gone_is_made_again(
    bench: Bench, runtime: KubernetesRuntime, sound: Image, kind: Kind
) -> None:
    """Somebody removed it while we were away."""
    live = bench.shelf.release(sound, formation={"web": 2})
    url = await bench.up(runtime, live)
    port = (await runtime.expose(live.app_id, live.app, taken=frozenset())).port
    (namespace,) = await bench.namespaces()
    await runtime.close()
    (item,) = await bench.the(kind, live)
    await bench.cluster.delete(kind, namespace["metadata"]["name"], item["metadata"]["name"])
    await eventually(lambda: bench.the(kind, live), until=lambda found: not found)

    again = bench.made()
    await again.recover([standing(live, port)])
    await eventually(
        lambda: again.instances(live.app_id),
        until=lambda found: sorted(each.state for each in found if each.state != "stopping") == ["up", "up"],
    )
    await eventually(lambda: bench.the(SECRET, live), until=lambda found: len(found) == 1)
    await eventually(lambda: answered(url))


async def test_a_process_type_of_what_is_live_and_gone_is_made_again(bench: Bench, runtime: KubernetesRuntime) -> None:
    """Somebody removed one of two; the other one is left alone."""
    image = await bench.shelf.image(processes={"worker": (PYTHON, "-c", "import time; time.sleep(600)")})
    live = bench.shelf.release(image, formation={"web": 1, "worker": 1})
    await bench.up(runtime, live)
    port = (await runtime.expose(live.app_id, live.app, taken=frozenset())).port
    (namespace,) = await bench.namespaces()
    web = {each.id for each in await runtime.instances(live.app_id) if each.process == "web.1"}
    await runtime.close()
    (worker,) = [each for each in await bench.the(DEPLOYMENT, live) if "worker" in each["metadata"]["name"]]
    await bench.cluster.delete(DEPLOYMENT, namespace["metadata"]["name"], worker["metadata"]["name"])
    await eventually(lambda: bench.the(DEPLOYMENT, live), until=lambda found: len(found) == 1)

    again = bench.made()
    await again.recover([standing(live, port)])
    await eventually(lambda: bench.the(DEPLOYMENT, live), until=lambda found: len(found) == 2)
    await bench.observed(again, live)
    assert web == {each.id for each in await again.instances(live.app_id) if each.process.startswith("web.")}


@pytest.mark.parametrize("when", ["before we look", "while we start it again"])
async def test_what_another_process_replaces_while_we_start_is_not_made_again(
    bench: Bench, runtime: KubernetesRuntime, sound: Image, when: str
) -> None:
    """Our database told us what was live a moment ago; meanwhile it has become an old release, and is removed."""
    one, two = bench.shelf.release(sound), bench.shelf.release(sound, number=2)
    await bench.up(runtime, one)
    port = (await runtime.expose(one.app_id, one.app, taken=frozenset())).port

    async def replaced() -> Release:
        await bench.up(runtime, two)
        await runtime.stop(one.app_id, one.saga_id)
        return one

    if when == "before we look":
        await replaced()
    else:
        await runtime.stop(one.app_id, one.saga_id)  # by somebody: it is gone, and still live
    again = bench.made()
    await again.recover([replace(standing(one, port), load=replaced)])
    await asyncio.gather(*again._restoring.tasks.values())
    assert await bench.of_saga(one) == []
    assert {each.saga_id for each in await again.instances(one.app_id)} == {two.saga_id}


async def test_what_is_put_back_while_we_start_it_again_stays(
    bench: Bench, runtime: KubernetesRuntime, sound: Image
) -> None:
    """Under a newer fence than we know, which says that we are late, and not that it is not live."""
    one, two = bench.shelf.release(sound), bench.shelf.release(sound, number=2)
    url = await bench.up(runtime, one)
    port = (await runtime.expose(one.app_id, one.app, taken=frozenset())).port
    await runtime.stop(one.app_id, one.saga_id)

    async def replaced_and_put_back() -> Release:
        await bench.up(runtime, two)
        await bench.up(runtime, replace(one, number=3))
        await runtime.stop(two.app_id, two.saga_id)
        return one

    again = bench.made()
    await again.recover([replace(standing(one, port), load=replaced_and_put_back)])
    await asyncio.gather(*again._restoring.tasks.values())
    assert {each.saga_id for each in await again.instances(one.app_id)} == {one.saga_id}
    await eventually(lambda: answered(url))


async def test_a_sweep_removes_what_has_no_owner(bench: Bench, runtime: KubernetesRuntime) -> None:
    """Objects of sagas that nobody knows; what serves stays."""
    live = bench.shelf.release(await bench.shelf.image(version="live"))
    orphan = bench.shelf.release(await bench.shelf.image(version="orphan"), number=2)
    url = await bench.up(runtime, live)
    await runtime.start(orphan)
    await bench.observed(runtime, orphan)  # a kubelet takes its time with a pod that is told to go while it starts

    async def nobody() -> Needed:
        return Needed(sagas=frozenset(), layers=frozenset())

    await runtime.sweep(nobody)
    assert await bench.of_saga(orphan) == []
    assert (await get(url)).text == "live"


async def _length(answers: list[str]) -> int:
    return len(answers)
