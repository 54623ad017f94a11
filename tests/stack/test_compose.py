"""`docker compose up --build` on a real engine: the whole platform in containers, a push, a push that is undone."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from knarr.client import Platform
from knarr.home import Address
from seedwork.chassis.settings import SERVICE_PORTS
from tests.stack.platforms import CRASHES, KEEPS, ROOT, WEB, WITH_REDIS, Running, answers, eventually, run

pytestmark = [pytest.mark.stack("DOCKER_HOST"), pytest.mark.xdist_group("platform")]

PROJECT = "knarr-tests"
IMAGE = "knarr:tests"


def _free_block(digits: int, *, start: int) -> str:
    """The first digits of a block of ports (10 or 100) from there on, of which nobody has any."""
    size = 10 ** (5 - digits)
    for prefix in range(start // size, (start + 3_000) // size):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(prefix * size, (prefix + 1) * size):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return str(prefix)
    raise AssertionError("there are no free ports")


def _free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


@pytest.fixture(scope="module")
def ports() -> dict[str, str]:
    """Settings of compose that keep this project away from others."""
    return {
        "COMPOSE_PROJECT_NAME": PROJECT,
        "KNARR_IMAGE": IMAGE,
        "KNARR_INSTALLATION": PROJECT,
        "KNARR_PORTS": _free_block(4, start=20_000),
        "KNARR_APP_PORTS": _free_block(3, start=26_000),
        "KNARR_IMAGES_PORT": _free_port(),
        "KNARR_SAGA_HOLD_S": "0",
        "KNARR_OBSERVE_S": "0",
    }


def _clear() -> None:
    """Nothing of an earlier run, nor of this one."""
    run("docker", "compose", "--profile", "tools", "down", "--volumes", COMPOSE_PROJECT_NAME=PROJECT)
    label = f"label=io.knarr.installation={PROJECT}"
    if containers := run("docker", "ps", "--all", "--quiet", "--filter", label).split():
        run("docker", "rm", "--force", *containers)
    if volumes := run("docker", "volume", "ls", "--quiet", "--filter", label).split():
        run("docker", "volume", "rm", *volumes)
    if networks := run("docker", "network", "ls", "--quiet", "--filter", label).split():
        run("docker", "network", "rm", *networks)


@pytest.fixture(scope="module")
def stack(ports: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The platform, from nothing."""
    folder = tmp_path_factory.mktemp("compose")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ports.items():
            patch.setenv(name, value)
        _clear()
        try:
            run("docker", "compose", "up", "--build", "--detach", "--wait")
            platform = _platform(folder / ".knarr-stack")
            yield Running(platform, _into(), folder)
            platform.close()
        finally:
            _clear()
            run("docker", "image", "rm", "--force", IMAGE)


def _platform(home: Path) -> Platform:
    run("sh", "deploy/stack-home.sh", str(home))
    address = json.loads((home / "platform.json").read_text())
    token = (home / "token").read_text().strip()
    return Platform(Address(host=address["host"], port_base=address["port_base"]), token)


def _into() -> list[str]:
    compose = ["docker", "compose", "--project-directory", str(ROOT)]
    return [*compose, "run", "--rm", "--no-deps", "-T", "repositories"]


def _containers() -> list[dict[str, Any]]:
    """All of the project, also those that have ended."""
    names = run("docker", "compose", "ps", "--all", "--quiet").split()
    found: list[dict[str, Any]] = json.loads(run("docker", "inspect", *names))
    return found


def _of(containers: list[dict[str, Any]], service: str) -> dict[str, Any]:
    (found,) = [each for each in containers if each["Config"]["Labels"]["com.docker.compose.service"] == service]
    return found


