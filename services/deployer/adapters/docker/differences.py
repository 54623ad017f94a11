"""What a release wants against the containers that there are: what differs, and what mends it. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.engine import Container
from services.deployer.ports import Instance, InstanceState, Release

Remedy = Literal["make", "start", "resume", "replace"]
AGAIN = "it is started again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One instance that is not as the release wants it."""

    label: str
    """`web.1`"""
    what: str
    state: InstanceState
    remedy: Remedy
    container_id: str = ""
    """Empty: there is none."""


def differences(
    release: Release, containers: Sequence[Container], *, reference: str, networks: Collection[str]
) -> list[Difference]:
    """Compare a release that serves with its containers.

    A container that ended by itself is no difference: the engine starts it again (`restarting`).

    Args:
        release: What should run.
        containers: Those of its instances.
        reference: Its image, as containers name it.
        networks: Names of the app's network; empty: it has none.
    """
    by_label = {each.labels[spec.PROCESS]: each for each in containers}
    found = (_difference(label, by_label.get(label), reference, networks) for label in spec.wanted_labels(release))
    return [each for each in found if each is not None]


def missing(release: Release, containers: Sequence[Container], *, since_ms: int) -> list[Instance]:
    """Return the wanted instances that have no container, as instances that are down."""
    there = {each.labels[spec.PROCESS] for each in containers}
    return [
        Instance(
            id=f"{release.saga_id}.{label}",
            app_id=release.app_id,
            saga_id=release.saga_id,
            release=release.number,
            process=label,
            state="down",
            since_ms=since_ms,
            note=f"its container was removed outside of knarr; {AGAIN}",
        )
        for label in spec.wanted_labels(release)
        if label not in there
    ]


def state_of(container: Container, *, reference: str | None = None) -> tuple[InstanceState, str] | None:
    """Return state and reason of a container that was changed from outside; None: it was not changed."""
    if reference is not None and container.image != reference:
        return "drifted", f"its container runs the image {container.image}; {AGAIN} with the release's"
    if container.status == "paused":
        return "down", "its container was paused outside of knarr; it is resumed"
    if container.status in {"exited", "dead"} and container.restart_policy != "no":
        return "down", f"its container was stopped outside of knarr; {AGAIN}"
    return None


def _difference(
    label: str, container: Container | None, reference: str, networks: Collection[str]
) -> Difference | None:
    if container is None:
        return Difference(label=label, what=f"the container of {label} is gone", state="down", remedy="make")
    what: str | None = None
    state: InstanceState = "down"
    remedy: Remedy = "start"
    if container.image != reference:
        what, state, remedy = f"the container of {label} runs the image {container.image}", "drifted", "replace"
    elif container.status == "paused":
        what, remedy = f"the container of {label} is paused", "resume"
    elif container.status in {"exited", "dead", "created"}:
        what = f"the container of {label} was stopped"
    elif container.runs and not set(container.networks) & set(networks):
        what, remedy = f"the container of {label} is not in the app's network", "replace"
    if what is None:
        return None
    return Difference(label=label, what=what, state=state, remedy=remedy, container_id=container.id)
