"""What one language has installed for a build: its layer, and how commands find it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from seedwork.archives import ArchiveLimits, extract_tar
from seedwork.threads import in_thread
from services.builder.adapters.layers.image import HOST_PATH, Prepared, ReadyLayer
from services.builder.adapters.layers.workshop import Workshop

OWN_LAYER = ArchiveLimits(max_bytes=16 * 1024**3, max_entries=2_000_000, max_depth=256, max_path_bytes=4096)
"""Of our own layers: what the tools made, not what a stranger sent."""


async def _nothing() -> tuple[ReadyLayer, ...]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The packages of one language."""

    env: Mapping[str, str]
    """Variables of the app's processes, `PATH` included, as paths inside the image."""
    step_env: Mapping[str, str] = field(default_factory=dict)
    """Variables of build steps, `PATH` included, as paths of this machine."""
    finish: Callable[[], Awaitable[tuple[ReadyLayer, ...]]] = _nothing
    """Called after the last build step: leaves in the app's folder what belongs into the image; the layers."""


async def installed_layers(shop: Workshop, prepared: Prepared, *, has_steps: bool) -> Installed:
    """Return packages that are complete in their layers; for build steps the layers are unpacked."""
    if has_steps:
        for layer in prepared.layers:
            await unpack(shop, layer)
    env = dict(prepared.env or {})

    async def finish() -> tuple[ReadyLayer, ...]:
        return prepared.layers

    return Installed(env=env, step_env=_on_this_machine(shop, env), finish=finish)


async def unpack(shop: Workshop, layer: ReadyLayer) -> None:
    """Lay a layer out below the build's root, unless this build made it there."""
    path = layer.file.path
    if not layer.cached or path is None:
        return
    await in_thread(lambda stop: extract_tar(path, shop.root, limits=OWN_LAYER, stop=stop))


def _on_this_machine(shop: Workshop, env: Mapping[str, str]) -> dict[str, str]:
    """Paths inside the image as paths of the build's folder."""
    found: dict[str, str] = {}
    for name, value in env.items():
        parts = value.split(":")
        rooted = [f"{shop.root}{part}" if part.startswith(("/app", "/layers/")) else part for part in parts]
        found[name] = ":".join(rooted)
    if "PATH" in env:
        found["PATH"] = found["PATH"].removesuffix(HOST_PATH) + shop.sandbox.path
    return found
