"""Which builder an app gets."""

from pathlib import Path
from typing import Any

import pytest

from seedwork.errors import KnarrError, Misconfigured
from services.builder.choosing import ChosenBuilder
from services.builder.errors import CannotBuild
from services.builder.ports import BuildOrder, Built, ImageBuilder
from services.source.contract import AppDescription

GONE = Misconfigured("Images are kept in a folder", todo="Run `knarr up --runtime docker`.")


class Named:
    """A builder that says its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopped: list[str | None] = []

    async def build(self, order: BuildOrder, **_: Any) -> Built:
        return Built(repository=self.name, digest="", layers=())

    async def stop(self, saga_id: str | None = None) -> int:
        self.stopped.append(saga_id)
        return 1


def an_order(kind: str = "python", builder: str | None = None) -> BuildOrder:
    return BuildOrder(
        saga_id="s",
        app_id="i",
        app="shop",
        commit=None,
        source_digest="sha256:0",
        description=AppDescription.model_validate({"runtime": {"kind": kind}}),
        archive=Path("a"),
        folder=Path("f"),
        builder=builder,
    )


def chosen(default: str, **missing: KnarrError) -> ChosenBuilder:
    builders: dict[str, ImageBuilder | KnarrError] = {name: Named(name) for name in ("layers", "buildx", "buildpacks")}
    return ChosenBuilder({**builders, **missing}, default=default)


async def built_by(builder: ChosenBuilder, order: BuildOrder) -> str:
    async def hold(_: str) -> None: ...

    done = await builder.build(order, output=None, note=print, hold=hold)  # type: ignore[arg-type]
    return done.repository


@pytest.mark.parametrize(
    ("default", "kind", "wanted", "name"),
    [
        ("layers", "python", None, "layers"),
        ("layers", "python", "buildx", "buildx"),
        ("buildx", "buildpacks", None, "buildpacks"),
        ("buildpacks", "dockerfile", None, "buildx"),
        ("buildpacks", "python", None, "buildpacks"),
        ("buildpacks", "python", "layers", "layers"),
    ],
)
async def test_the_apps_choice_comes_before_the_setting(default: str, kind: str, wanted: str | None, name: str) -> None:
    """What it needs comes first: buildpacks read no Dockerfile, and nothing else builds what only they know."""
    assert await built_by(chosen(default), an_order(kind, wanted)) == name


async def test_a_builder_that_is_not_here_is_refused_by_name() -> None:
    """With the reason and what helps; the others work."""
    builder = chosen("layers", buildx=GONE)
    assert await built_by(builder, an_order()) == "layers"
    with pytest.raises(CannotBuild, match=r"The builder buildx is not here: Images are kept.*--runtime docker"):
        await built_by(builder, an_order(builder="buildx"))


def test_without_the_builder_of_the_settings_the_service_does_not_start() -> None:
    """It says why at once."""
    with pytest.raises(Misconfigured, match="kept in a folder"):
        chosen("buildx", buildx=GONE)


async def test_a_build_is_stopped_whichever_built_it() -> None:
    """An undo does not know which one it was."""
    layers, buildpacks = Named("layers"), Named("buildpacks")
    builder = ChosenBuilder({"layers": layers, "buildx": GONE, "buildpacks": buildpacks}, default="layers")
    assert await builder.stop("saga") == 2
    assert layers.stopped == buildpacks.stopped == ["saga"]
