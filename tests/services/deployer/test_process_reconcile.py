"""Local processes are compared with the database all the time: what differs is shown, and repaired with a bound."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from ocistore.layout import OciLayout
from seedwork.errors import Unavailable
from services.deployer.ports import Drift, Release, Standing
from tests.services.deployer.conftest import Shelf, eventually
from tests.services.deployer.test_process_runtime import LIMITS, Bench


class Compared(Bench):
    """A runtime with one deployed app that is compared."""

    release: Release
    url: str

    async def deploy(self, release: Release) -> None:
        self.release, self.url = release, await self.up(release)

    def standing(self, *, fence: int | None = None) -> Standing:
        release = self.release

        async def load() -> Release:
            return release

        route = self.runtime._router.route(release.app_id)
        return Standing(
            app_id=release.app_id,
            app="shop",
            port=route.port if route else self.port_base,
            fence=release.number if fence is None else fence,
            saga_id=release.saga_id,
            load=load,
        )

    async def repaired(self, standing: Standing) -> list[str]:
        """Compare until a repair was made; what differed."""
        seen: list[Drift] = []

        async def compare() -> Sequence[Drift]:
            seen.extend(await self.runtime.reconcile([standing]))
            return seen

        await eventually(compare, until=lambda found: any(each.repaired for each in found))
        assert [each.repaired for each in seen] == [False, True]
        return [each.what for each in seen if each.repaired]

    async def quiet(self, standing: Standing) -> None:
        """Nothing differs, in several passes."""
        for _ in range(3):
            assert await self.runtime.reconcile([standing]) == []
            assert not self.runtime._repairs.under_way(standing.app_id)
            await asyncio.sleep(0)

    async def answer(self) -> str:
        async with httpx2.AsyncClient() as client:
            return (await client.get(self.url)).text


@pytest.fixture
async def bench(tmp_path: Path, images: OciLayout, shelf: Shelf, ports: int) -> AsyncIterator[Compared]:
    home = tmp_path / "home"
    home.mkdir()
    bench = Compared(home, images, shelf, LIMITS, port_base=ports)
    await bench.runtime.recover([])
    await bench.deploy(shelf.release(await shelf.image(version="one")))
    yield bench
    await bench.runtime.close()
    assert bench.ours() == []


async def test_what_runs_as_it_should_is_left_alone(bench: Compared) -> None:
    """The same process answers afterwards."""
    before = await bench.instance()
    await bench.quiet(bench.standing())
    assert await bench.instance() == before


@pytest.mark.parametrize("lost", ["releases/{saga}", "releases/{saga}/app", "layers"])
async def test_files_that_were_removed_are_unpacked_again_and_the_instance_replaced(bench: Compared, lost: str) -> None:
    """The release's folder, the app in it, or the layers that it shares."""
    folder = bench.home / lost.format(saga=bench.release.saga_id)
    for each in [folder, *folder.rglob("*")]:
        if each.is_dir() and not each.is_symlink():
            each.chmod(0o700)
    await asyncio.to_thread(shutil.rmtree, folder)

    assert await bench.repaired(bench.standing()) == ["files of release 1 are gone"]
    root = bench.home / "releases" / bench.release.saga_id
    assert (root / "app" / "app.py").is_file()
    assert (root / "layers" / "words" / "hello.txt").is_file()
    await eventually(bench.instance, until=lambda found: found.state == "up")
    assert await bench.answer() == "one"
    await bench.quiet(bench.standing())


async def test_a_lost_port_is_opened_again(bench: Compared) -> None:
    """The address stays."""
    standing = bench.standing()
    await bench.runtime._router.close(bench.release.app_id)
    assert await bench.repaired(standing) == [f"port {standing.port} of the app is not open"]
    assert await bench.answer() == "one"


async def test_a_port_whose_server_has_closed_is_opened_again(bench: Compared) -> None:
    """The route alone is no proof."""
    route = bench.runtime._router.route(bench.release.app_id)
    assert route is not None
    assert route.server is not None
    route.server.close()
    assert await bench.repaired(bench.standing()) == [f"port {route.port} of the app is not open"]
    assert await bench.answer() == "one"


async def test_a_release_of_which_nothing_runs_is_started(bench: Compared) -> None:
    """With its instances as kept ones: a later crash is restarted."""
    await bench.runtime._stop_unit(bench.runtime._units[bench.release.saga_id])
    assert await bench.repaired(bench.standing()) == ["no instance of the release runs"]
    await eventually(bench.instance, until=lambda found: found.state == "up")
    assert await bench.answer() == "one"


async def test_an_instance_that_nothing_watches_is_replaced(bench: Compared) -> None:
    """A fault of the platform ended its task."""
    (instance,) = bench.runtime._units[bench.release.saga_id].instances
    assert instance._task is not None
    instance._task.cancel()
    await asyncio.wait([instance._task])
    assert await bench.repaired(bench.standing()) == ["web.1 is not watched"]
    await eventually(bench.instance, until=lambda found: found.state == "up")
    assert await bench.answer() == "one"


async def test_an_older_fence_repairs_nothing(bench: Compared) -> None:
    """What was read before the traffic moved starts no old release again."""
    old = bench.standing()
    await bench.deploy(bench.shelf.release(await bench.shelf.image(version="two"), number=2))
    await bench.runtime.stop(old.app_id, old.saga_id or "")
    await bench.quiet(old)
    await bench.quiet(replace(old, fence=2))  # the same fence, by an undo: the runtime knows who has the traffic
    assert [each.release for each in await bench.runtime.instances(old.app_id)] == [2]


async def test_the_warm_release_before_is_not_touched(bench: Compared) -> None:
    """Its files are lost, and only the release that has the traffic is compared."""
    warm = bench.release
    await bench.deploy(bench.shelf.release(await bench.shelf.image(version="two"), number=2))
    before = [each for each in await bench.runtime.instances(warm.app_id) if each.release == 1]
    await asyncio.to_thread(shutil.rmtree, bench.home / "releases" / warm.saga_id)
    await bench.quiet(bench.standing())
    assert [each for each in await bench.runtime.instances(warm.app_id) if each.release == 1] == before


async def test_repairs_that_fail_come_at_a_growing_interval(bench: Compared) -> None:
    """Many passes, few repairs; the drift is said once."""
    await bench.runtime._stop_unit(bench.runtime._units[bench.release.saga_id])
    loads = 0

    async def load() -> Release:
        nonlocal loads
        loads += 1
        raise Unavailable("The database does not answer")

    standing = replace(bench.standing(), load=load)
    seen: list[Drift] = []
    for _ in range(50):
        seen += await bench.runtime.reconcile([standing])
        await asyncio.sleep(0.01)
    assert loads in {1, 2}
    assert [each.repaired for each in seen] == [False]


async def test_a_stop_ends_the_repair_that_is_under_way(bench: Compared) -> None:
    """Nothing comes back after it."""
    await bench.runtime._stop_unit(bench.runtime._units[bench.release.saga_id])
    standing = bench.standing()
    began = asyncio.Event()

    async def load() -> Release:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    await bench.runtime.reconcile([replace(standing, load=load)])
    await began.wait()
    await bench.runtime.stop(standing.app_id, standing.saga_id or "")
    assert not bench.runtime._repairs.under_way(standing.app_id)
    await bench.quiet(standing)
