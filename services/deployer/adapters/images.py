"""How a container engine gets an image of ours: by digest, from the registry that is the image store."""

from dataclasses import dataclass

from ocistore.store import LABEL_BASE, Image
from services.deployer.errors import CannotRun

DEFAULT_PORT = 8080
"""Told to a web process whose image exposes no port; above 1024, since it need not be root."""


@dataclass(frozen=True, slots=True)
class Pullable:
    """Names of images as an engine or a cluster takes them.

    Args:
        registry: `host[:port][/prefix]`, as seen from there.
    """

    registry: str

    def reference(self, repository: str, digest: str) -> str:
        """`host/repository@sha256:…`: nothing else has this name, whoever pushes what."""
        return f"{self.registry}/{repository}@{digest}"

    def is_ours(self, reference: str) -> bool:
        """Whether it is an image of this registry."""
        return reference.startswith(f"{self.registry}/")


def runnable_anywhere(image: Image, *, runtime: str) -> None:
    """Raise `CannotRun` if the image holds no operating system and so runs on the builder's machine only."""
    labels = image.config.get("config", {}).get("Labels") or {}
    if labels.get(LABEL_BASE) == "host":
        raise CannotRun(
            f"The image cannot run on {runtime}",
            why="the builder `layers` made it: it holds the app and no operating system",
            todo="Set KNARR_BUILDER=buildx, which makes complete images, and deploy again.",
        )


def port_of(image: Image) -> int:
    """The one TCP port that the image exposes, else `DEFAULT_PORT`."""
    exposed = image.config.get("config", {}).get("ExposedPorts") or {}
    ports = [name.removesuffix("/tcp") for name in exposed if not name.endswith("/udp")]
    return int(ports[0]) if len(ports) == 1 and ports[0].isdigit() else DEFAULT_PORT
