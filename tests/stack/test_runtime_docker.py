"""A Docker engine keeps the contract of the runtime, and what only an engine can get wrong."""

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from ocistore.store import LABEL_BASE, Image
from seedwork.errors import NotFound, Unavailable
from seedwork.messages import new_id
from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.engine import Engine
from services.deployer.adapters.docker.runtime import DockerRuntime
from services.deployer.errors import CannotRun, ReleaseCommandFailed
from services.deployer.ports import Needed
from tests.services.deployer.conftest import eventually
from tests.stack import docker_bench
from tests.stack.container_images import PYTHON, READ_ONLY, WRITES
from tests.stack.containers_contract import ContainersContract, get
from tests.stack.docker_bench import MIB, Bench, docker_json, standing

pytestmark = pytest.mark.stack("DOCKER_HOST", "REGISTRY")

bench, images, runtime, shelf, sound = (
    docker_bench.bench,
    docker_bench.images,
    docker_bench.runtime,
    docker_bench.shelf,
    docker_bench.sound,
)
broken, unmigrated = docker_bench.broken, docker_bench.unmigrated


class TestDockerRuntime(ContainersContract):
    """Everything that local processes and other containers keep."""

    REFUSES = "refuses connections on PORT (8080)"


async def test_an_image_that_is_gone_is_not_found(bench: Bench, runtime: DockerRuntime, sound: Image) -> None:
    """Before anything was made of it."""
    await bench.images.remove(sound.repository, sound.digest)
    with pytest.raises(NotFound):
        await runtime.prepare(bench.shelf.release(sound))


# ── what instances get ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_image_is_told_the_port_that_it_exposes(bench: Bench, runtime: DockerRuntime) -> None:
    """A Dockerfile with EXPOSE 5000 and a fixed port works as it is."""
    release = bench.shelf.release(await bench.shelf.image(exposed="5000/tcp"))
    assert "PORT=5000" in (await get(await bench.up(runtime, release) + "env")).text


