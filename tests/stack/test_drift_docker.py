"""What somebody does to containers beside knarr is shown, repaired within seconds, and said."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from ocistore.store import LABEL_CHECKS, Image
from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.engine import Container
from services.deployer.adapters.docker.runtime import DockerRuntime
from services.deployer.ports import Drift, Instance, Release
from tests.services.deployer.conftest import PATIENCE_S, eventually
from tests.stack import docker_bench
from tests.stack.container_images import BASE, PYTHON
from tests.stack.containers_contract import get
from tests.stack.docker_bench import Bench, docker, standing

bench, images, runtime, shelf, sound = (
    docker_bench.bench,
    docker_bench.images,
    docker_bench.runtime,
    docker_bench.shelf,
    docker_bench.sound,
)

pytestmark = pytest.mark.stack("DOCKER_HOST", "REGISTRY")

Harm = Callable[[Container], Awaitable[None]]


async def removed(container: Container) -> None:
    await docker("rm", "--force", container.id)


async def killed(container: Container) -> None:
    await docker("kill", container.id)


async def stopped(container: Container) -> None:
    await docker("stop", "--time", "5", container.id)


async def paused(container: Container) -> None:
    await docker("pause", container.id)


async def replaced(container: Container) -> None:
    await docker("rm", "--force", container.id)
    labels = [f"--label={name}={value}" for name, value in container.labels.items()]
    await docker("run", "--detach", "--name", container.name, *labels, BASE, PYTHON, "-c", "input()")


async def its_name_taken(container: Container) -> None:
    await docker("rm", "--force", container.id)
    await docker("run", "--detach", "--name", container.name, BASE, PYTHON, "-c", "import time; time.sleep(600)")


async def network_removed(container: Container) -> None:
    (network,) = container.networks
    await docker("network", "disconnect", "--force", network, container.id)
    await docker("network", "rm", network)


HARMS: Sequence[tuple[Harm, str]] = [
    (removed, "the container of web.1 is gone"),
    (killed, "the container of web.1 was stopped"),
    (stopped, "the container of web.1 was stopped"),
    (paused, "the container of web.1 is paused"),
    (replaced, f"the container of web.1 runs the image {BASE}"),
    (its_name_taken, "the container of web.1 is gone"),
    (network_removed, "the container of web.1 is not in the app's network"),
]


async def found_and_repaired(runtime: DockerRuntime) -> Drift:
    """The first drift that was repaired."""
    found: list[Drift] = []

    async def look() -> list[Drift]:
        found.extend(await runtime.reconcile([]))
        return [each for each in found if each.repaired]

    async with asyncio.timeout(PATIENCE_S):
        return (await eventually(look))[0]


@pytest.mark.parametrize(("harm", "what"), HARMS, ids=[harm.__name__ for harm, _ in HARMS])
async def test_a_container_that_somebody_changed_runs_again_as_the_release_says(
    bench: Bench,
    runtime: DockerRuntime,
    sound: Image,
    harm: Harm,
    what: str,
) -> None:
    """The drift is an event with its name; the app answers again under its address, without another deployment."""
    release = bench.shelf.release(sound)
    url = await bench.up(runtime, release)
    (container,) = await bench.containers()
    async with runtime._lock(release.saga_id):  # a repair that is faster than the harm would undo half of it
        await harm(container)

    drift = await found_and_repaired(runtime)
    assert (drift.app_id, drift.saga_id, drift.what) == (release.app_id, release.saga_id, what)
    await eventually(
        lambda: runtime.instances(release.app_id), until=lambda found: [each.state for each in found] == ["up"]
    )
    await eventually(lambda: get(url), until=lambda answer: answer.status_code == 200)
    (after,) = await bench.containers()
    assert (after.image, after.restart_policy) == (container.image, "unless-stopped")


async def test_until_it_is_repaired_the_app_is_down_and_says_why(
    bench: Bench,
    runtime: DockerRuntime,
    sound: Image,
) -> None:
    """One instance of two is gone: it is listed as down, and the other one serves."""
    release = bench.shelf.release(sound, formation={"web": 2})
    url = await bench.up(runtime, release)
    async with runtime._lock(release.saga_id):  # repairs wait for it
        await removed((await bench.containers())[0])
        instances = await eventually(
            lambda: runtime.instances(release.app_id), until=lambda found: {each.state for each in found} != {"up"}
        )
        (down,) = [each for each in instances if each.state == "down"]
        assert "removed outside of knarr" in down.note
        assert (await get(url)).status_code == 200
    await eventually(
        lambda: runtime.instances(release.app_id), until=lambda found: [each.state for each in found] == ["up", "up"]
    )


async def test_what_was_stopped_by_a_deployment_stays_stopped(
    bench: Bench,
    runtime: DockerRuntime,
    sound: Image,
) -> None:
    """Its release does not serve any more: that is no drift, and nothing is repaired under it."""
    one, two = bench.shelf.release(sound), bench.shelf.release(sound, number=2)
    await bench.up(runtime, one)
    await bench.up(runtime, two)
    (warm,) = await bench.containers(**{spec.SAGA: one.saga_id})
    await removed(warm)
    await runtime.reconcile([])
    await runtime.stop(one.app_id, one.saga_id)
    (drifting,) = await bench.containers()
    await removed(drifting)
    assert (await found_and_repaired(runtime)).saga_id == two.saga_id
    assert {each.labels[spec.SAGA] for each in await bench.containers()} == {two.saga_id}


# ── checks after the start ───────────────────────────────────────────────────────────────────────────────────────────

MOODY = """
import http.server, os
class App(http.server.BaseHTTPRequestHandler):
    broken = set()
    def do_GET(self):
        if self.path.startswith("/break/"):
            App.broken.add(self.path[6:])
        if self.path.startswith("/mend/"):
            App.broken.discard(self.path[5:])
        self.send_response(500 if self.path in App.broken else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), App).serve_forever()
