"""deploy/k8s on a real cluster: both overlays are taken; a push into `dev` deploys an app into the same cluster."""

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knarr.client import Platform
from knarr.home import Address
from seedwork.chassis.settings import SERVICE_PORTS
from seedwork.errors import InvalidInput
from tests.stack.platforms import CRASHES, KEEPS, ROOT, WEB, WITH_REDIS, Running, answers, eventually, run

pytestmark = [pytest.mark.stack("KUBECONFIG", "DOCKER_HOST"), pytest.mark.xdist_group("platform")]

OVERLAYS = ROOT / "deploy" / "k8s" / "overlays"
NAMESPACE = "knarr"
DEPLOYER = "--as=system:serviceaccount:knarr:deployer"
NODE_PORTS = 30_700
OF_TESTS = "knarr.io/tests"
"""The label of a platform that may be deleted."""


def kubectl(*arguments: str) -> str:
    return run("kubectl", *arguments)


def objects(*arguments: str) -> list[dict[str, Any]]:
    """What `kubectl get` lists."""
    found: list[dict[str, Any]] = json.loads(kubectl("get", *arguments, "--output=json"))["items"]
    return found


def may(verb: str, what: str, *, namespace: str = "somewhere") -> bool:
    """Return whether the deployer may do that in a namespace. kubectl reads `pods/exec` as a pod named `exec`."""
    resource, _, subresource = what.partition("/")
    argv = ["kubectl", "auth", "can-i", verb, resource, DEPLOYER, f"--namespace={namespace}"]
    argv += [f"--subresource={subresource}"] if subresource else []
    done = subprocess.run(argv, capture_output=True, check=False, text=True)
    assert done.stdout.strip() in {"yes", "no"}, done.stderr
    return done.stdout.strip() == "yes"


def _clear(*, wait: bool) -> None:
    """Nothing of an earlier run, nor of this one. Where the cluster has a knarr that is not of tests, they fail.

    Args:
        wait: Until it is gone; else until the cluster has been told, and takes it away by itself.
    """
    platform = [each["metadata"] for each in objects("namespaces") if each["metadata"]["name"] == NAMESPACE]
    apps = [each["metadata"] for each in objects("namespaces", "-l", "knarr.io/installation=knarr")]
    ours = any(OF_TESTS in each.get("labels", {}) for each in platform)
    somebodys = [each["name"] for each in platform + apps if "deletionTimestamp" not in each]
    assert ours or not somebodys, f"somebody's knarr is in this cluster: {somebodys}"
    if apps:
        kubectl("delete", "namespace", f"--wait={wait}", *(each["name"] for each in apps))
    kubectl("delete", "namespace", f"--wait={wait}", "--ignore-not-found", NAMESPACE)  # the label goes last
    for kind in ("clusterrole", "clusterrolebinding"):
        kubectl("delete", kind, "--ignore-not-found", "knarr-deployer", "knarr-app")


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """The platform's, empty: a dry run of what goes into it needs it."""
    _clear(wait=True)
    kubectl("create", "namespace", NAMESPACE)
    kubectl("label", "namespace", NAMESPACE, f"{OF_TESTS}=")
    try:
        yield NAMESPACE
    finally:
        _clear(wait=False)


@pytest.mark.parametrize("overlay", ["production", "dev"])
def test_the_server_takes_the_overlay(namespace: str, overlay: str) -> None:
    """A dry run by the server: every field is known to it, every reference has the right shape."""
    taken = kubectl("apply", "--dry-run=server", "--kustomize", str(OVERLAYS / overlay)).splitlines()
    for service in SERVICE_PORTS:
        assert f"deployment.apps/{service.replace('_', '-')} created (server dry run)" in taken


