"""Apps that listen on one port whatever PORT says: on the process runtime two releases cannot run at once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import httpx2
import pytest

from ocistore.layout import OciLayout
from ocistore.store import LABEL_PORT, Image
from seedwork.clock import SystemClock
from seedwork.messages import new_id
from seedwork.unit_of_work import Database
from services.deployer.adapters.memory import MemoryRuntime
from services.deployer.adapters.process.runtime import Limits, ProcessRuntime
from services.deployer.adapters.router import Router
from services.deployer.errors import AppDoesNotStart, CannotRun, PreviousDoesNotStart
from tests.services.deployer.conftest import WEB, Shelf, eventually
from tests.services.deployer.test_handlers import World

LIMITS = Limits(start_timeout_s=20, grace_s=5, drain_s=5, settle_s=0.2)
BROKEN = "raise SystemExit('no database')"
ONCE = "import os, sys\nif os.path.exists({mark!r}): sys.exit('the mark is there')\n"


class Fixed(World):
    """An app whose port is fixed, on local processes."""

    def __init__(self, db: Database, images: OciLayout, shelf: Shelf, home: Path, *, port_base: int) -> None:
        self.processes = ProcessRuntime(
            home,
            images=images,
            router=Router(host="127.0.0.1", port_base=port_base, idle_s=30),
            clock=SystemClock(),
            limits=LIMITS,
        )
        super().__init__(db, images, shelf, runtime=cast("MemoryRuntime", self.processes))
        self.port = port_base + 40

    async def image_of(self, version: str, code: str = "", *, before: str = "") -> Image:
        """Return an image that listens on the fixed port only."""
        files = {"app.py": code or before + WEB.format(version=version).replace('os.environ["PORT"]', str(self.port))}
        return await self.shelf.image(files, labels={LABEL_PORT: str(self.port)})

    async def answer(self) -> tuple[int, str]:
        route = await self.route()
        assert route is not None
        async with httpx2.AsyncClient() as client:
            found = await client.get(route.url)
        return found.status_code, found.text

    async def served(self, text: str) -> None:
        """Wait until the app answers so."""
        await eventually(self.answer, until=lambda found: found == (200, text))


@pytest.fixture
async def world(db: Database, images: OciLayout, shelf: Shelf, tmp_path: Path, ports: int) -> AsyncIterator[Fixed]:
    (tmp_path / "home").mkdir()
    made = Fixed(db, images, shelf, tmp_path / "home", port_base=ports)
    await made.processes.recover([])
    yield made
    await made.processes.close()


async def test_a_second_deployment_takes_the_port_of_the_first(world: Fixed) -> None:
    """The old instance stops just before the new one starts, and goes with its files at the end."""
    first, second = new_id(), new_id()
    await world.deploy(await world.image_of("one"), first)
    await world.deploy(await world.image_of("two"), second)
    await world.served("two")
    assert {each.saga_id for each in await world.processes.instances(world.app_id)} == {second}
    folder = world.processes._home / "releases"
    assert [each.name for each in folder.iterdir()] == [second]


async def test_requests_meanwhile_are_answered_with_the_reason(world: Fixed) -> None:
    """503 and Retry-After, not a refused connection."""
    await world.deploy(await world.image_of("one"), observed=True)
    slow = await world.image_of("two", before="import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\n")
    second = new_id()
    deploying_it = asyncio.create_task(world.deploy(slow, second))
    status, text = await eventually(world.answer, until=lambda found: found[0] == 503)
    assert "It is being replaced" in text
    assert status == 503
    (world.processes._home / "releases" / second / "app" / "go").touch()
    await deploying_it
    await world.served("two")


async def test_a_release_that_does_not_come_up_leaves_the_old_one_running(world: Fixed) -> None:
    """The old release starts again by itself as soon as the new one is gone; the undo finds it so."""
    first, second = new_id(), new_id()
    await world.deploy(await world.image_of("one"), first)
    with pytest.raises(AppDoesNotStart):
        await world.deploy(await world.image_of("two", BROKEN), second)
    await world.served("one")
    await world.undo(second)
    await world.served("one")
    assert await world.states() == ["live", "undone"]


async def test_the_undo_of_a_live_release_starts_the_old_one_again(world: Fixed) -> None:
    """While a release is observed nothing of the release before is warm: its port is taken."""
    first, second = new_id(), new_id()
    await world.deploy(await world.image_of("one"), first)
    await world.deploy(await world.image_of("two"), second, observed=True)
    states = {each.saga_id: each.state for each in await world.processes.instances(world.app_id)}
    assert states == {first: "stopping", second: "up"}
    await world.undo(second)
    await world.served("one")
    assert {each.saga_id for each in await world.processes.instances(world.app_id)} == {first}


async def test_where_the_old_release_does_not_start_again_the_new_one_keeps_serving(
    world: Fixed, tmp_path: Path
) -> None:
    """The undo gives the port back before it fails."""
    mark = tmp_path / "mark"
    first, second = new_id(), new_id()
    await world.deploy(await world.image_of("one", before=ONCE.format(mark=str(mark))), first)
    await world.deploy(await world.image_of("two"), second, observed=True)
    mark.touch()
    with pytest.raises(PreviousDoesNotStart):
        await world.undo(second)
    await world.served("two")
    mark.unlink()
    await world.undo(second)
    await world.served("one")


async def test_two_instances_of_a_fixed_port_are_refused_by_name(world: Fixed) -> None:
    """Before the old release stops."""
    image = await world.image_of("one")
    await world.deploy(image)
    with pytest.raises(CannotRun, match="shop cannot run 2 instances of web") as caught:
        await world.deploy(image, kind="scale", formation={"web": 2})
    assert "knarr scale shop web=1" in caught.value.todo
    assert f"`port: {world.port}`" in caught.value.why
    await world.served("one")


async def test_two_apps_with_one_fixed_port_are_refused_by_name(world: Fixed) -> None:
    """The text names the app that has it."""
    image = await world.image_of("one")
    await world.deploy(image)
    release = world.shelf.release(image)
    other = replace(release, app_id="b", app="b")
    with pytest.raises(CannotRun, match=f"b cannot listen on port {world.port}") as caught:
        await world.processes.prepare(other)
    assert "the app shop" in caught.value.why
    with pytest.raises(CannotRun):
        await world.processes.start(other)
    await world.served("one")