def test_every_service_is_ready(stack: Running) -> None:
    """`up --wait` returned, so the engine says that they are healthy; and they say so themselves."""
    for service in SERVICE_PORTS:
        assert stack.platform.answers(service), service
    states = {
        each["Config"]["Labels"]["com.docker.compose.service"]: each["State"]["Health"]["Status"]
        for each in _containers()
        if "Health" in each["State"] and each["State"]["Running"]
    }
    assert set(states) == {name.replace("_", "-") for name in SERVICE_PORTS} | {"pulsar", "mysql", "images"}
    assert set(states.values()) == {"healthy"}


def test_the_jobs_have_ended_well(stack: Running) -> None:
    """Secrets, schemas and topics were made by one container each, before the services."""
    for job in ("secrets", "db-upgrade", "bus-setup"):
        assert _of(_containers(), job)["State"]["ExitCode"] == 0


def test_services_run_as_nobody_special_and_show_no_secret(stack: Running) -> None:
    """Neither the process table nor `docker inspect` has a token; who is not given the engine is not root."""
    containers = _containers()
    token = run("docker", "compose", "exec", "-T", "webhook", "sed", "-n", "s/^KNARR_TOKEN=//p", ".env").strip()
    assert len(token) > 30
    assert token not in json.dumps(containers)
    for service in ("webhook", "source", "registry", "saga-coordinator"):
        assert run("docker", "compose", "exec", "-T", service, "id", "-u").strip() == "10001"
    for service in SERVICE_PORTS:
        status = run("docker", "compose", "exec", "-T", service.replace("_", "-"), "cat", "/proc/1/status")
        assert "CapEff:\t0000000000000000" in status


def test_services_need_a_token_and_the_databases_are_not_reachable(stack: Running) -> None:
    """The API answers 401 without a token; brokers and databases publish no port."""
    url = stack.platform.url("saga_coordinator", "/sagas")
    assert httpx2.get(url, trust_env=False).status_code == 401
    for system in ("mysql", "pulsar"):
        assert not _of(_containers(), system)["HostConfig"]["PortBindings"]


@pytest.fixture(scope="module")
def shop(stack: Running) -> str:
    """An app that was pushed once; that push's saga."""
    stack.create("shop", WEB.format(version="one"))
    saga_id = stack.push("shop")
    assert stack.ended(saga_id)["state"] == "SUCCEEDED", stack.log_of(saga_id)
    return saga_id


def test_a_push_becomes_an_app(stack: Running, shop: str) -> None:
    """From `git push` to an answer; what runs is the image with the digest that the platform names."""
    app = stack.platform.get("deployer", "/apps/shop")
    assert eventually("the app's answer", lambda: answers(app["url"], "one"))
    containers = run("docker", "ps", "--quiet", "--filter", f"label=io.knarr.saga={shop}").split()
    (container,) = json.loads(run("docker", "inspect", *containers))
    assert container["Config"]["Image"].endswith(f"@{app['digest']}")


@pytest.mark.usefixtures("shop")
def test_a_push_that_cannot_work_is_undone(stack: Running) -> None:
    """The version that ran before goes on, and nothing carries the id of the one that failed."""
    before = stack.platform.get("deployer", "/apps/shop")
    stack.commit("shop", {"app.py": CRASHES})
    saga_id = stack.push("shop")
    saga = stack.ended(saga_id)
    assert (saga["state"], saga["reason"]) == ("COMPENSATED", "failed"), stack.log_of(saga_id)
    assert stack.platform.get("deployer", "/apps/shop")["digest"] == before["digest"]
    assert answers(before["url"], "one")
    assert not run("docker", "ps", "--all", "--quiet", "--filter", f"label=io.knarr.saga={saga_id}")
    images = stack.platform.pages("registry", "/images", limit=10, app="shop")
    assert [each["digest"] for each in images] == [before["digest"]]


