"""The pure parts of building with buildpacks: what a builder image says, which containers run, what their end means."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ocistore.store import Image
from seedwork.errors import KnarrError, Misconfigured, NotAllowed, Unavailable
from services.builder.adapters.buildpacks import phases
from services.builder.adapters.buildpacks.faults import explained
from services.builder.adapters.buildpacks.image import processes_of, rebased_config, stands_on, through_the_launcher
from services.builder.adapters.buildpacks.phases import BuilderImage, Order, Phase
from services.builder.adapters.buildpacks.workspace import platform_files, write_workspace
from services.builder.errors import BuildFailed, CannotBuild, OutOfMemory
from services.builder.ports import BuildOrder
from services.source.contract import AppDescription

IMAGE = BuilderImage(name="heroku/builder:24", image_id="sha256:1", uid=1001, gid=1000, run_image="run:1", api="0.12")
ORDER = Order(
    saga_id="s",
    target="127.0.0.1:8790/staging/incoming:build-s",
    login="Basic c2VjcmV0",
    insecure=True,
    layers_volume="l",
    app_volume="a",
    cache_volume="c",
    memory_bytes=1024,
    processes=100,
)


def inspected(**changed: Any) -> dict[str, Any]:
    """What an engine says of a builder image, as `pack` labels it."""
    labels = {
        "io.buildpacks.builder.metadata": json.dumps({"stack": {"runImage": {"image": "heroku/heroku:24"}}}),
        "io.buildpacks.lifecycle.apis": json.dumps({"platform": {"supported": ["0.7", "0.11", "0.12"]}}),
    }
    env = ["PATH=/bin", "CNB_USER_ID=1001", "CNB_GROUP_ID=1000"]
    return {"Id": "sha256:1", "Config": {"Env": env, "Labels": labels, **changed}}


def test_a_builder_image_says_who_runs_and_on_what() -> None:
    """The newest interface that both know; a run image of the settings wins."""
    image = phases.read_builder("heroku/builder:24", inspected(), run_image=None)
    assert (image.uid, image.gid, image.run_image, image.api) == (1001, 1000, "heroku/heroku:24", "0.12")
    assert phases.read_builder("b", inspected(), run_image="mine:1").run_image == "mine:1"
    newer = {"io.buildpacks.builder.metadata": json.dumps({"images": [{"image": "new:1"}]})}
    assert phases.read_builder("b", inspected(Labels=newer), run_image=None).run_image == "new:1"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"Env": ["PATH=/bin"]}, "CNB_USER_ID"),
        ({"Labels": {"io.buildpacks.builder.metadata": "{"}}, "labels cannot be read"),
        ({"Labels": {}}, "names no run image"),
        ({"Labels": {"io.buildpacks.lifecycle.apis": '{"platform": {"supported": ["0.3"]}}'}}, r"interfaces 0\.3 only"),
    ],
)
def test_an_image_that_is_no_builder_is_refused_by_name(changed: dict[str, Any], why: str) -> None:
    """With the setting that names another one."""
    with pytest.raises(CannotBuild, match=rf"shop:1 is no builder image.*{why}.*KNARR_BUILDPACKS_BUILDER"):
        phases.read_builder("shop:1", inspected(**changed), run_image=None)


def test_the_registrys_password_is_where_no_code_of_the_app_runs() -> None:
    """Buildpacks and what they start have neither it, nor root, nor the engine's network."""
    for phase in phases.PHASES:
        made = phases.container(phase, IMAGE, ORDER)
        knows = any("CNB_REGISTRY_AUTH" in each for each in made["Env"])
        assert knows is (phase in {"analyzer", "restorer", "exporter"})
        assert (made["User"] == "0:0") is knows
        assert (made["HostConfig"]["NetworkMode"] == "host") is knows
        assert made["HostConfig"]["SecurityOpt"] == ["no-new-privileges"]
        assert made["Labels"][phases.LABEL_BUILD] == "s"


