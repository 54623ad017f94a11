"""What add-ons keep, wherever they run: shown with the real databases, by their own clients."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Protocol

import pymongo
import pytest

from ocistore.store import Image
from seedwork.messages import new_id
from services.deployer.adapters.addon_recipes import Means
from services.deployer.errors import AddOnDoesNotStart
from services.deployer.ports import AddOn, AddOns, Release, Runtime
from tests.services.deployer.conftest import PATIENCE_S

MEANS = Means(memory_mb=768, storage_gb=1, start_timeout_s=120)


class Grounds(Protocol):
    """Where add-ons run, and what a test does there by other means than knarr's."""

    provider: AddOns
    runtime: Runtime

    def with_means(self, means: Means) -> AddOns:
        """Another one that is less patient, or gives less."""

    async def execute(self, addon: AddOn, *argv: str) -> str:
        """Run a program in the add-on's container; what it printed."""

    async def address(self, addon: AddOn) -> str:
        """Its container's, which this machine reaches."""

    async def lose(self, addon: AddOn) -> None:
        """Its container is stopped and goes."""

    async def left(self, app_id: str) -> list[str]:
        """Names of whatever add-ons have left: containers, volumes, objects."""


class AddOnsContract:
    """Inherit it and give `grounds` and a `sound` image."""

    @pytest.fixture
    async def addon(self, request: pytest.FixtureRequest, grounds: Grounds) -> AsyncIterator[AddOn]:
        addon = AddOn(
            app_id=new_id(),
            app="shop",
            team="default",
            saga_id=new_id(),
            name=request.param,
            kind=request.param,
            version=None,
            user="app",
            password=secrets.token_hex(24),
        )
        yield addon
        await grounds.runtime.forget(addon.app_id)

    @pytest.mark.parametrize("addon", ["mongodb", "mysql", "postgres", "redis"], indirect=True)
    async def test_data_outlives_the_container_and_goes_with_the_addon(self, grounds: Grounds, addon: AddOn) -> None:
        """Written with the URL's own user and password, read after the container was lost, gone after `withdraw`."""
        await _provide(grounds, addon)
        await _write(grounds, addon)
        await _provide(grounds, addon)
        await grounds.lose(addon)
        await _provide(grounds, addon)
        assert await _read(grounds, addon) == "42"

        assert await grounds.left(addon.app_id)
        found = await grounds.provider.withdraw(addon.app_id, addon.name)
        assert f"add-on {addon.name}" in found
        assert f"the volume of {addon.name}" in found
        assert await grounds.left(addon.app_id) == []
        assert list(await grounds.provider.withdraw(addon.app_id, addon.name)) == []

    @pytest.mark.parametrize("addon", ["redis"], indirect=True)
    async def test_instances_reach_it_by_its_name_and_releases_do_not_touch_it(
        self, grounds: Grounds, addon: AddOn, asking: Image, release_of: "ReleaseOf"
    ) -> None:
        """The release command talks to it; the end of the release leaves it alone."""
        await _provide(grounds, addon)
        release = release_of(asking, addon)
        await grounds.runtime.prepare(release)
        await grounds.runtime.run_release_command(release)
        assert await grounds.runtime.instances(addon.app_id) == []
        await grounds.runtime.stop(addon.app_id, release.saga_id)
        await grounds.runtime.stop(addon.app_id, addon.saga_id)
        await _write(grounds, addon)

    @pytest.mark.parametrize("addon", ["mysql"], indirect=True)
    async def test_one_that_does_not_let_its_user_in_is_a_verdict(self, grounds: Grounds, addon: AddOn) -> None:
        """As after a first start that was cut short: its port is open, and the URL of the config var is of no use."""
        await _provide(grounds, addon)
        other = replace(addon, password=secrets.token_hex(24))
        await _provide(grounds, other)  # it runs, and is left alone
        await grounds.lose(addon)
        with pytest.raises(AddOnDoesNotStart, match="add-on mysql does not take connections"):
            await grounds.with_means(replace(MEANS, start_timeout_s=15)).provide(other, note=lambda _: None)

    @pytest.mark.parametrize("addon", ["redis"], indirect=True)
    async def test_one_that_does_not_come_up_is_a_verdict(self, grounds: Grounds, addon: AddOn) -> None:
        """An image that is no database; what was made of it goes by `withdraw`."""
        provider = grounds.with_means(Means(images={"redis": "python:3.11-slim"}, memory_mb=64, start_timeout_s=5))
        with pytest.raises(AddOnDoesNotStart, match="add-on redis does not take connections"):
            await provider.provide(addon, note=lambda _: None)
        await provider.withdraw(addon.app_id, addon.name)
        assert await grounds.left(addon.app_id) == []


class ReleaseOf(Protocol):
    """Makes a release of the add-on's app."""

    def __call__(self, image: Image, addon: AddOn) -> Release:
        """With the password in its config."""


ASK_REDIS: Sequence[str] = (
    "python3",
    "-c",
    (
        "import os, socket; s = socket.create_connection(('redis', 6379), 10);"
        " s.sendall(b'AUTH ' + os.environ['PASSWORD'].encode() + b'\\r\\n');"
        " answer = s.recv(100); print(answer); assert answer == b'+OK\\r\\n'"
    ),
)


async def _provide(grounds: Grounds, addon: AddOn) -> None:
    async with asyncio.timeout(PATIENCE_S * 3):
        await grounds.provider.provide(addon, note=lambda _: None)


async def _write(grounds: Grounds, addon: AddOn) -> None:
    if addon.kind == "postgres":
        await grounds.execute(addon, "psql", _postgres(addon), "-c", "create table answers as select 42 as answer")
    elif addon.kind == "mysql":
        await grounds.execute(addon, *_mysql(addon), "create table answers as select 42 as answer")
    elif addon.kind == "redis":
        assert await grounds.execute(addon, *_redis(addon), "set", "answer", "42") == "OK"
    else:
        address = await grounds.address(addon)
        await asyncio.to_thread(_mongo, addon, address, write=True)


async def _read(grounds: Grounds, addon: AddOn) -> str:
    if addon.kind == "postgres":
        return await grounds.execute(addon, "psql", _postgres(addon), "-Atc", "select answer from answers")
    if addon.kind == "mysql":
        return await grounds.execute(addon, *_mysql(addon), "select answer from answers")
    if addon.kind == "redis":
        return await grounds.execute(addon, *_redis(addon), "get", "answer")
    address = await grounds.address(addon)
    return await asyncio.to_thread(_mongo, addon, address)


def _postgres(addon: AddOn) -> str:
    return f"postgresql://{addon.user}:{addon.password}@127.0.0.1:5432/{addon.user}"


def _mysql(addon: AddOn) -> tuple[str, ...]:
    login = ("-h127.0.0.1", f"-u{addon.user}", f"-p{addon.password}")
    return ("mysql", *login, "--batch", "--skip-column-names", addon.user, "-e")


def _redis(addon: AddOn) -> tuple[str, ...]:
    return ("redis-cli", "--no-auth-warning", "-a", addon.password)


def _mongo(addon: AddOn, address: str, *, write: bool = False) -> str:
    url = f"mongodb://{addon.user}:{addon.password}@{address}:27017/{addon.user}?authSource=admin"
    with pymongo.MongoClient[dict[str, int]](url, serverSelectionTimeoutMS=20_000) as client:
        answers = client.get_default_database()["answers"]
        if write:
            answers.insert_one({"answer": 42})
        found = answers.find_one() or {}
        return str(found.get("answer"))
