"""The whole service: messages in, messages out, and what people read over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from ocistore.layout import OciLayout
from ocistore.store import Image
from ocistore.testing import put_image
from seedwork.adapters.in_process import InProcessBus
from seedwork.messages import Command, Envelope, Event, Message, envelope, new_id
from seedwork.testing.http import running
from seedwork.testing.migrations import assert_migrations_match
from services.deployer.contract import ReleaseDeployed, ReleaseRetired
from services.registry import models
from services.registry.app import MIGRATIONS, create_app
from services.registry.contract import (
    DropImages,
    ImagePublished,
    ImagePublishFailed,
    ImagesDropped,
    ImageUnpublished,
    PublishImage,
    UnpublishImage,
)
from services.registry.settings import RegistrySettings

TOKEN = "the-operators-token"
COMMIT = "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d"
ANSWERS: list[type[Message]] = [ImagePublished, ImagePublishFailed, ImageUnpublished, ImagesDropped]


class Stack:
    """The service on a bus, with somebody who listens to its answers."""

    def __init__(self, bus: InProcessBus, client: httpx2.AsyncClient, folder: Path) -> None:
        self.client = client
        self.app_id = new_id()
        self.images = OciLayout(folder / "home" / "registry" / "images")
        self._bus = bus
        self._folder = folder
        self._answers: list[Envelope] = []
        self._came = asyncio.Condition()

    async def hear(self, envelopes: Sequence[Envelope]) -> None:
        async with self._came:
            self._answers += envelopes
            self._came.notify_all()

    async def staged(self, text: str) -> Image:
        return await put_image(self.images, f"staging/{self.app_id}", self._folder, {"app.py": text})

    async def tell(self, event: Event, saga_id: str) -> None:
        await self._bus.publish([envelope(event, source="deployer", saga_id=saga_id, app_id=self.app_id, app="shop")])

    async def ask(self, command: Command, saga_id: str, *, attempt: int = 1) -> Envelope:
        """Send a command as the coordinator does and wait for its answer."""
        sent = envelope(
            command,
            source="saga_coordinator",
            saga_id=saga_id,
            app_id=self.app_id,
            app="shop",
            step="publish",
            attempt=attempt,
            fence=1,
        )
        await self._bus.publish([sent])
        async with asyncio.timeout(20), self._came:
            await self._came.wait_for(lambda: any(each.causationid == sent.id for each in self._answers))
        return next(each for each in self._answers if each.causationid == sent.id)

    async def publish(self, image: Image, saga_id: str) -> Envelope:
        command = PublishImage(app="shop", digest=image.digest, staged=image.repository, commit=COMMIT)
        return await self.ask(command, saga_id)

    async def listed(self, **query: str | int) -> Mapping[str, Any]:
        answer = await self.client.get("/images", params=query)
        assert answer.status_code == 200, answer.text
        page: Mapping[str, Any] = answer.json()
        return page

    async def until(self, seen: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(20):
            while not await seen():  # noqa: ASYNC110  HTTP and a file system tell nobody
                await asyncio.sleep(0.01)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RegistrySettings:
    monkeypatch.chdir(tmp_path)
    return RegistrySettings(home=tmp_path / "home", token=SecretStr(TOKEN), test_endpoints=True)


@pytest.fixture
async def stack(settings: RegistrySettings, tmp_path: Path) -> AsyncIterator[Stack]:
    bus = InProcessBus()
    async with running(create_app(settings, bus=bus), token=TOKEN) as client:
        stack = Stack(bus, client, tmp_path)
        await bus.subscribe("coordinator", ANSWERS, stack.hear)
        await bus.open()
        yield stack
        await stack.images.close()
        await bus.close()


async def test_the_migrations_make_the_tables_that_the_code_expects() -> None:
    """Column by column."""
    await assert_migrations_match(models.metadata, MIGRATIONS)


async def test_a_published_image_is_listed_with_who_holds_it(stack: Stack) -> None:
    """Its shape is what clients rely on; the release's number comes with its deployment."""
    image, saga = await stack.staged("x"), new_id()

    answer = await stack.publish(image, saga)
    assert answer.type == "ImagePublished"
    assert answer.data["repository"] == "shop"
    deployed = ReleaseDeployed.model_validate({**ReleaseDeployed.EXAMPLE, "number": 3, "digest": image.digest})
    await stack.tell(deployed, saga)

    async def numbered() -> bool:
        return bool((await stack.listed(app="shop"))["items"][0]["releases"])

    await stack.until(numbered)
    (item,) = (await stack.listed(app="shop"))["items"]
    assert item.pop("published_at").endswith("Z")
    assert item == {
        "app": "shop",
        "app_id": stack.app_id,
        "team": "default",
        "repository": "shop",
        "digest": image.digest,
        "tags": [COMMIT],
        "size_bytes": image.size_bytes,
        "releases": [3],
        "held_by": [saga],
    }
    assert (await stack.listed(app=stack.app_id))["items"][0]["digest"] == image.digest
    assert (await stack.listed(app="other"))["items"] == []


