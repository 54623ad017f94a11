"""The main job: a signed push becomes a running app, and what people do with it afterwards."""

import gzip
import io
import json
import socket
import tarfile
from urllib.parse import urlsplit

import httpx2
import pytest

from knarr.push import headers_of
from seedwork.errors import Conflict, InvalidInput, NotFound, Unauthenticated
from tests.e2e.harness import SECRET, Client, Knarr, error_of, eventually, step_of, web_app

pytestmark = pytest.mark.xdist_group("e2e-main")


def test_a_signed_push_becomes_a_running_app(knarr: Knarr) -> None:
    """The saga succeeds, and the address answers with what the pushed commit says."""
    repository = knarr.repository("main-push")
    knarr.create_app("main-push", repository)
    saga = knarr.deploy(repository)
    assert saga["state"] == "SUCCEEDED", saga
    assert [step["state"] for step in saga["steps"]] == ["DONE"] * 5
    assert saga["commit"] == repository.git("rev-parse", "HEAD")
    assert knarr.ask("main-push") == "one"


def test_success_means_that_the_built_digest_was_observed_running(knarr: Knarr) -> None:
    """The deployer's digest is the builder's, and the registry holds it under the commit's tag."""
    repository = knarr.repository("digest")
    knarr.create_app("digest", repository)
    saga = knarr.deploy(repository)
    app = knarr.app("digest")
    build = knarr.api.get("builder", f"/builds/{saga['id']}")
    (image,) = knarr.api.pages("registry", "/images", limit=10, app="digest")
    assert app["digest"] == build["digest"] == image["digest"]
    assert app["commit"] == saga["commit"]
    assert saga["commit"] in image["tags"]


def test_a_second_push_replaces_the_first_without_an_error(knarr: Knarr) -> None:
    """A client that asks all the time sees the old version, then the new one, and nothing else."""
    repository = knarr.repository("replace")
    knarr.create_app("replace", repository)
    knarr.deploy(repository)
    repository.commit(web_app("two"))
    with Client(knarr.app("replace")["url"], expected=("one", "two")) as client:
        saga = knarr.deploy(repository)
        assert saga["state"] == "SUCCEEDED", saga
        assert knarr.ask("replace") == "two"
    assert client.faults == []
    eventually("one instance runs", lambda: len(knarr.app("replace")["instances"]) == 1)


def test_the_log_tells_every_command_and_answer(knarr: Knarr) -> None:
    """Without gaps, each entry with the state after it."""
    repository = knarr.repository("log")
    knarr.create_app("log", repository)
    saga = knarr.deploy(repository)
    log = knarr.log(saga["id"])
    assert [entry["seq"] for entry in log] == list(range(log[0]["seq"], log[0]["seq"] + len(log)))
    sent = [entry["type"] for entry in log if entry["direction"] == "out"]
    assert [each for each in sent if each != "DeploymentSucceeded"] == [
        "FetchSource",
        "BuildImage",
        "PublishImage",
        "DeployRelease",
        "ObserveRelease",
    ]
    assert log[-1]["state"] == "SUCCEEDED"


def test_the_same_delivery_twice_makes_one_deployment(knarr: Knarr) -> None:
    """By its id and by its body; the answer names the first one's deployment."""
    repository = knarr.repository("twice")
    knarr.create_app("twice", repository)
    first = knarr.push(repository, delivery_id="5f6a0000-0000-0000-0000-000000000001")
    same_id = knarr.push(repository, delivery_id="5f6a0000-0000-0000-0000-000000000001")
    same_body = knarr.push(repository, delivery_id="5f6a0000-0000-0000-0000-000000000002")
    assert first["status"] == "accepted"
    assert same_id["status"] == same_body["status"] == "duplicate"
    assert first["deployments"] == same_id["deployments"] == same_body["deployments"]
    knarr.ended(first["deployments"][0])
    assert len(knarr.api.pages("saga_coordinator", "/sagas", limit=50, app="twice")) == 1


def test_a_wrong_signature_is_refused_and_leaves_nothing(knarr: Knarr) -> None:
    """401, no delivery, no saga."""
    repository = knarr.repository("forged")
    knarr.create_app("forged", repository)
    before = knarr.api.pages("webhook", "/deliveries", limit=200)
    with pytest.raises(Unauthenticated):
        knarr.push(repository, secret="not the secret")
    assert knarr.api.pages("webhook", "/deliveries", limit=200) == before
    assert knarr.api.pages("saga_coordinator", "/sagas", limit=50, app="forged") == []


