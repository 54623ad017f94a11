"""What every runtime keeps, shown on local processes and on the fake that stands in for them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import pytest

from ocistore.layout import OciLayout
from ocistore.store import Image
from seedwork.clock import SystemClock
from seedwork.messages import new_id
from services.deployer.adapters.memory import MemoryRuntime
from services.deployer.adapters.process.runtime import Limits, ProcessRuntime
from services.deployer.adapters.router import Router
from services.deployer.errors import AppDoesNotStart, Fenced, NotWarm, ReleaseCommandFailed
from services.deployer.ports import Needed, Release, Runtime, Standing, Warm
from tests.services.deployer.conftest import PATIENCE_S, PRINTS, PYTHON, Shelf, eventually


class RuntimeContract:
    """Inherit it and give a `runtime`, a `sound` image, a `broken` one, and one whose release command fails."""

    FIRST_LINE: ClassVar[bytes] = b"web.1 | " + PRINTS

    async def test_a_release_runs_from_start_to_observed(self, runtime: Runtime, shelf: Shelf, sound: Image) -> None:
        """After `observe` every instance of the formation is up, with the digest that was asked for."""
        release = shelf.release(sound, formation={"web": 2})
        await _deploy(runtime, release)

        instances = await runtime.instances(shelf.app_id)
        assert sorted(each.process for each in instances) == ["web.1", "web.2"]
        assert {each.state for each in instances} == {"up"}
        assert {each.digest for each in instances} == {sound.digest}
        assert {(each.saga_id, each.release) for each in instances} == {(release.saga_id, 1)}

    async def test_starting_twice_starts_once(self, runtime: Runtime, shelf: Shelf, sound: Image) -> None:
        """A second delivery of a command finds the first one's instances."""
        release = shelf.release(sound)
        await _deploy(runtime, release)
        before = await runtime.instances(shelf.app_id)
        await runtime.prepare(release)
        await runtime.start(release)
        await _observe(runtime, release)

        assert await runtime.instances(shelf.app_id) == before

    async def test_the_address_of_an_app_stays(self, runtime: Runtime, shelf: Shelf) -> None:
        """Asked again, the same; another app gets another one, and none that is taken."""
        first = await runtime.expose(shelf.app_id, "shop", taken=frozenset())
        assert await runtime.expose(shelf.app_id, "shop", taken=frozenset()) == first
        other = await runtime.expose(new_id(), "blog", taken={first.port, first.port + 1})
        assert other.port not in {first.port, first.port + 1}

    async def test_an_app_that_does_not_start_is_a_verdict_with_its_last_lines(
        self, runtime: Runtime, shelf: Shelf, broken: Image
    ) -> None:
        """Final, and the reader sees what the app said."""
        release = shelf.release(broken)
        await runtime.prepare(release)
        await runtime.start(release)
        with pytest.raises(AppDoesNotStart) as caught:
            await _observe(runtime, release)
        assert "no such table: carts" in "\n".join(caught.value.log_tail)

    async def test_a_release_command_that_fails_is_a_verdict_with_its_last_lines(
        self, runtime: Runtime, shelf: Shelf, unmigrated: Image
    ) -> None:
        """Before any instance was started."""
        release = shelf.release(unmigrated)
        await runtime.prepare(release)
        with pytest.raises(ReleaseCommandFailed) as caught:
            await runtime.run_release_command(release)
        assert "cannot migrate" in "\n".join(caught.value.log_tail)
        assert await runtime.instances(shelf.app_id) == []

    async def test_an_older_fence_moves_no_traffic(self, runtime: Runtime, shelf: Shelf, sound: Image) -> None:
        """A worker that slept through a newer deployment is refused."""
        await runtime.expose(shelf.app_id, "shop", taken=frozenset())
        release = shelf.release(sound)
        await _deploy(runtime, release)
        await runtime.switch(shelf.app_id, release.saga_id, fence=7)
        with pytest.raises(Fenced):
            await runtime.switch(shelf.app_id, new_id(), fence=6)

    async def test_stop_removes_everything_that_carries_the_saga_and_says_what(
        self, runtime: Runtime, shelf: Shelf, sound: Image
    ) -> None:
        """The second time there is nothing to be found."""
        release = shelf.release(sound)
        await _deploy(runtime, release)

        found = await runtime.stop(shelf.app_id, release.saga_id)
        assert any("instance" in each for each in found)
        assert await runtime.instances(shelf.app_id) == []
        assert list(await runtime.stop(shelf.app_id, release.saga_id)) == []

    async def test_stop_leaves_other_releases_alone(self, runtime: Runtime, shelf: Shelf, sound: Image) -> None:
        """An undo touches its own things only."""
        one, two = shelf.release(sound), shelf.release(sound, number=2)
        await _deploy(runtime, one)
        await _deploy(runtime, two)
        await runtime.stop(shelf.app_id, two.saga_id)

        assert {each.saga_id for each in await runtime.instances(shelf.app_id)} == {one.saga_id}

    async def test_forget_leaves_nothing_of_the_app(self, runtime: Runtime, shelf: Shelf, sound: Image) -> None:
        """Instances, address and logs."""
        address = await runtime.expose(shelf.app_id, "shop", taken=frozenset())
        await _deploy(runtime, shelf.release(sound))

        found = await runtime.forget(shelf.app_id)
        assert f"port {address.port}" in found
        assert await runtime.instances(shelf.app_id) == []
        assert [piece async for piece in runtime.logs(shelf.app_id, lines=10, follow=False)] == []

    async def test_what_an_app_prints_can_be_followed(self, runtime: Runtime, shelf: Shelf, sound: Image) -> None:
        """Lines name their process and hold the bytes that it printed; following ends when the reader leaves."""
        await _deploy(runtime, shelf.release(sound))
        text = b""
        async with asyncio.timeout(PATIENCE_S):
            async for piece in runtime.logs(shelf.app_id, lines=100, follow=True):
                text += piece
                if self.FIRST_LINE.split()[-1] in text and text.endswith(b"\n"):
                    break
        assert self.FIRST_LINE in text

    async def test_recovery_runs_what_is_live(self, runtime: Runtime, shelf: Shelf, sound: Image) -> None:
        """Started from what the caller loads, under the port that the app had."""
        port = (await runtime.expose(new_id(), "gone", taken=frozenset())).port + 1000
        release = shelf.release(sound)

        async def load() -> Release:
            return release

        await runtime.recover(
            [Standing(app_id=shelf.app_id, app="shop", port=port, fence=3, saga_id=release.saga_id, load=load)]
        )
        await eventually(
            lambda: runtime.instances(shelf.app_id), until=lambda found: [each.state for each in found] == ["up"]
        )
        assert (await runtime.expose(shelf.app_id, "shop", taken=frozenset())).port == port

    async def test_recovery_runs_the_release_before_while_it_is_warm(
        self, runtime: Runtime, shelf: Shelf, sound: Image
    ) -> None:
        """An undo of the release that is observed then moves the traffic, and starts nothing."""
        before, live = shelf.release(sound), shelf.release(sound, number=2)
        loads: list[str] = []

        async def load() -> Release:
            loads.append(before.saga_id)
            return before

        await runtime.recover([await _standing(runtime, live, Warm(saga_id=before.saga_id, load=load))])
        await eventually(
            lambda: runtime.instances(shelf.app_id),
            until=lambda found: (
                {(each.saga_id, each.state) for each in found} == {(before.saga_id, "up"), (live.saga_id, "up")}
            ),
        )
        await eventually(lambda: _length(loads), until=lambda length: length >= 2)  # it is asked again afterwards
        await runtime.switch(shelf.app_id, before.saga_id, fence=3)
        await runtime.stop(shelf.app_id, live.saga_id)
        assert {each.saga_id for each in await runtime.instances(shelf.app_id)} == {before.saga_id}

    async def test_an_observation_that_ends_during_the_recovery_leaves_nothing_warm(
        self, runtime: Runtime, shelf: Shelf, sound: Image
    ) -> None:
        """Whoever ended it stopped what was there; what was started since is stopped too."""
        before, live = shelf.release(sound), shelf.release(sound, number=2)
        loads: list[str] = []

        async def load() -> Release:
            loads.append(before.saga_id)
            if len(loads) > 1:
                raise NotWarm("The observation has ended")
            return before

        await runtime.recover([await _standing(runtime, live, Warm(saga_id=before.saga_id, load=load))])
        await eventually(lambda: _length(loads), until=lambda length: length == 2)
        await eventually(
            lambda: runtime.instances(shelf.app_id),
            until=lambda found: [(each.saga_id, each.state) for each in found] == [(live.saga_id, "up")],
        )

    async def test_a_sweep_keeps_what_runs(self, runtime: Runtime, shelf: Shelf, sound: Image) -> None:
        """Whatever the caller forgot to name: who runs is needed."""
        release = shelf.release(sound)
        await _deploy(runtime, release)

        async def nothing() -> Needed:
            return Needed(sagas=frozenset(), layers=frozenset(each.digest for each in sound.layers))

        await runtime.sweep(nothing)
        await runtime.start(release)
        await _observe(runtime, release)
        assert [each.state for each in await runtime.instances(shelf.app_id)] == ["up"]