def test_the_demo_tells_its_story(stack: Running) -> None:
    """What `make demo-stack` shows once all is up: a push that works, one that is undone while the app answers."""
    demo = [sys.executable, "-m", "knarr.demo_stack"]
    there = {**os.environ, "COMPOSE_FILE": str(ROOT / "docker-compose.yml")}
    told = subprocess.run(demo, cwd=stack.folder, env=there, capture_output=True, check=False, text=True)
    assert told.returncode == 0, told.stderr
    assert re.search(r"The push was undone\. Meanwhile hello-python was asked [1-9]\d* times: 0 errors\.", told.stderr)


def test_an_addon_outlives_the_release_that_asked_for_it(stack: Running) -> None:
    """What the app has written there is read by its next release; the volume goes with the app."""
    stack.create("guestbook", KEEPS)
    stack.commit("guestbook", WITH_REDIS)
    first = stack.push("guestbook")
    assert stack.ended(first)["state"] == "SUCCEEDED", stack.log_of(first)
    app = stack.platform.get("deployer", "/apps/guestbook")
    assert eventually("the word is written", lambda: answers(f"{app['url']}keep", "+OK"))
    stack.commit("guestbook", {"app.py": KEEPS + "# changed\n"})
    second = stack.push("guestbook")
    assert stack.ended(second)["state"] == "SUCCEEDED", stack.log_of(second)
    assert eventually("the word is still there", lambda: answers(app["url"], ":1"))

    removal = stack.platform.delete("webhook", "/apps/guestbook")["saga_id"]
    assert stack.ended(removal)["state"] == "SUCCEEDED", stack.log_of(removal)
    for things in (("ps", "--all"), ("volume", "ls"), ("network", "ls")):
        assert not run("docker", *things, "--quiet", "--filter", f"label=io.knarr.app-id={app['id']}")


@pytest.mark.usefixtures("shop")
def test_what_the_stack_keeps_outlives_its_containers(stack: Running) -> None:
    """`down` and `up` again, as an upgrade does: the same token, the same sagas, the same app."""
    sagas = [each["id"] for each in stack.platform.pages("saga_coordinator", "/sagas", limit=10)]
    url = stack.platform.get("deployer", "/apps/shop")["url"]
    run("docker", "compose", "down")
    run("docker", "compose", "up", "--detach", "--wait")
    assert [each["id"] for each in stack.platform.pages("saga_coordinator", "/sagas", limit=10)] == sagas
    assert eventually("the app's answer", lambda: answers(url, "one"))


def test_a_database_password_is_changed(stack: Running) -> None:
    """A bundle that was deleted is made anew, the job tells the server, the service reads it; tokens stay."""
    before = run("docker", "compose", "exec", "-T", "source", "cat", ".env")
    run("docker", "compose", "run", "--rm", "--no-deps", "-T", "secrets", "rm", "/secrets/source.env")
    run("docker", "compose", "up", "--detach", "--wait")
    run("docker", "compose", "restart", "source")
    assert eventually("the service is ready again", lambda: stack.platform.answers("source"))
    after = run("docker", "compose", "exec", "-T", "source", "cat", ".env")
    changed = {line.partition("=")[0] for line in set(before.splitlines()) ^ set(after.splitlines())}
    assert changed == {"KNARR_DATABASE_URL"}


@pytest.mark.usefixtures("shop")
def test_a_key_of_what_is_encrypted_is_changed(stack: Running) -> None:
    """The new one stands before the old one until all is sealed anew; config vars are read with the new one alone."""
    changed = stack.platform.patch("deployer", "/apps/shop/config", {"GREETING": "Hei"})
    assert stack.ended(changed["saga_id"])["state"] == "SUCCEEDED", stack.log_of(changed["saga_id"])
    before = stack.platform.get("deployer", "/apps/shop/config", reveal=1)
    bundle = "/secrets/deployer-key.env"
    make = "import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())"
    _change_key(stack, f"sed -i \"s/KEY=/KEY=$(python -c '{make}'),/\" {bundle}")
    done = run(
        "docker", "compose", "exec", "-T", "deployer", "knarr", "db", "reseal", "--service", "deployer", "--json"
    )
    assert json.loads(done)["deployer"] >= 1
    _change_key(stack, f"sed -i 's/,.*//' {bundle}")
    assert stack.platform.get("deployer", "/apps/shop/config", reveal=1) == before