def test_a_ping_is_answered_and_another_branch_is_ignored(knarr: Knarr) -> None:
    """202, with a reason that can be read later."""
    repository = knarr.repository("quiet")
    knarr.create_app("quiet", repository)
    repository.git("branch", "side")
    assert knarr.push(repository, ref="refs/heads/side")["status"] == "ignored"
    body = json.dumps({"zen": "Keep it logically awesome.", "repository": {"full_name": repository.full_name}}).encode()
    headers = headers_of(body, event="ping", secret=SECRET, delivery_id="ping-1")
    answer = knarr.api.request("POST", "webhook", "/github-webhook", content=body, headers=headers)
    assert answer["status"] == "ignored"
    reasons = [
        each["reason"] for each in knarr.api.pages("webhook", "/deliveries", limit=200) if each["status"] == "ignored"
    ]
    assert all(reasons)


def test_a_body_of_the_wrong_shape_under_a_right_signature_is_refused(knarr: Knarr) -> None:
    """400: whoever sends it should know."""
    knarr.create_app("shape", knarr.repository("shape"))
    body = b'{"ref": 7}'
    headers = headers_of(body, event="push", secret=SECRET, delivery_id="shape-1")
    with pytest.raises(InvalidInput):
        knarr.api.request("POST", "webhook", "/github-webhook", content=body, headers=headers)


def test_a_body_over_the_limit_is_refused(knarr: Knarr) -> None:
    """413 to a body that is announced as too large, before any of it is sent."""
    webhook = urlsplit(knarr.api.url("webhook", "/github-webhook"))
    announced = f"POST {webhook.path} HTTP/1.1\r\nHost: {webhook.netloc}\r\nContent-Length: 26214401\r\n\r\n"
    with socket.create_connection((webhook.hostname, webhook.port), timeout=60) as connection:
        connection.sendall(announced.encode())
        answer = connection.makefile("rb").readline()
    assert b" 413 " in answer


def test_a_config_change_makes_a_release_with_it(knarr: Knarr) -> None:
    """The app sees the value; the API masks it; a rollback brings the old one back."""
    repository = knarr.repository("config")
    knarr.create_app("config", repository)
    knarr.deploy(repository)
    changed = knarr.api.patch("deployer", "/apps/config/config", {"GREETING": "grüezi"})
    assert knarr.ended(changed["saga_id"])["state"] == "SUCCEEDED"
    assert knarr.ask("config", "/env") == "grüezi"
    assert "grüezi" not in json.dumps(knarr.api.get("deployer", "/apps/config/config"), ensure_ascii=False)
    assert "grüezi" not in json.dumps(knarr.log(changed["saga_id"]), ensure_ascii=False)
    back = knarr.api.post("deployer", "/apps/config/releases", {"rollback_to": 1})
    assert knarr.ended(back["saga_id"])["state"] == "SUCCEEDED"
    assert knarr.ask("config", "/env") == "unset"


def test_a_rollback_brings_the_earlier_image_back(knarr: Knarr) -> None:
    """As a new release, without a build."""
    repository = knarr.repository("rollback")
    knarr.create_app("rollback", repository)
    first = knarr.deploy(repository)
    repository.commit(web_app("two"))
    assert knarr.deploy(repository)["state"] == "SUCCEEDED"
    started = knarr.api.post("deployer", "/apps/rollback/releases", {"rollback_to": 1})
    saga = knarr.ended(started["saga_id"])
    assert saga["state"] == "SUCCEEDED", saga
    assert knarr.ask("rollback") == "one"
    app = knarr.app("rollback")
    assert app["release"] == 3
    assert app["commit"] == first["commit"]


