"""What the person who typed `knarr up` sees while it runs: a line when a deployment begins, one when it ends."""

import time
from collections.abc import Sequence

from knarr.terminal import Terminal, escape, short
from seedwork.bus import Bus
from seedwork.messages import Envelope
from services.deployer.contract import ReleaseDeployed
from services.saga_coordinator.contract import DeploymentFailed, DeploymentSucceeded
from services.webhook.contract import DeploymentRequested

_REMEMBERED = 1000


async def show_activity(bus: Bus, terminal: Terminal) -> None:
    """Listen from now on. A message that comes twice is shown once."""
    seen: dict[str, None] = {}

    async def show(envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            if envelope.id not in seen:
                seen[envelope.id] = None
                terminal.say(_line(envelope))
        while len(seen) > _REMEMBERED:
            del seen[next(iter(seen))]

    await bus.subscribe(
        "front_door", (DeploymentRequested, ReleaseDeployed, DeploymentSucceeded, DeploymentFailed), show
    )


def _line(envelope: Envelope) -> str:
    name = escape(envelope.subject or str(envelope.data.get("app", "")))
    return f"[quiet]{time.strftime('%H:%M:%S')}[/]  [name]{name:<16}[/] {_what(envelope)}"


def _what(envelope: Envelope) -> str:
    data = {key: escape(str(value)) for key, value in envelope.data.items() if value is not None}
    saga = f"[quiet]{envelope.correlationid}[/]"
    match envelope.type:
        case "DeploymentRequested":
            return f"{data['trigger']} {short(data.get('commit')) or 'upload'} {saga}"
        case "ReleaseDeployed":
            return f"release {data['number']} runs at [address]{data['url']}[/]"
        case "DeploymentSucceeded":
            return f"[good]{data['saga']} done[/] {saga}"
    where = f" at {data['step']}" if "step" in data else ""
    return f"[undo]{data['saga']} undone[/] ({data['reason']}{where}) {saga}"
