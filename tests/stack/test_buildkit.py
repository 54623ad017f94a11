"""What only a BuildKit without a Docker engine can get wrong: its contract as a builder is in `test_buildx.py`.

Each test has a BuildKit of its own, on this machine, so that its steps can be seen from here, and it can be killed.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ocistore.distribution import DistributionStore
from seedwork.errors import RetryableError
from seedwork.messages import new_id
from services.builder.adapters.buildx.builder import INCOMING
from services.builder.errors import OutOfMemory
from services.builder.settings import BuilderSettings
from tests.services.builder.support import PYTHON, make_bench, make_limits
from tests.stack.buildkit import BuildKit, own_buildkit
from tests.stack.registries import docker, images_of
from tests.stack.test_buildx import DOCKERFILE, Yard, failure, make_settings, sleeping, until

pytestmark = pytest.mark.stack("BUILDKIT_HOST", "REGISTRY", "DOCKER_HOST")


@pytest.fixture(scope="module")
def buildkit() -> Iterator[BuildKit]:
    with own_buildkit() as own:
        yield own


@pytest.fixture(scope="module")
def bases() -> Mapping[str, str]:
    """Base images by the setting that names them: this BuildKit has none, and may reach no public registry."""
    images = {"buildx_base_image": "debian:bookworm-slim", "buildx_python_image": "python:3.11-slim"}
    found = {}
    for setting, image in images.items():
        found[setting] = f"{os.environ['REGISTRY']}/knarr-test/{image}"
        docker("tag", image, found[setting])
        docker("push", found[setting])
    return found


@pytest.fixture
def settings(tmp_path: Path, buildkit: BuildKit, bases: Mapping[str, str]) -> BuilderSettings:
    changed = {**bases, "buildkit_host": buildkit.host, "buildx_cache": "registry"}
    return make_settings(tmp_path).model_copy(update=changed)


@pytest.fixture
async def images(settings: BuilderSettings) -> AsyncIterator[DistributionStore]:
    async with images_of(settings) as store:
        yield store


@pytest.fixture
def yard(tmp_path: Path, settings: BuilderSettings, images: DistributionStore) -> Yard:
    bench = make_bench(
        tmp_path, environ={"PATH": os.environ["PATH"], "NPM_TOKEN": "of the tests"}, limits=make_limits()
    )
    return Yard(folder=tmp_path, bench=bench, images=images, settings=settings)


@pytest.fixture
def small(bases: Mapping[str, str]) -> str:
    """How a Dockerfile begins that does little."""
    return f"FROM {bases['buildx_base_image']}\n"


async def nothing_pushed(yard: Yard, saga_id: str) -> bool:
    return await yard.images.resolve(INCOMING, f"build-{saga_id}") is None


async def test_cancelling_a_build_ends_its_step_in_the_buildkit(yard: Yard, small: str) -> None:
    """It sees its client gone; nothing is stored, nothing is left."""
    marker = f"{92_000_000 + os.getpid()}"
    order = yard.bench.order(DOCKERFILE, {"Dockerfile": small + f"RUN echo {new_id()}; sleep {marker}\n"})
    building = asyncio.create_task(yard.run(order, yard.builder()))
    await until(lambda: bool(sleeping(marker)))

    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building

    await until(lambda: not sleeping(marker))
    assert await yard.images.images() == []
    assert await nothing_pushed(yard, order.saga_id)


async def test_a_buildkit_killed_in_the_middle_is_no_fault_of_the_app(yard: Yard, small: str) -> None:
    """Worth another attempt, which another BuildKit carries out; an undo needs none at all."""
    marker = f"{93_000_000 + os.getpid()}"
    order = yard.bench.order(DOCKERFILE, {"Dockerfile": small + f"RUN echo {new_id()}; sleep {marker}\n"})
    with own_buildkit() as brief:
        builder = yard.builder({"buildkit_host": brief.host})
        building = asyncio.create_task(yard.run(order, builder))
        await until(lambda: bool(sleeping(marker)))

        brief.kill()

        with pytest.raises(RetryableError):
            await building
    assert await nothing_pushed(yard, order.saga_id)
    with pytest.raises(RetryableError):
        await yard.build(DOCKERFILE, {"Dockerfile": small}, builder=builder)
    assert await builder.stop(order.saga_id) == 0


async def test_a_new_buildkit_takes_the_layers_of_packages_from_the_registry(yard: Yard) -> None:
    """Builders come and go, and a change of the app is built quickly on the next one, too."""
    files = {"app.py": new_id(), "requirements.txt": "six==1.17.0\n"}
    await yard.build(PYTHON, files)

    with own_buildkit() as other:
        builder = yard.builder({"buildkit_host": other.host})
        again = await yard.build(PYTHON, {**files, "app.py": new_id()}, builder=builder)

    assert [layer.cached for layer in again.layers[:-2]] == [True] * (len(again.layers) - 2)
    assert not again.layers[-2].cached
    assert await yard.started(again, "python", "-c", "import six; print(six.__version__)") == "1.17.0"


async def test_a_step_of_the_apps_own_dockerfile_has_its_limit_of_memory(yard: Yard, bases: Mapping[str, str]) -> None:
    """A BuildKit heeds the limit, where an old engine does so for generated Dockerfiles only."""
    dockerfile = f'FROM {bases["buildx_python_image"]}\nRUN python3 -c "bytearray(2_000_000_000)"\nCMD true\n'

    error = await failure(yard, DOCKERFILE, {"Dockerfile": dockerfile}, build_memory_bytes=400_000_000)

    assert isinstance(error, OutOfMemory)


async def test_a_config_var_reaches_the_step_that_mounts_it(yard: Yard, small: str) -> None:
    """From the app's settings through buildx; the next step does not have it."""
    dockerfile = small + (
        "RUN --mount=type=secret,id=NPM_TOKEN sha256sum /run/secrets/NPM_TOKEN\n"
        "RUN ! test -e /run/secrets/NPM_TOKEN\nCMD true\n"
    )
    order = replace(yard.bench.order(DOCKERFILE, {"Dockerfile": dockerfile}), variables={"NPM_TOKEN": "of the app"})

    await yard.run(order, yard.builder())

    assert hashlib.sha256(b"of the app").hexdigest() in yard.output