def test_scaling_runs_that_many_instances(knarr: Knarr) -> None:
    """Two answer behind one address; back to one."""
    repository = knarr.repository("scale")
    knarr.create_app("scale", repository)
    knarr.deploy(repository)
    started = knarr.api.patch("deployer", "/apps/scale/formation", {"web": 2})
    assert knarr.ended(started["saga_id"])["state"] == "SUCCEEDED"
    eventually("two instances run", lambda: len(knarr.app("scale")["instances"]) == 2)
    eventually("both answer", lambda: len({knarr.ask("scale", "/who") for _ in range(10)}) == 2)
    started = knarr.api.patch("deployer", "/apps/scale/formation", {"web": 1})
    assert knarr.ended(started["saga_id"])["state"] == "SUCCEEDED"
    eventually("one instance runs", lambda: len(knarr.app("scale")["instances"]) == 1)


def test_a_restart_starts_new_instances_without_an_error(knarr: Knarr) -> None:
    """Another process answers; nobody noticed."""
    repository = knarr.repository("restart")
    knarr.create_app("restart", repository)
    knarr.deploy(repository)
    before = knarr.ask("restart", "/who")
    with Client(knarr.app("restart")["url"], expected=("one",)) as client:
        started = knarr.api.post("deployer", "/apps/restart/restart")
        assert knarr.ended(started["saga_id"])["state"] == "SUCCEEDED"
        eventually("another process answers", lambda: knarr.ask("restart", "/who") != before)
    assert client.faults == []


def test_a_removed_app_leaves_nothing(knarr: Knarr) -> None:
    """Nothing that runs, no image, no route; the name can be used again."""
    repository = knarr.repository("removed")
    knarr.create_app("removed", repository)
    deployed = knarr.deploy(repository)
    url = knarr.app("removed")["url"]
    started = knarr.api.delete("webhook", "/apps/removed")
    saga = knarr.ended(started["saga_id"])
    assert saga["state"] == "SUCCEEDED", saga
    assert knarr.workloads(deployed["id"]) == set()
    assert not any("removed" in name for name in knarr.images())
    with pytest.raises(NotFound):
        knarr.app("removed")
    with pytest.raises(httpx2.TransportError):
        httpx2.get(url, trust_env=False)
    knarr.create_app("removed", repository)


def test_an_uploaded_folder_is_deployed(knarr: Knarr) -> None:
    """Without any Git host: an archive, then the same saga."""
    knarr.create_app("upload")
    archive = io.BytesIO()
    with gzip.GzipFile(fileobj=archive, mode="wb", mtime=0) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for name, text in web_app("uploaded").items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    started = knarr.api.request(
        "POST",
        "webhook",
        "/apps/upload/deployments",
        content=archive.getvalue(),
        headers={"Content-Type": "application/gzip"},
    )
    saga = knarr.ended(started["saga_id"])
    assert saga["state"] == "SUCCEEDED", saga
    assert saga["commit"] is None
    assert saga["trigger"] == "upload"
    assert knarr.ask("upload") == "uploaded"


def test_a_broken_description_names_file_and_key(knarr: Knarr) -> None:
    """The source step fails with words that the author can use."""
    repository = knarr.repository(
        "manifest", {**web_app("one"), "app.json": '{"formation": {"web": {"quantity": "many"}}}'}
    )
    knarr.create_app("manifest", repository)
    saga = knarr.deploy(repository)
    assert saga["state"] == "COMPENSATED"
    assert "app.json" in error_of(saga, "source")
    assert "quantity" in error_of(saga, "source")


def test_a_release_command_that_fails_stops_the_deployment(knarr: Knarr) -> None:
    """Before traffic moves; its output is in the failure."""
    files = web_app("one")
    files["Procfile"] = "release: python -c \"raise SystemExit('no table')\"\n" + files["Procfile"]
    repository = knarr.repository("release-command", files)
    knarr.create_app("release-command", repository)
    saga = knarr.deploy(repository)
    assert saga["state"] == "COMPENSATED"
    assert step_of(saga, "deploy")["state"] == "UNDONE"
    knarr.has_let_go_of(saga["id"])


def test_verbs_that_make_no_sense_are_refused_with_the_state(knarr: Knarr) -> None:
    """409 on a saga that has ended."""
    repository = knarr.repository("verbs")
    knarr.create_app("verbs", repository)
    saga = knarr.deploy(repository)
    with pytest.raises(Conflict, match="SUCCEEDED"):
        knarr.api.post("saga_coordinator", f"/sagas/{saga['id']}/cancel", {"reason": "too late"})