def _change_key(stack: Running, command: str) -> None:
    """Run this where the bundles are, and have `deployer` read its own again."""
    run("docker", "compose", "run", "--rm", "--no-deps", "-T", "secrets", "sh", "-euc", command)
    run("docker", "compose", "up", "--detach", "--wait")
    run("docker", "compose", "restart", "deployer")
    assert eventually("the deployer is ready again", lambda: stack.platform.answers("deployer"))


@pytest.mark.usefixtures("shop")
def test_a_backup_is_restored_onto_an_empty_broker(stack: Running) -> None:
    """The commands of docs/operate.md; the sagas are there, the app serves on, and its next push is deployed."""
    databases = " ".join(f"knarr_{service}" for service in SERVICE_PORTS)
    login = "MYSQL_PWD=$(cat /run/password/root-password)"
    dump = f"mysqldump -uroot --single-transaction --set-gtid-purged=OFF --databases {databases}"
    backup = stack.folder / "knarr.sql"
    run("sh", "-c", f"docker compose exec -T mysql sh -c '{login} {dump}' > {backup}")
    sagas = [each["id"] for each in stack.platform.pages("saga_coordinator", "/sagas", limit=10)]

    run("docker", "compose", "down")
    run("docker", "volume", "rm", f"{PROJECT}_mysql", f"{PROJECT}_pulsar")
    run("docker", "compose", "up", "--detach", "--wait", "mysql")
    for script in (backup, ROOT / "deploy" / "after-restore.sql"):
        run("sh", "-c", f"docker compose exec -T mysql sh -c '{login} mysql -uroot' < {script}")
    run("docker", "compose", "up", "--detach", "--wait")
    assert [each["id"] for each in stack.platform.pages("saga_coordinator", "/sagas", limit=10)] == sagas
    assert eventually("the app's answer", lambda: answers(stack.platform.get("deployer", "/apps/shop")["url"], "one"))

    stack.commit("shop", {"app.py": WEB.format(version="three")})
    saga_id = stack.push("shop")
    saga = stack.ended(saga_id)
    assert saga["state"] == "SUCCEEDED", stack.log_of(saga_id)
    assert saga["fence"] > 1_000_000, "above whatever was issued after the backup"
    url = stack.platform.get("deployer", "/apps/shop")["url"]
    assert eventually("the new version", lambda: answers(url, "three"))


def test_the_image_has_what_it_needs_and_no_more(stack: Running) -> None:
    """Git and the Docker client are there, compilers are not; it runs as a user by number."""
    look = "git --version && docker --version && docker buildx version && ! command -v gcc cc make"
    assert "git version" in run("docker", "run", "--rm", IMAGE, "sh", "-c", look)
    (found,) = json.loads(run("docker", "image", "inspect", IMAGE))
    assert found["Config"]["User"] == "10001:10001"
    assert found["Config"]["Healthcheck"]["Test"][-1] == "/livez"


def test_services_allocate_by_jemalloc(stack: Running) -> None:
    """A library that cannot be preloaded is only a line in the log, which nobody would see."""
    assert "libjemalloc" in run("docker", "compose", "exec", "-T", "saga-coordinator", "cat", "/proc/self/maps")


def test_the_health_check_tells_a_dead_service_from_a_command(stack: Running) -> None:
    """A service to which nobody listens is unhealthy; a container that runs something else is not."""
    check = "python -I -S /opt/knarr/ask.py /livez || echo sick"
    assert run("docker", "compose", "exec", "-T", "webhook", "sh", "-c", check) == ""
    assert run("docker", "run", "--rm", IMAGE, "sh", "-c", check, "a command") == ""
    assert run("docker", "run", "--rm", IMAGE, "sh", "-c", check, "services.webhook") == "sick\n"