async def test_instances_are_bounded_and_everything_is_labelled(
    bench: Bench, runtime: DockerRuntime, sound: Image
) -> None:
    """Memory, processors, processes, privileges and logs, as the engine enforces them."""
    release = bench.shelf.release(sound, number=3)
    await bench.up(runtime, release)

    (container,) = await bench.containers()
    assert container.labels[spec.APP_ID] == release.app_id
    assert container.labels[spec.SAGA] == release.saga_id
    assert container.labels[spec.RELEASE] == "3"
    assert container.labels[spec.STEP] == "deploy"
    assert container.image == bench.pullable.reference(release.repository, release.digest)
    host = (await docker_json("inspect", container.id))[0]["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 128 * MIB
    assert host["NanoCpus"] == 1_000_000_000
    assert host["PidsLimit"] == 512
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert "NET_RAW" in " ".join(host["CapDrop"])
    assert host["LogConfig"]["Config"]["max-file"] == "2"
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert not host["PortBindings"]
    (network,) = await bench.engine.networks({spec.INSTALLATION: bench.options.installation})
    assert network["Labels"][spec.APP_ID] == release.app_id


async def test_files_of_an_instance_are_read_only_where_the_setting_says_so(bench: Bench) -> None:
    """An app that is broken into changes no program; `/tmp` is there for what it writes."""
    runtime = bench.made(replace(bench.options, bounds=replace(bench.options.bounds, tmp_bytes=8 * MIB)))
    url = await bench.up(runtime, bench.shelf.release(await bench.shelf.image({"app.py": WRITES})))
    assert (await get(url)).text == READ_ONLY


async def test_an_app_does_not_reach_the_instances_of_another(
    bench: Bench, runtime: DockerRuntime, sound: Image
) -> None:
    """Each app has a network of its own; its own processes find each other in it by their names."""
    connects = "import os, socket; socket.create_connection((os.environ['TARGET'], 8080), 3); print('connected')"
    one = bench.shelf.release(sound)
    await bench.up(runtime, one)
    (target,) = await bench.containers()
    image = await bench.shelf.image(release=(PYTHON, "-c", connects))

    same = bench.shelf.release(image, number=2, env={"TARGET": "web"})
    await runtime.prepare(same)
    await runtime.run_release_command(same)
    stranger = bench.shelf.release(image, app_id=new_id(), env={"TARGET": next(iter(target.addresses.values()))})
    await runtime.prepare(stranger)
    with pytest.raises(ReleaseCommandFailed) as caught:
        await runtime.run_release_command(stranger)
    assert any("timed out" in line.lower() or "unreachable" in line for line in caught.value.log_tail)


# ── how it fails ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_image_without_an_operating_system_is_refused(bench: Bench, runtime: DockerRuntime) -> None:
    """The text names the builder that makes complete ones."""
    image = await bench.shelf.image(labels={LABEL_BASE: "host"})
    with pytest.raises(CannotRun, match="KNARR_BUILDER=buildx"):
        await runtime.prepare(bench.shelf.release(image))


async def test_a_program_that_is_not_there_is_a_verdict(bench: Bench) -> None:
    """Its name is in the lines."""
    fault = await bench.fails(bench.shelf.release(await bench.shelf.image(web=("no-such-program",))))
    assert "there is no such program" in fault.message
    assert "no-such-program" in "".join(fault.log_tail)


async def test_an_app_that_takes_too_much_memory_is_a_verdict(bench: Bench) -> None:
    """The text says how much it may have."""
    image = await bench.shelf.image({"app.py": "x = []\nwhile True: x.append(bytes(2**20))"})
    fault = await bench.fails(bench.shelf.release(image), bounds=spec.Bounds(memory_bytes=32 * MIB))
    assert "more than its 32 MiB of memory" in fault.message


async def test_a_release_command_that_takes_too_long_is_ended(bench: Bench) -> None:
    """And what it printed is in the app's log, where a person looks."""
    command = (PYTHON, "-c", "import time; print('migrating', flush=True); time.sleep(600)")
    release = bench.shelf.release(await bench.shelf.image(release=command))
    runtime = bench.made(replace(bench.options, release_command_timeout_s=2))
    await runtime.prepare(release)
    with pytest.raises(ReleaseCommandFailed, match="longer than 2 s"):
        await runtime.run_release_command(release)

    assert not any(each.runs for each in await bench.containers())
    text = b"".join([piece async for piece in runtime.logs(release.app_id, lines=10, follow=False)])
    assert b"release.1 | migrating" in text
    found = await runtime.stop(release.app_id, release.saga_id)
    assert found == ["the release command's container of release 1"]
    assert await bench.containers() == []


async def test_an_engine_that_is_away_is_worth_another_attempt(bench: Bench, tmp_path: Path) -> None:
    """Nothing is said about the app."""
    bench.engine = Engine(f"unix://{tmp_path}/no.sock")
    with pytest.raises(Unavailable, match="does not answer"):
        await bench.engine.containers({})
    await bench.engine.close()
    bench.engine = Engine()


# ── traffic ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_no_request_is_lost_while_a_release_replaces_another(bench: Bench, runtime: DockerRuntime) -> None:
    """The old container serves until the new one was seen to answer."""
    one = bench.shelf.release(await bench.shelf.image(version="one"))
    two = bench.shelf.release(await bench.shelf.image(version="two"), number=2)
    url = await bench.up(runtime, one)
    answers: list[str] = []

    async def ask() -> None:
        async with httpx2.AsyncClient(trust_env=False) as client:
            while True:
                answer = await client.get(url)
                assert answer.status_code == 200
                answers.append(answer.text)

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    await bench.up(runtime, two)
    await runtime.stop(one.app_id, one.saga_id)
    seen = len(answers)
    await eventually(lambda: _length(answers), until=lambda length: length > seen + 20)
    for task in asking:
        task.cancel()
    faults = [each for each in await asyncio.gather(*asking, return_exceptions=True) if isinstance(each, Exception)]
    assert faults == []
    assert set(answers[:3]) == {"one"}
    assert set(answers[-3:]) == {"two"}
    assert {each.labels[spec.SAGA] for each in await bench.containers()} == {two.saga_id}
    counted = await runtime.traffic(two.app_id, two.saga_id)
    assert counted is not None
    assert (counted.requests > 20, counted.errors) == (True, 0)


async def test_what_crashes_is_started_again_by_the_engine(bench: Bench, runtime: DockerRuntime, sound: Image) -> None:
    """The route finds it under its new address."""
    release = bench.shelf.release(sound)
    url = await bench.up(runtime, release)
    with contextlib.suppress(httpx2.HTTPError):
        await get(url + "die")

    (instance,) = await eventually(
        lambda: runtime.instances(release.app_id), until=lambda found: found[0].restarts == 1 and found[0].state == "up"
    )
    assert instance.process == "web.1"
    await eventually(lambda: get(url), until=lambda answer: answer.status_code == 200)


# ── restarts of ours ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_containers_outlive_us_and_are_served_again(bench: Bench, runtime: DockerRuntime, sound: Image) -> None:
    """The same containers, not even restarted; what nobody knows is removed."""
    live, stray = bench.shelf.release(sound), bench.shelf.release(sound, number=2)
    url = await bench.up(runtime, live)
    await runtime.start(stray)
    await bench.observed(runtime, stray)
    (before,) = await bench.containers(**{spec.SAGA: live.saga_id})
    port = (await runtime.expose(live.app_id, "shop", taken=frozenset())).port
    await runtime.close()

    again = bench.made()
    await again.recover([standing(live, port)])
    await eventually(lambda: get(url), until=lambda answer: answer.status_code == 200)
    await eventually(lambda: bench.containers(**{spec.SAGA: stray.saga_id}), until=lambda found: not found)
    (after,) = await bench.containers()
    assert (after.id, after.started_ms) == (before.id, before.started_ms)


async def test_what_is_live_and_gone_is_made_again(bench: Bench, runtime: DockerRuntime, sound: Image) -> None:
    """Somebody removed the containers while we were away."""
    live = bench.shelf.release(sound, formation={"web": 2})
    url = await bench.up(runtime, live)
    port = (await runtime.expose(live.app_id, "shop", taken=frozenset())).port
    await runtime.close()
    for container in (await bench.containers())[:1]:
        await bench.engine.remove(container.id)

    again = bench.made()
    await again.recover([standing(live, port)])
    instances = await eventually(
        lambda: again.instances(live.app_id), until=lambda found: [each.state for each in found] == ["up", "up"]
    )
    assert sorted(each.process for each in instances) == ["web.1", "web.2"]
    assert (await get(url)).status_code == 200


async def test_a_sweep_removes_what_has_no_owner(bench: Bench, runtime: DockerRuntime) -> None:
    """Containers of unknown sagas, and the images of releases that are gone; what serves stays."""
    live = bench.shelf.release(await bench.shelf.image(version="live"))
    orphan = bench.shelf.release(await bench.shelf.image(version="orphan"), number=2)
    await bench.up(runtime, live)
    await runtime.start(orphan)

    async def known() -> Needed:
        return Needed(sagas={live.saga_id}, layers=frozenset(), images={live.digest})

    await runtime.sweep(known)
    assert {each.labels[spec.SAGA] for each in await bench.containers()} == {live.saga_id}
    assert await bench.engine.image(bench.pullable.reference(orphan.repository, orphan.digest)) is None
    assert await bench.engine.image(bench.pullable.reference(live.repository, live.digest)) is not None


async def test_an_app_that_was_renamed_keeps_its_network(bench: Bench, runtime: DockerRuntime, sound: Image) -> None:
    """Its add-ons are in it."""
    await bench.up(runtime, bench.shelf.release(sound))
    await bench.up(runtime, replace(bench.shelf.release(sound, number=2), app="boutique"))
    assert len(await bench.engine.networks({spec.INSTALLATION: bench.options.installation})) == 1


async def _length(answers: list[str]) -> int:
    return len(answers)