async def test_a_command_delivered_twice_is_answered_twice_and_done_once(stack: Stack) -> None:
    """Another attempt repeats the recorded answer."""
    image, saga = await stack.staged("x"), new_id()
    command = PublishImage(app="shop", digest=image.digest, staged=image.repository, commit=COMMIT)

    first = await stack.ask(command, saga, attempt=1)
    second = await stack.ask(command, saga, attempt=2)

    assert first.data == second.data
    assert (first.sagaattempt, second.sagaattempt) == (1, 2)
    assert len((await stack.listed())["items"]) == 1


async def test_an_undo_answers_what_it_found_and_keeps_a_late_attempt_out(stack: Stack) -> None:
    """After it the image is not listed, and the step is answered with `undone`."""
    image, saga = await stack.staged("x"), new_id()
    await stack.publish(image, saga)

    undone = await stack.ask(UnpublishImage(), saga)
    late = await stack.ask(PublishImage(app="shop", digest=image.digest, staged=image.repository), saga, attempt=2)

    assert undone.type == "ImageUnpublished"
    assert undone.data["done"] == [f"removed shop@{image.digest}", "dropped 1 reference"]
    assert (late.type, late.data["code"], late.data["retryable"]) == ("ImagePublishFailed", "undone", False)
    assert (await stack.listed())["items"] == []
    assert await stack.images.images() == [(image.repository, image.digest)]


async def test_a_failure_tells_a_person_what_why_and_what_to_do(stack: Stack) -> None:
    """It is final and has a code."""
    digest = "sha256:" + "0" * 64

    answer = await stack.ask(PublishImage(app="shop", digest=digest), new_id())

    assert answer.type == "ImagePublishFailed"
    assert (answer.data["retryable"], answer.data["code"]) == (False, "not_found")
    assert answer.data["message"] == (
        f"The image shop@{digest} is not published any more: no release holds it. "
        "Deploy its commit again; KNARR_REGISTRY_KEEP says how many releases are kept."
    )


async def test_a_retired_release_takes_its_image_along(stack: Stack) -> None:
    """The event drops the reference, the collector the bytes."""
    image, saga = await stack.staged("x"), new_id()
    await stack.publish(image, saga)

    await stack.tell(ReleaseRetired(app="shop", number=1, digest=image.digest, release_saga_id=saga), new_id())

    async def gone() -> bool:
        return ("shop", image.digest) not in await stack.images.images() and not (await stack.listed())["items"]

    await stack.until(gone)


async def test_a_removed_app_leaves_no_image(stack: Stack) -> None:
    """Neither published nor staged."""
    await stack.publish(await stack.staged("one"), new_id())
    await stack.publish(await stack.staged("two"), new_id())

    answer = await stack.ask(DropImages(app="shop"), new_id())

    assert answer.type == "ImagesDropped"
    assert await stack.images.images() == []
    assert (await stack.listed())["items"] == []


async def test_images_come_in_pages_newest_first(stack: Stack) -> None:
    """Each once, whatever was published in the same millisecond."""
    published = [await stack.staged(f"version {number}") for number in range(5)]
    for image in published:
        await stack.publish(image, new_id())

    seen: list[str] = []
    cursor: dict[str, str | int] = {}
    while True:
        page = await stack.listed(limit=2, **cursor)
        assert len(page["items"]) <= 2
        seen += [item["digest"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}

    assert sorted(seen) == sorted(image.digest for image in published)
    times = [item["published_at"] for item in (await stack.listed())["items"]]
    assert times == sorted(times, reverse=True)


async def test_images_are_for_callers_with_a_token(stack: Stack) -> None:
    """A problem report says where the token is."""
    answer = await stack.client.get("/images", headers={"Authorization": ""})

    assert answer.status_code == 401
    assert "token" in answer.json()["detail"]


async def test_the_service_tells_its_figures(stack: Stack) -> None:
    """What was collected and what is missing, beside the chassis' own."""
    text = (await stack.client.get("/metrics")).text

    assert "knarr_registry_images_missing 0.0" in text
    assert "knarr_registry_images_collected_total" in text