def test_only_those_mount_the_cache_that_use_it() -> None:
    """A buildpack sees what was restored for it, not the cache itself."""
    mounted = {
        phase: {each["Target"] for each in phases.container(phase, IMAGE, ORDER)["HostConfig"]["Mounts"]}
        for phase in phases.PHASES
    }
    assert {phase for phase, targets in mounted.items() if phases.CACHE in targets} == {"restorer", "exporter"}


def test_processes_start_through_the_launcher() -> None:
    """Those of the image by their type, those of the app's Procfile as programs in the same environment."""
    labels = {"io.buildpacks.build.metadata": json.dumps({"processes": [{"type": "web"}, {"type": "worker"}]})}
    known = processes_of(an_image({"Labels": labels}))
    assert known == {"web": ("/cnb/process/web",), "worker": ("/cnb/process/worker",)}
    described = {"web": ("python", "app.py"), "clock": ("python", "clock.py")}
    order = through_the_launcher(an_order(processes=described, release=("python", "migrate.py")), known)
    assert order.description.processes == {
        "web": ("/cnb/process/web",),
        "clock": ("/cnb/lifecycle/launcher", "--", "python", "clock.py"),
    }
    assert order.description.release == ("/cnb/lifecycle/launcher", "--", "python", "migrate.py")


def test_the_default_process_is_web_where_none_has_that_name() -> None:
    """As other platforms do it."""
    labels = {"io.buildpacks.build.metadata": json.dumps({"processes": [{"type": "hello"}]})}
    known = processes_of(an_image({"Labels": labels, "Entrypoint": ["/cnb/process/hello"]}))
    assert known["web"] == ("/cnb/process/hello",)
    with pytest.raises(CannotBuild, match=r"io\.buildpacks\.build\.metadata"):
        processes_of(an_image({"Labels": {}}))


def test_the_rebaser_gets_the_password_and_nothing_of_a_build() -> None:
    """It runs no code of the app; the image that it moves is named by digest."""
    order = replace(ORDER, previous="127.0.0.1:8790/shop@sha256:1")
    made = phases.container("rebaser", IMAGE, order)
    assert made["HostConfig"]["Mounts"] == []
    assert any("CNB_REGISTRY_AUTH" in each for each in made["Env"])
    assert made["Cmd"][-3:] == [f"-previous-image={order.previous}", "-run-image=run:1", order.target]


def test_a_rebased_image_says_what_it_said_before() -> None:
    """Labels and command stay; when it was made is left out, so that the same input gives the same digest."""
    image = an_image({"Labels": {"io.knarr.processes": "{}"}, "Cmd": ["/cnb/process/web"]})
    pushed = replace(
        image,
        config={
            **image.config,
            "created": "2026-01-01T00:00:00Z",
            "author": "x",
            "rootfs": {"diff_ids": ["sha256:1"]},
            "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "run"}],
        },
    )
    config = json.loads(rebased_config(pushed))
    assert config["config"] == image.config["config"]
    assert config["rootfs"] == {"diff_ids": ["sha256:1"]}
    assert {config["created"], config["history"][0]["created"]} == {"1980-01-01T00:00:00Z"}
    assert "author" not in config


@pytest.mark.parametrize(
    ("run_image", "rebasable", "expected"),
    [
        ("host:5000/run:2", "true", True),
        ("host:5000/run", "", True),
        ("host:5000/run:2", "false", False),
        ("host:5000/other:1", "true", False),
        ("run:1", "true", False),
    ],
)
def test_a_run_image_of_the_settings_is_known_by_the_repository_that_was_built_on(
    run_image: str, rebasable: str, expected: bool
) -> None:
    """The lifecycle knows only the names in the builder image; an extended run image cannot be replaced."""
    said = json.dumps({"runImage": {"reference": "host:5000/run@sha256:1", "image": "heroku/heroku:24"}})
    labels = {"io.buildpacks.lifecycle.metadata": said, "io.buildpacks.rebasable": rebasable}
    assert stands_on(an_image({"Labels": labels}), run_image) is expected
    hub = json.dumps({"runImage": {"reference": "index.docker.io/heroku/heroku@sha256:1"}})
    assert stands_on(an_image({"Labels": {"io.buildpacks.lifecycle.metadata": hub}}), "heroku/heroku:24")
    assert not stands_on(an_image({"Labels": {}}), run_image)


