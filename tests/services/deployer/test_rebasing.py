"""Rebases and bills of materials: what is asked over HTTP, and what the deployer makes of a rebased image."""

import asyncio
import gzip
import io
import json
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from ocistore.layout import OciLayout
from ocistore.manifest import digest_of
from ocistore.store import Descriptor, Image, LayerFile
from seedwork.adapters.in_process import InProcessBus
from seedwork.messages import Envelope, envelope, new_id
from seedwork.testing.http import running
from seedwork.unit_of_work import Database
from services.deployer import releases
from services.deployer.app import create_app
from services.deployer.contract import DeployRelease, RebaseRequested, ReleaseDeployed
from services.deployer.settings import DeployerSettings
from tests.services.deployer.conftest import PYTHON, Shelf
from tests.services.deployer.test_handlers import World

TOKEN = "the-operators-token"
LIFECYCLE = "io.buildpacks.lifecycle.metadata"
OF_BUILDPACKS = {LIFECYCLE: '{"runImage": {"topLayer": "sha256:1"}}'}
WATCHED = "sha256:" + "77" * 32


@dataclass
class Asked:
    """The service with apps that do not run, and what it says on the bus."""

    client: httpx2.AsyncClient
    bus: InProcessBus
    app_id: str
    heard: "asyncio.Queue[Envelope]" = field(default_factory=asyncio.Queue)

    async def hear(self, envelopes: Sequence[Envelope]) -> None:
        for each in envelopes:
            self.heard.put_nowait(each)

    async def next_said(self) -> Envelope:
        async with asyncio.timeout(30):
            return await self.heard.get()

    async def deploy(self, image: Image) -> None:
        command = DeployRelease(app="shop", repository=image.repository, digest=image.digest, commit="c" * 40)
        told = envelope(
            command, source="test", saga_id=new_id(), app_id=self.app_id, app="shop", step="deploy", attempt=1, fence=1
        )
        await self.bus.publish([told])
        assert (await self.next_said()).type == "ReleaseDeployed"


@pytest.fixture
async def asked(tmp_path: Path, images: OciLayout, shelf: Shelf, ports: int) -> AsyncIterator[Asked]:
    settings = DeployerSettings(
        home=tmp_path / "home", token=SecretStr(TOKEN), runtime="memory", app_port_base=ports, worker_settle_s=0
    )
    bus = InProcessBus()
    app = create_app(settings, bus=bus, images=images)
    async with running(app, token=TOKEN) as client:
        found = Asked(client, bus, shelf.app_id)
        await bus.subscribe("test", [ReleaseDeployed, RebaseRequested], found.hear)
        await bus.open()
        yield found
        await bus.close()


# ── rebases ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_rebase_is_asked_of_the_live_image(asked: Asked, shelf: Shelf) -> None:
    """The event names it, and the answer the saga that it starts."""
    image = await shelf.image(labels=OF_BUILDPACKS)
    await asked.deploy(image)
    answer = await asked.client.post("/apps/shop/rebase")
    assert answer.status_code == 202, answer.text
    said = await asked.next_said()
    assert said.correlationid == answer.json()["saga_id"]
    event = RebaseRequested.model_validate(said.data)
    assert (event.repository, event.digest, event.commit) == (image.repository, image.digest, "c" * 40)


@pytest.mark.parametrize("label", ["", "{", "[]", '{"runImage": 7}', "null"])
async def test_an_app_that_buildpacks_did_not_build_is_refused_before_anything_happens(
    asked: Asked, shelf: Shelf, label: str
) -> None:
    """With the command that does what is wanted."""
    await asked.deploy(await shelf.image(labels={LIFECYCLE: label}))
    refused = await asked.client.post("/apps/shop/rebase")
    assert (refused.status_code, refused.json()["code"]) == (409, "not_buildpacks")
    assert "was not built by buildpacks" in refused.text
    assert "knarr deploy" in refused.text
    assert asked.heard.empty()


async def test_a_rebase_onto_the_same_run_image_touches_nothing(db: Database, images: OciLayout, shelf: Shelf) -> None:
    """Watched files are no reason for a release: there is no source that could have changed."""
    world = World(db, images, shelf)
    image = await shelf.image(version="one")
    await world.deploy(image, observed=True, watched_digest=WATCHED)
    other = await world.deploy(image, kind="rebase", observed=True)
    assert (other.unchanged, other.number) == (True, 1)
    assert await world.states() == ["live"]


async def test_a_release_without_a_source_of_its_own_keeps_what_was_watched(
    db: Database, images: OciLayout, shelf: Shelf
) -> None:
    """Else the next push that changes nothing would start the app anew."""
    world = World(db, images, shelf)
    one, two = await shelf.image(version="one"), await shelf.image(version="two")
    await world.deploy(one, observed=True, watched_digest=WATCHED)
    await world.deploy(two, kind="rebase", observed=True)
    await world.deploy(two, kind="restart", observed=True)
    await world.deploy(one, kind="rollback", rollback_to=1, observed=True)
    kept = await world.db.read(lambda conn: releases.in_states(conn, releases.KEPT_STATES, app_id=world.app_id))
    assert {each.number: each.watched_digest for each in kept}.items() >= {2: WATCHED, 3: WATCHED, 4: WATCHED}.items()


# ── bills of materials ───────────────────────────────────────────────────────────────────────────────────────────────