"""


def checks(text: str) -> dict[str, str]:
    return {LABEL_CHECKS: '{"web": [' + text + "]}"}


async def only(runtime: DockerRuntime, release: Release) -> Instance:
    (instance,) = await runtime.instances(release.app_id)
    return instance


async def test_an_app_that_fails_its_liveness_check_is_restarted(
    bench: Bench,
    runtime: DockerRuntime,
) -> None:
    """It counts as a restart, says which check, and is no drift."""
    said = checks('{"type": "liveness", "path": "/live", "attempts": 2, "wait_s": 0.2}')
    release = bench.shelf.release(await bench.shelf.image({"app.py": MOODY}, labels=said))
    url = await bench.up(runtime, release)
    await get(url + "break/live")

    instance = await eventually(lambda: only(runtime, release), until=lambda found: found.restarts == 1)
    assert "GET /live answered 500" in instance.note or instance.state == "up"
    await eventually(lambda: only(runtime, release), until=lambda found: found.state == "up")
    assert await runtime.reconcile([]) == []
    assert (await get(url)).status_code == 200


async def test_an_app_that_is_not_ready_gets_no_requests(
    bench: Bench,
    runtime: DockerRuntime,
) -> None:
    """It is not restarted; it gets them again when its check passes again."""
    said = checks('{"type": "readiness", "path": "/ready", "attempts": 2, "wait_s": 0.2}')
    release = bench.shelf.release(await bench.shelf.image({"app.py": MOODY}, labels=said))
    url = await bench.up(runtime, release)
    (container,) = await bench.containers()
    await get(url + "break/ready")

    instance = await eventually(lambda: only(runtime, release), until=lambda found: found.state != "up")
    assert instance.note == "it gets no requests: GET /ready answered 500"
    await eventually(lambda: get(url), until=lambda answer: answer.status_code == 503)
    await docker(
        *("exec", container.id, PYTHON, "-c"),
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/mend/ready')",
    )
    await eventually(lambda: get(url), until=lambda answer: answer.status_code == 200)
    assert (await only(runtime, release)).restarts == 0


async def test_a_release_that_serves_is_repaired_after_our_restart_as_well(
    bench: Bench,
    runtime: DockerRuntime,
    sound: Image,
) -> None:
    """What should run is known from the database then."""
    release = bench.shelf.release(sound)
    await bench.up(runtime, release)
    port = (await runtime.expose(release.app_id, release.app, taken=frozenset())).port
    await runtime.close()

    again = bench.made()
    await again.recover([standing(release, port)])
    await eventually(
        lambda: again.instances(release.app_id), until=lambda found: [each.state for each in found] == ["up"]
    )
    await removed((await bench.containers())[0])
    assert (await found_and_repaired(again)).what == "the container of web.1 is gone"
