"""What every runtime of containers keeps beside `RuntimeContract`: images with their own system, config, verdicts."""

import asyncio
from typing import Any, ClassVar, Protocol

import httpx2

from ocistore.distribution import DistributionStore
from ocistore.store import Image
from services.deployer.errors import AppDoesNotStart
from services.deployer.ports import Release
from tests.services.deployer.test_runtime_contract import RuntimeContract
from tests.stack.container_images import ContainerShelf


class ContainerBench(Protocol):
    """A runtime's tests have one."""

    images: DistributionStore
    shelf: ContainerShelf

    async def up(self, runtime: Any, release: Release) -> str:
        """Deployed with traffic; the app's address."""

    async def fails(self, release: Release, *, start_timeout_s: float = ...) -> AppDoesNotStart:
        """What is said of a release that does not come up; nothing of it stays."""

    async def instance_of(self, release: Release) -> str:
        """What its only instance is called."""


class ContainersContract(RuntimeContract):
    """Inherit it and give a `bench`, and what `RuntimeContract` wants."""

    REFUSES: ClassVar[str]
    """What is said where nobody listens."""

    async def test_instances_get_their_config_and_know_who_they_are(
        self, bench: ContainerBench, runtime: Any, sound: Image
    ) -> None:
        """Config vars over the image's own variables, PORT, and the names of the release."""
        release = bench.shelf.release(sound, env={"COLOUR": "blue", "LINES": "one\ntwo"})
        text = (await get(await bench.up(runtime, release) + "env")).text

        assert "COLOUR=blue" in text
        assert "LINES=one\ntwo" in text
        assert "GREETING=hello" in text
        assert "PORT=8080" in text
        assert f"KNARR_SAGA_ID={release.saga_id}" in text
        assert f"KNARR_INSTANCE={await bench.instance_of(release)}" in text

    async def test_an_app_that_never_answers_is_a_verdict(self, bench: ContainerBench) -> None:
        """The text says what its port does; what the app printed stands beside it."""
        image = await bench.shelf.image({"app.py": "import time; print('thinking', flush=True); time.sleep(600)"})
        fault = await bench.fails(bench.shelf.release(image), start_timeout_s=4)
        assert self.REFUSES in fault.message
        assert fault.log_tail == ("thinking",)

    async def test_an_unhealthy_app_is_a_verdict(self, bench: ContainerBench) -> None:
        """The text says what its health path answers; no secret is in the lines."""
        image = await bench.shelf.image(health_path="/health")
        release = bench.shelf.release(image, env={"HEALTH": "503", "KEY": "s3cret-of-the-app"})
        fault = await bench.fails(release, start_timeout_s=4)
        assert "GET /health answered 503" in fault.message

    async def test_of_an_app_that_prints_faster_than_it_is_read_the_last_lines_are_read_and_no_more(
        self, bench: ContainerBench
    ) -> None:
        """The answer of the engine or the cluster has no end then; here those that stand beside a verdict."""
        image = await bench.shelf.image({"app.py": "while True: print('x' * 100)"})
        async with asyncio.timeout(300):  # and not for ever
            fault = await bench.fails(bench.shelf.release(image), start_timeout_s=4)
        assert fault.log_tail == ("x" * 100,) * 50

    async def test_lines_in_errors_hold_no_config_values(self, bench: ContainerBench) -> None:
        """What an app prints of its config is blotted out."""
        image = await bench.shelf.image({"app.py": "import os, sys; sys.exit('key is ' + os.environ['KEY'])"})
        fault = await bench.fails(bench.shelf.release(image, env={"KEY": "s3cret-of-the-app"}))
        assert fault.log_tail == ("key is ********",)
        assert "s3cret" not in fault.message


async def get(url: str) -> httpx2.Response:
    """Asked without a proxy."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        return await client.get(url)