@pytest.fixture(scope="module")
def cluster(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The overlay `dev`, applied and ready."""
    run("docker", "build", "--tag", "knarr:dev", ".")
    kubectl("apply", "--kustomize", str(OVERLAYS / "dev"))
    for service in SERVICE_PORTS:
        name = service.replace("_", "-")
        kubectl("--namespace", namespace, "rollout", "status", f"deployment/{name}", "--timeout=900s")
    platform = Platform(Address(host="127.0.0.1", port_base=NODE_PORTS), _token())
    eventually("six services on their ports", lambda: all(platform.answers(each) for each in SERVICE_PORTS))
    into = ["kubectl", "--namespace", namespace, "exec", "--stdin", "deploy/repositories", "--"]
    yield Running(platform, into, tmp_path_factory.mktemp("cluster"))
    platform.close()


def _token() -> str:
    kept = kubectl("--namespace", NAMESPACE, "get", "secret", "knarr-platform", "--output=jsonpath={.data.KNARR_TOKEN}")
    return base64.b64decode(kept).decode()


@pytest.fixture(scope="module")
def shop(cluster: Running) -> str:
    """An app that was pushed once; that push's saga."""
    cluster.create("shop", WEB.format(version="one"))
    return _deployed(cluster, "shop")


@pytest.fixture(scope="module")
def guestbook(cluster: Running) -> str:
    """An app with an add-on, pushed once; its id."""
    cluster.create("guestbook", KEEPS)
    cluster.commit("guestbook", WITH_REDIS)
    _deployed(cluster, "guestbook")
    return str(cluster.platform.get("deployer", "/apps/guestbook")["id"])


def _deployed(cluster: Running, name: str) -> str:
    """Push; the saga, which has succeeded."""
    saga_id = cluster.push(name)
    assert cluster.ended(saga_id)["state"] == "SUCCEEDED", cluster.log_of(saga_id)
    return saga_id


def test_a_push_deploys_an_app_into_the_same_cluster(cluster: Running, shop: str) -> None:
    """From `git push` to an answer of pods in a namespace of the app's own, with the digest that the platform names."""
    app = cluster.platform.get("deployer", "/apps/shop")
    assert eventually("the app's answer", lambda: answers(app["url"], "one"))
    (pod,) = objects("pods", "--all-namespaces", "-l", f"knarr.io/saga={shop}")
    assert pod["metadata"]["namespace"] != NAMESPACE
    assert pod["spec"]["containers"][0]["image"].endswith(f"@{app['digest']}")


@pytest.mark.usefixtures("shop")
def test_a_push_that_cannot_work_is_undone(cluster: Running) -> None:
    """The pods of before serve on, and nothing in the cluster carries the id of the one that failed."""
    before = cluster.platform.get("deployer", "/apps/shop")
    cluster.commit("shop", {"app.py": CRASHES})
    saga_id = cluster.push("shop")
    saga = cluster.ended(saga_id)
    assert (saga["state"], saga["reason"]) == ("COMPENSATED", "failed"), cluster.log_of(saga_id)
    assert answers(before["url"], "one")
    left = objects("deployments,jobs,secrets,pods", "--all-namespaces", "-l", f"knarr.io/saga={saga_id}")
    assert not [each["metadata"]["name"] for each in left if "deletionTimestamp" not in each["metadata"]]


def test_a_release_is_observed(cluster: Running, shop: str) -> None:
    """The overlay keeps the default window: the last step of a push watched the pods for all of it."""
    items = cluster.platform.pages("saga_coordinator", f"/sagas/{shop}/log", limit=1000)
    (observed,) = [each["payload"] for each in items if each["type"] == "ReleaseObserved"]
    assert observed["observed_s"] == 10.0
    assert observed["ended_early"] == ""


@pytest.mark.usefixtures("shop")
def test_a_command_runs_beside_the_app(cluster: Running) -> None:
    """By the deployer's own account: a pod with the release's image; its output and exit code arrive, and it goes."""
    argv = ["python3", "-c", "print('counted:', open('app.py').read().count('one')); raise SystemExit(7)"]
    with cluster.platform.stream("deployer", "/apps/shop/runs", method="POST", json={"command": argv}) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert b"".join(base64.b64decode(line["output"]) for line in lines[:-1]) == b"counted: 1\n"
    assert lines[-1] == {"exit_code": 7}
    left = objects("pods", "--all-namespaces", "-l", "knarr.io/app=shop,knarr.io/step=run")
    assert not [each["metadata"]["name"] for each in left if "deletionTimestamp" not in each["metadata"]]


@pytest.mark.usefixtures("shop")
def test_a_service_restarted_in_the_middle_of_a_push_loses_nothing(cluster: Running) -> None:
    """Coordinator and builder are replaced while a deployment is under way; it ends, and the new version answers."""
    cluster.commit("shop", {"app.py": WEB.format(version="two")})
    saga_id = cluster.push("shop")
    kubectl("--namespace", NAMESPACE, "rollout", "restart", "deployment/saga-coordinator", "deployment/builder")
    for name in ("saga-coordinator", "builder"):
        kubectl("--namespace", NAMESPACE, "rollout", "status", f"deployment/{name}", "--timeout=900s")
    assert cluster.ended(saga_id)["state"] == "SUCCEEDED", cluster.log_of(saga_id)
    url = cluster.platform.get("deployer", "/apps/shop")["url"]
    assert eventually("the new version", lambda: answers(url, "two"))


@pytest.mark.usefixtures("shop")
def test_everything_is_replaced_by_two_replicas_while_pushes_come(cluster: Running) -> None:
    """As an upgrade does: every push ends well, in its order, and the last one is what answers."""
    deployments = [f"deployment/{service.replace('_', '-')}" for service in SERVICE_PORTS]
    kubectl("--namespace", NAMESPACE, "scale", "--replicas=2", *deployments)
    kubectl("--namespace", NAMESPACE, "rollout", "restart", *deployments)
    sagas = []
    for version in ("three", "four", "five"):
        cluster.commit("shop", {"app.py": WEB.format(version=version)})
        sagas.append(eventually("somebody takes the push", lambda: cluster.push("shop")))
    for name in deployments:
        kubectl("--namespace", NAMESPACE, "rollout", "status", name, "--timeout=900s")
    ends = [cluster.ended(saga_id) for saga_id in sagas]
    for saga_id, saga in zip(sagas, ends, strict=True):
        assert saga["state"] == "SUCCEEDED" or saga["reason"] == "superseded", cluster.log_of(saga_id)
    assert ends[-1]["state"] == "SUCCEEDED", cluster.log_of(sagas[-1])
    url = cluster.platform.get("deployer", "/apps/shop")["url"]
    assert eventually("the last version", lambda: answers(url, "five"))
    kubectl("--namespace", NAMESPACE, "scale", "--replicas=1", *deployments)


def addon_objects(app_id: str) -> set[str]:
    """Kinds of what an app's add-ons consist of now."""
    kinds = "statefulsets,services,secrets,pods,persistentvolumeclaims"
    return {
        each["kind"] for each in objects(kinds, "--all-namespaces", "-l", f"knarr.io/app-id={app_id},knarr.io/addon")
    }


def test_an_addon_keeps_its_data_until_somebody_confirms_that_it_goes(cluster: Running, guestbook: str) -> None:
    """Made with the first release by the deployer itself, kept by the next, gone when its name is said twice."""
    app = cluster.platform.get("deployer", "/apps/guestbook")
    assert eventually("the word is written", lambda: answers(f"{app['url']}keep", "+OK"))

    cluster.commit("guestbook", {"app.py": KEEPS + "# changed\n"})
    _deployed(cluster, "guestbook")
    assert eventually("the word is still there", lambda: answers(app["url"], ":1"))

    with pytest.raises(InvalidInput, match="its data would be lost"):
        cluster.platform.delete("deployer", "/apps/guestbook/addons/redis", confirm="yes")
    assert answers(app["url"], ":1")
    cluster.platform.delete("deployer", "/apps/guestbook/addons/redis", confirm="redis")
    assert cluster.platform.get("deployer", "/apps/guestbook/addons")["items"] == []
    assert addon_objects(guestbook) == set()


def test_an_addon_of_a_first_deployment_that_fails_is_undone(cluster: Running) -> None:
    """No pod, no volume, no password of it is left."""
    cluster.create("brief", CRASHES)
    cluster.commit("brief", WITH_REDIS)
    saga_id = cluster.push("brief")
    saga = cluster.ended(saga_id)
    assert (saga["state"], saga["reason"]) == ("COMPENSATED", "failed"), cluster.log_of(saga_id)
    assert "the volume of redis" in cluster.log_of(saga_id)
    assert addon_objects(saga["app_id"]) == set()


def test_an_app_that_is_removed_leaves_no_namespace(cluster: Running, guestbook: str) -> None:
    """Its pods, Secrets and volumes go with the namespace that they were in."""
    saga_id = cluster.platform.delete("webhook", "/apps/guestbook")["saga_id"]
    assert cluster.ended(saga_id)["state"] == "SUCCEEDED", cluster.log_of(saga_id)
    assert objects("namespaces", "-l", f"knarr.io/app-id={guestbook}") == []


def test_only_the_deployer_has_a_token_of_the_cluster(cluster: Running) -> None:
    """A service that is broken into has no key to the cluster."""
    pods = objects("pods", f"--namespace={NAMESPACE}", "-l", "app.kubernetes.io/component=service")
    with_token = {
        pod["metadata"]["labels"]["app.kubernetes.io/name"]
        for pod in pods
        for container in pod["spec"]["containers"]
        for mount in container["volumeMounts"]
        if mount["mountPath"].startswith("/var/run/secrets/kubernetes.io")
    }
    assert with_token == {"deployer"}


def test_the_deployer_may_do_its_work_in_namespaces_of_apps_and_nothing_else(cluster: Running, shop: str) -> None:
    """Make namespaces and what is in them; not enter pods, give other roles, touch nodes, replace objects."""
    app_id = cluster.ended(shop)["app_id"]
    (app,) = (each["metadata"]["name"] for each in objects("namespaces", "-l", f"knarr.io/app-id={app_id}"))
    for verb, what in (
        ("create", "namespaces"),
        ("patch", "deployments.apps"),
        ("get", "pods/log"),
        ("get", "pods/proxy"),
        ("create", "pods"),
        ("watch", "networkpolicies.networking.k8s.io"),
        ("create", "persistentvolumeclaims"),
        ("list", "secrets"),
    ):
        assert may(verb, what, namespace=app), (verb, what)
    refused = [
        ("create", "pods/exec"),
        ("create", "pods/attach"),
        ("create", "pods/portforward"),
        ("create", "pods/proxy"),
        ("get", "secrets"),
        ("update", "deployments.apps"),
        ("create", "roles.rbac.authorization.k8s.io"),
        ("create", "clusterrolebindings.rbac.authorization.k8s.io"),
        ("bind", "clusterroles.rbac.authorization.k8s.io"),
        ("impersonate", "users"),
        ("list", "nodes"),
        ("delete", "persistentvolumes"),
        ("create", "serviceaccounts/token"),
    ]
    for verb, what in refused:
        assert not may(verb, what, namespace=app), (verb, what)


def test_what_is_left_to_the_deployer_in_other_namespaces(cluster: Running) -> None:
    """No Secret, no pod, no log of anybody else; `bind` is for the one role that its manifests name."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": "kube-system"},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    done = subprocess.run(
        ["kubectl", "create", "--raw", path, "--filename=-", DEPLOYER],
        input=json.dumps(review),
        capture_output=True,
        check=True,
        text=True,
    )
    found = {
        (verb, f"{resource}.{group}".rstrip("."), name)
        for rule in json.loads(done.stdout)["status"]["resourceRules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or [""]
    }
    of_everybody = {("create", f"selfsubject{each}reviews.authorization.k8s.io", "") for each in ("access", "rules")}
    read = ("services", "deployments.apps", "networkpolicies.networking.k8s.io", "poddisruptionbudgets.policy")
    assert found - of_everybody == {
        *((verb, "namespaces", "") for verb in ("get", "list", "watch", "create", "patch", "delete")),
        *((verb, what, "") for what in read for verb in ("list", "watch")),
        ("list", "ingresses.networking.k8s.io", ""),
        *((verb, "rolebindings.rbac.authorization.k8s.io", "") for verb in ("create", "patch")),
        ("bind", "clusterroles.rbac.authorization.k8s.io", "knarr-app"),
    }


def test_the_secrets_are_made_once(cluster: Running) -> None:
    """The job that makes them may run again, and changes nothing."""
    before = _token()
    kubectl("--namespace", NAMESPACE, "delete", "job", "first-secrets")
    kubectl("apply", "--kustomize", str(OVERLAYS / "dev"))
    kubectl("--namespace", NAMESPACE, "wait", "--for=condition=complete", "job/first-secrets", "--timeout=300s")
    assert _token() == before


def test_no_committed_file_holds_a_secret() -> None:
    """Manifests name Secrets, and bring none along."""
    for path in (ROOT / "deploy" / "k8s").rglob("*.yaml"):
        assert "kind: Secret\n" not in Path(path).read_text(), path