def packed(folder: Path, documents: Mapping[str, str]) -> LayerFile:
    """The layer as the lifecycle writes it: names are absolute, and gzip is around it."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, text in documents.items():
            entry = tarfile.TarInfo(f"/layers/sbom/launch/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    path = folder / f"{new_id()}.tar.gz"
    path.write_bytes(gzip.compress(content.getvalue()))
    descriptor = Descriptor(
        media_type="application/vnd.oci.image.layer.v1.tar+gzip",
        digest=digest_of(path.read_bytes()),
        size_bytes=path.stat().st_size,
    )
    return LayerFile(descriptor=descriptor, diff_id=digest_of(content.getvalue()), path=path)


async def with_sbom(shelf: Shelf, documents: Mapping[str, str], *, layer: LayerFile | None = None) -> Image:
    """An image as the lifecycle exports it, with the layer of its bills of materials."""
    layer = layer or packed(shelf.folder, documents)
    labels = {
        LIFECYCLE: json.dumps({"runImage": {"topLayer": "sha256:1"}, "sbom": {"sha": layer.diff_id}}),
        "io.knarr.processes": json.dumps({"web": [PYTHON, "app.py"]}),
    }
    config = {"config": {"Labels": labels}, "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]}}
    return await shelf.images.put(shelf.repository, config=json.dumps(config).encode(), layers=[layer])


async def sbom(asked: Asked, path: str = "", **query: str) -> httpx2.Response:
    return await asked.client.get(f"/apps/shop/releases/1/sbom{path}", params=query)


async def test_a_release_lists_the_documents_that_buildpacks_left(asked: Asked, shelf: Shelf) -> None:
    """By buildpack, layer and format; other files are none."""
    documents = {
        "heroku_python/venv/sbom.cdx.json": "{}",
        "heroku_python/sbom.spdx.json": '{"spdxVersion": "2.3"}',
        "heroku_python/notes.txt": "x",
    }
    await asked.deploy(await with_sbom(shelf, documents))
    found: list[dict[str, Any]] = (await sbom(asked)).json()["items"]
    assert [(each["name"], each["format"], each["size_bytes"]) for each in found] == [
        ("heroku_python", "spdx", 22),
        ("heroku_python/venv", "cyclonedx", 2),
    ]


async def test_a_document_is_sent_as_it_is(asked: Asked, shelf: Shelf) -> None:
    """By its format alone where there is one, else by name; what is missing is answered with what there is."""
    documents = {"a/sbom.cdx.json": '{"a": 1}', "b/sbom.cdx.json": '{"b": 1}', "b/sbom.syft.json": "{}"}
    await asked.deploy(await with_sbom(shelf, documents))
    one = await sbom(asked, "/cyclonedx", name="b")
    assert (one.text, one.headers["content-type"]) == ('{"b": 1}', "application/vnd.cyclonedx+json")
    assert (await sbom(asked, "/syft")).text == "{}"
    several = await sbom(asked, "/cyclonedx")
    assert (several.status_code, "there are a, b" in several.text) == (404, True)
    assert (await sbom(asked, "/spdx")).status_code == 404
    assert (await sbom(asked, "/cyclonedx", name="../x")).status_code == 404


async def test_an_image_of_another_builder_has_a_document_that_is_made_of_it(asked: Asked, shelf: Shelf) -> None:
    """The packages that are found in its layers, as CycloneDX."""
    metadata = "node_modules/left-pad/package.json"
    files = {"app.py": "", metadata: '{"name": "left-pad", "version": "1.3.0"}'}
    await asked.deploy(await shelf.image(files))
    (listed,) = (await sbom(asked)).json()["items"]
    assert (listed["name"], listed["format"], listed["size_bytes"]) == ("packages", "cyclonedx", None)
    document = (await sbom(asked, "/cyclonedx")).json()
    assert [each["purl"] for each in document["components"]] == ["pkg:npm/left-pad@1.3.0"]
    assert (await sbom(asked, "/spdx")).status_code == 404


async def test_documents_that_are_too_large_are_not_sent(
    asked: Asked, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a document nor its layer."""
    await asked.deploy(await with_sbom(shelf, {"a/sbom.cdx.json": "x" * 100}))
    monkeypatch.setattr("services.deployer.sbom._DOCUMENT_BYTES", 99)
    assert (await sbom(asked, "/cyclonedx")).status_code == 413
    monkeypatch.setattr("services.deployer.sbom._UNPACKED_BYTES", 99)
    assert (await sbom(asked)).status_code == 413
    monkeypatch.setattr("services.deployer.sbom._LAYER_BYTES", 99)
    assert (await sbom(asked)).status_code == 413


async def test_a_damaged_layer_is_said_to_be_damaged(asked: Asked, shelf: Shelf) -> None:
    """No stack trace."""
    layer = packed(shelf.folder, {"a/sbom.cdx.json": "{}"})
    assert layer.path is not None
    layer.path.write_bytes(gzip.compress(b"x" * 2000))
    descriptor = replace(
        layer.descriptor, digest=digest_of(layer.path.read_bytes()), size_bytes=layer.path.stat().st_size
    )
    await asked.deploy(await with_sbom(shelf, {}, layer=replace(layer, descriptor=descriptor)))
    answer = await sbom(asked)
    assert (answer.status_code, "damaged" in answer.text) == (400, True)


async def test_the_deployer_says_what_it_provides(asked: Asked) -> None:
    """So that the source refuses an app that needs more, before its build."""
    answer = await asked.client.get("/capabilities")
    assert answer.json() == {"runtime": "memory", "addons": []}
