"""Add-ons as containers: one and a named volume for each, in the app's network under the add-on's name.

The container may be made anew at any time; the volume stays until `withdraw`. Neither carries a saga's label, so no
undo of a release touches them.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from services.deployer.adapters.addon_recipes import Means, Recipe, recipe
from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.engine import CannotStart, Container, Engine
from services.deployer.adapters.docker.networks import Networks
from services.deployer.adapters.lines import blotted
from services.deployer.adapters.naming import short_hash
from services.deployer.adapters.probe import probe
from services.deployer.errors import AddOnDoesNotStart
from services.deployer.ports import AddOn, Note

_LOOK_S = 0.25
_TAIL_LINES = 30
_GRACE_S = 30.0
"""To write what a database has in memory."""
_STARTS = 5
"""So often the engine starts one again by itself before we give up."""


class DockerAddOns:
    """See `AddOns`.

    Args:
        engine: Runs them.
        networks: Of the apps.
        installation: Whose they are.
        means: What an add-on may take.
    """

    def __init__(self, engine: Engine, networks: Networks, *, installation: str, means: Means) -> None:
        self._engine = engine
        self._networks = networks
        self._installation = installation
        self._means = means

    def address(self, app_id: str, name: str, port: int) -> tuple[str, int]:  # noqa: ARG002  the port's signature
        """See `AddOns.address`."""
        return name, port

    async def provide(self, addon: AddOn, *, note: Note) -> None:
        """See `AddOns.provide`."""
        how = recipe(addon, self._means)
        if await self._engine.image(how.image) is None:
            note(f"{addon.name}: pulling {how.image}")
            await self._engine.pull(how.image)
        name, labels = self._name(addon.app_id, addon.name), self._labels(addon.app_id, addon.name)
        await self._engine.ensure_volume(name, {**labels, spec.APP: addon.app})
        network = await self._networks.of_app(addon.app_id, addon.app, addon.team)
        container_id = await self._engine.create(name, self._config(addon, how, network))
        try:
            await self._engine.start(container_id)
        except CannotStart as error:
            raise AddOnDoesNotStart(f"The add-on {addon.name} cannot be started", why=error.why) from error
        await self._until_it_answers(addon, how, container_id, note)

    async def withdraw(self, app_id: str, name: str) -> Sequence[str]:
        """See `AddOns.withdraw`."""
        found = []
        labels = self._labels(app_id, name)
        for container in await self._engine.containers(labels):
            if container.runs:
                await self._engine.stop(container.id, grace_s=_GRACE_S)
            await self._engine.remove(container.id)
            found.append(f"add-on {name}")
        for volume in await self._engine.volumes(labels):
            await self._engine.remove_volume(volume)
            found.append(f"the volume of {name}")
        return found

    async def _until_it_answers(self, addon: AddOn, how: Recipe, container_id: str, note: Note) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            known = await self._engine.container(container_id)
            if known is None:
                raise await self._failed(addon, container_id, "its container was removed")
            if known.restarts >= _STARTS:
                raise await self._failed(addon, container_id, f"it ended {known.restarts} times")
            opened = known.runs and await probe(_address(known), how.port, None) is None
            if opened and (how.check is None or await self._engine.succeeds(container_id, how.check)):
                return
            waited_s = clock() - began
            if waited_s > self._means.start_timeout_s:
                what = "for its user to be let in" if opened else f"for its port {how.port}"
                raise await self._failed(addon, container_id, f"waited {waited_s:.0f} s {what}")
            note(f"{addon.name}: waiting until it takes connections")
            await asyncio.sleep(_LOOK_S)

    async def _failed(self, addon: AddOn, container_id: str, why: str) -> AddOnDoesNotStart:
        tail = blotted(await self._engine.tail(container_id, _TAIL_LINES), [addon.password])
        return AddOnDoesNotStart(f"The add-on {addon.name} does not take connections", why=why, log_tail=tail)

    def _config(self, addon: AddOn, how: Recipe, network: str) -> dict[str, Any]:
        name = self._name(addon.app_id, addon.name)
        bounds = spec.Bounds(memory_bytes=self._means.memory_mb * 2**20, cpus=self._means.cpus, processes=2048)
        return {
            "Image": how.image,
            **({"Entrypoint": list(how.command)} if how.command else {}),
            "Env": [f"{each}={value}" for each, value in how.env.items()],
            "Labels": {
                **self._labels(addon.app_id, addon.name),
                spec.APP: addon.app,
                spec.TEAM: addon.team,
                spec.ADDON_SAGA: addon.saga_id,
            },
            "HostConfig": {
                **spec.host_config(bounds),
                "NetworkMode": network,
                "RestartPolicy": {"Name": "unless-stopped"},
                "Mounts": [{"Type": "volume", "Source": name, "Target": how.data}],
            },
            "NetworkingConfig": {"EndpointsConfig": {network: {"Aliases": [addon.name]}}},
            "StopTimeout": round(_GRACE_S),
        }

    def _name(self, app_id: str, name: str) -> str:
        """Of its container and its volume, whatever the app is called now."""
        return f"{self._installation}-{short_hash(app_id)}-{name}"

    def _labels(self, app_id: str, name: str) -> dict[str, str]:
        return {spec.INSTALLATION: self._installation, spec.APP_ID: app_id, spec.ADDON: name}


def _address(container: Container) -> str:
    return next(iter(container.addresses.values()), "")