class TestMemoryRuntime(RuntimeContract):
    FIRST_LINE = b"web.1 | starting\n"

    @pytest.fixture
    async def runtime(self, broken: Image, unmigrated: Image) -> MemoryRuntime:
        runtime = MemoryRuntime()
        runtime.fails[broken.digest] = "no such table: carts"
        runtime.command_fails[unmigrated.digest] = "cannot migrate"
        return runtime


class TestProcessRuntime(RuntimeContract):
    @pytest.fixture
    async def runtime(self, tmp_path: Path, images: OciLayout, ports: int) -> AsyncIterator[ProcessRuntime]:
        home = tmp_path / "home"
        home.mkdir()
        router = Router(host="127.0.0.1", port_base=ports, idle_s=30)
        limits = Limits(start_timeout_s=15, grace_s=5, drain_s=5, settle_s=0.2)
        runtime = ProcessRuntime(home, images=images, router=router, clock=SystemClock(), limits=limits)
        await runtime.recover([])
        yield runtime
        await runtime.close()


@pytest.fixture
async def sound(shelf: Shelf) -> Image:
    return await shelf.image()


@pytest.fixture
async def broken(shelf: Shelf) -> Image:
    return await shelf.image({"app.py": "import sys; sys.exit('no such table: carts')"})


@pytest.fixture
async def unmigrated(shelf: Shelf) -> Image:
    return await shelf.image(release=(PYTHON, "-c", "import sys; sys.exit('cannot migrate')"))


async def _standing(runtime: Runtime, live: Release, warm: Warm) -> Standing:
    """What the database says of an app whose release is observed."""
    port = (await runtime.expose(new_id(), "gone", taken=frozenset())).port + 1000

    async def load() -> Release:
        return live

    return Standing(app_id=live.app_id, app="shop", port=port, fence=3, saga_id=live.saga_id, load=load, warm=warm)


async def _length(found: list[str]) -> int:
    return len(found)


async def _deploy(runtime: Runtime, release: Release) -> None:
    await runtime.prepare(release)
    await runtime.start(release)
    await _observe(runtime, release)


async def _observe(runtime: Runtime, release: Release) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await runtime.observe(release, note=lambda _: None)
