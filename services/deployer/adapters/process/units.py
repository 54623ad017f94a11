"""Releases that run as local processes, and the ports of this machine that two of them cannot share."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.deployer.adapters.process.folders import Root
from services.deployer.adapters.process.instance import Supervised
from services.deployer.errors import CannotRun
from services.deployer.ports import Release


@dataclass(slots=True, eq=False)
class Unit:
    """A release that runs here."""

    release: Release
    root: Root
    instances: list[Supervised] = field(default_factory=list)
    gave_way_to: int | None = None
    """Number of the release for which its instances were stopped: both listen on one port. None: they run."""

    def keep(self) -> None:
        """From now on its instances are started again whenever they end."""
        for instance in self.instances:
            instance.keep()


def fixed_port(release: Release) -> int | None:
    """Return the port on which its `web` listens whatever PORT says; None: each start gets a free one."""
    return release.port if release.formation.get("web") else None


def in_the_way(release: Release, units: Iterable[Unit]) -> list[Unit]:
    """Return other releases of the same app that listen on the port of this one."""
    port = fixed_port(release)
    return [
        each
        for each in units
        if port is not None
        and each.gave_way_to is None
        and each.release.saga_id != release.saga_id
        and each.release.app_id == release.app_id
        and fixed_port(each.release) == port
    ]


def refuse_port(release: Release, units: Iterable[Unit]) -> None:
    """Refuse a release whose fixed port cannot be its own.

    Raises:
        CannotRun: It asks for several instances of `web`, or another app listens on the port.
    """
    port = fixed_port(release)
    if port is None:
        return
    count = release.formation["web"]
    todo = "Remove `port` from .cupaas.yml and make the app listen on PORT, or run apps with Docker:"
    todo += " `knarr up --runtime docker`."
    if count > 1:
        raise CannotRun(
            f"{release.app} cannot run {count} instances of web",
            why=f"its port is fixed (`port: {port}`), and two processes of this machine cannot share one",
            todo=f"Run one: `knarr scale {release.app} web=1`. {todo}",
        )
    for each in units:
        if each.release.app_id != release.app_id and fixed_port(each.release) == port:
            raise CannotRun(
                f"{release.app} cannot listen on port {port}",
                why=f"the app {each.release.app} has the same fixed port on this machine",
                todo=todo,
            )