@pytest.mark.parametrize(
    ("phase", "code", "line", "kind", "text"),
    [
        ("detector", 20, "ERROR: No buildpack groups passed detection.", CannotBuild, "No buildpack of heroku"),
        ("builder", 51, "ERROR: failed to build: exit status 1", BuildFailed, "exit status 1"),
        ("builder", 137, "", OutOfMemory, "1 MiB"),
        ("analyzer", 11, "ERROR: platform API", Misconfigured, "newer builder"),
        ("analyzer", 32, "ERROR: Get http://x: dial tcp: connection refused", Unavailable, "did not reach"),
        ("analyzer", 32, "ERROR: failed to get run:1: MANIFEST_UNKNOWN", CannotBuild, "RUN_IMAGE"),
        ("rebaser", 72, "ERROR: new base image 'run:1' not found in it; provide -force", CannotBuild, "Deploy the app"),
        ("rebaser", 72, "ERROR: incompatible stack: 'a' is not 'b'", CannotBuild, "cannot be moved"),
        ("rebaser", 72, "ERROR: Get http://x: dial tcp: connection refused", Unavailable, "did not reach"),
        ("exporter", 62, "ERROR: UNAUTHORIZED", NotAllowed, "KNARR_REGISTRY_PASSWORD"),
        ("exporter", 62, "ERROR: BLOB_UNKNOWN: blob unknown", Unavailable, "tried again"),
    ],
)
def test_each_end_is_told_by_whose_fault_it_is(
    phase: Phase, code: int, line: str, kind: type[KnarrError], text: str
) -> None:
    """A registry that is away is tried again; what the app did is final."""
    error = explained(phase, code, (line,), builder=IMAGE.name, run_image="run:1", memory_bytes=2**20)
    assert type(error) is kind
    assert text in error.message


def test_the_app_gets_its_files_with_the_owner_of_the_builder(tmp_path: Path) -> None:
    """Contents, modes, links and names stay."""
    with tarfile.open(tmp_path / "source.tar", "w") as source:
        entry = tarfile.TarInfo("bin/run")
        entry.size, entry.mode = 2, 0o755
        source.addfile(entry, io.BytesIO(b"hi"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "bin/run"
        source.addfile(link)
    write_workspace(tmp_path / "source.tar", tmp_path / "workspace.tar", 1001, 1000)
    with tarfile.open(tmp_path / "workspace.tar") as made:
        root, run, linked = made.getmembers()
        assert root.isdir()
        assert {(each.uid, each.gid) for each in (root, run, linked)} == {(1001, 1000)}
        assert (run.name, run.mode, made.extractfile(run).read()) == ("bin/run", 0o755, b"hi")  # type: ignore[union-attr]
        assert linked.linkname == "bin/run"


def test_variables_are_files_that_only_the_build_reads() -> None:
    """Not the environment of a container, which `docker inspect` shows."""
    with tarfile.open(fileobj=io.BytesIO(platform_files({"TOKEN": "geheim"}, 1001, 1000))) as made:
        (token,) = [each for each in made if each.isfile()]
        assert (token.name, token.mode, token.uid) == ("platform/env/TOKEN", 0o400, 1001)
        assert made.extractfile(token).read() == b"geheim"  # type: ignore[union-attr]


def an_image(config: dict[str, Any]) -> Image:
    return Image(
        repository="r", digest="sha256:1", manifest={}, config={"config": config}, layers=(), tags=(), size_bytes=1
    )


def an_order(**described: Any) -> BuildOrder:
    description = AppDescription.model_validate({"runtime": {"kind": "buildpacks"}, **described})
    return BuildOrder(
        saga_id="s",
        app_id="i",
        app="shop",
        commit=None,
        source_digest="sha256:0",
        description=description,
        archive=Path("a"),
        folder=Path("f"),
    )
