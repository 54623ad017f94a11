"""Containers of a release: made, started and judged by what they do until their checks have passed."""

import asyncio
from collections.abc import Callable, Sequence

from seedwork.errors import Conflict, NotFound, Unavailable
from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.answering import Answering
from services.deployer.adapters.docker.engine import CannotStart, Container, Engine
from services.deployer.adapters.docker.networks import Networks
from services.deployer.adapters.docker.options import Options
from services.deployer.adapters.docker.volumes import mounts
from services.deployer.adapters.images import Pullable, port_of, runnable_anywhere
from services.deployer.adapters.lines import blotted
from services.deployer.adapters.probe import REFUSED
from services.deployer.checks import Check
from services.deployer.errors import AppDoesNotStart
from services.deployer.ports import Release

AGAIN = "Run the image on your machine with PORT set to see the same."
TAIL_LINES = 50
_LOOK_S = 0.1
_KILLED = 137
"""128 and SIGKILL; engines before 23 do not always say that it was for its memory."""
_SHELL_WORDS = {126: "the program cannot be run", 127: "there is no such program"}
"""As shells and the init process in the container mean them."""


class Starting:
    """Makes, starts and judges containers.

    Args:
        engine: Runs them.
        networks: Of the apps.
        pullable: How the engine names images.
        answering: Makes the checks.
        options: How long, how much.
    """

    def __init__(
        self, engine: Engine, networks: Networks, pullable: Pullable, answering: Answering, options: Options
    ) -> None:
        self._engine = engine
        self._networks = networks
        self._pullable = pullable
        self._answering = answering
        self._options = options

    def reference(self, release: Release) -> str:
        """The release's image, as containers name it."""
        return self._pullable.reference(release.repository, release.digest)

    def name(self, release: Release, label: str) -> str:
        """Name of the container of that instance."""
        return spec.container_name(self._options.installation, release, label)

    def port(self, release: Release) -> int:
        """Where its web processes listen: as the app fixes it, else as the image says.

        Raises:
            CannotRun: It is no image for containers.
        """
        runnable_anywhere(release.image, runtime="docker")
        return release.port or port_of(release.image)

    async def create(
        self, release: Release, label: str, arguments: Sequence[str], *, step: str, shown_as: str = ""
    ) -> str:
        """Have the container of that instance; its id. One that only has its name is replaced.

        Args:
            release: What it is of.
            label: `web.1`; makes its name.
            arguments: Its program.
            step: What it is for.
            shown_as: What listings and itself call it, in place of the label.
        """
        options = self._options
        name = self.name(release, label)
        reference = self.reference(release)
        config = spec.instance(
            options.installation,
            release,
            shown_as or label,
            arguments,
            step=step,
            image=reference,
            port=self.port(release),
            network=await self._networks.of_app(release.app_id, release.app, release.team),
            bounds=options.bounds,
            mounts=mounts(options.installation, release),
        )
        if step != "deploy":  # an interrupted one's container says nothing
            await self._engine.remove(name)
        try:
            made = await self._engine.create(name, config)
            known = await self._engine.container(made)
            if known is not None and (known.labels.get(spec.SAGA) != release.saga_id or known.image != reference):
                await self._engine.remove(known.id)
                made = await self._engine.create(name, config)
        except NotFound as error:
            raise Unavailable("The image went away before its container was made", why=error.why) from error
        return made

    async def start_one(self, release: Release, label: str) -> None:
        """Have that instance run; one that runs stays as it is.

        Raises:
            AppDoesNotStart: The engine cannot start the image in this way.
        """
        container_id = await self.create(release, label, release.processes[spec.process_of(label)], step="deploy")
        known = await self._engine.container(container_id)
        if known is not None and known.status in {"running", "restarting"}:
            return
        if known is not None and known.status == "paused":
            await self._engine.resume(container_id)
            return
        try:
            await self._engine.start(container_id)
        except CannotStart as error:
            await self._engine.remove(container_id)
            raise AppDoesNotStart(f"{label} cannot be started", why=error.why, todo=AGAIN) from error

    async def prove(
        self, container: Container, release: Release, notes: dict[str, str], *, wanted: Callable[[], bool]
    ) -> None:
        """Wait until its checks have passed.

        Args:
            container: Was started.
            release: What it is of.
            notes: Gets what is waited for, by instance.
            wanted: Whether the release was not stopped meanwhile.

        Raises:
            AppDoesNotStart: It ended, or its time is over.
            Unavailable: Its container was removed outside of knarr.
        """
        label = container.labels[spec.PROCESS]
        loop = asyncio.get_running_loop()
        began = loop.time()
        image = await self._engine.image(container.image)
        while True:
            known = await self._engine.container(container.id)
            if known is None:
                raise _gone(label, wanted=wanted())
            if image is None or known.image_id != image["Id"]:
                raise AppDoesNotStart(f"{label} does not run the image {release.digest}", why=f"but {known.image_id}")
            if known.status in {"exited", "dead"}:
                raise await self.ended(known, release, answered=False)
            fault = await self._answering.ask(known) if known.runs else f"it is {known.status}"
            if fault is None:
                notes.pop(label, None)
                return
            notes[label] = f"{label}: {fault}"
            if late := self._answering.late(known, loop.time() - began):
                raise await self._not_ready(known, release, *late)
            await asyncio.sleep(_LOOK_S)

    async def keep(self, container: Container, release: Release) -> None:
        """From now on the engine starts it again; it has not ended in between.

        Raises:
            AppDoesNotStart: It has.
        """
        await self._engine.keep_running(container.id)
        known = await self._engine.container(container.id)
        if known is None or known.status in {"exited", "dead"}:
            raise await self.ended(known or container, release, answered=True)

    async def ended(self, container: Container, release: Release, *, answered: bool) -> AppDoesNotStart:
        """The verdict on a container that ended by itself."""
        tail = await self.tail(container.id, release)
        why = "its last lines say more" if tail else "it printed nothing"
        if container.out_of_memory or container.exit_code == _KILLED:
            sure = "it" if container.out_of_memory else "perhaps it"
            mib = self._options.bounds.memory_bytes // 2**20
            why = f"{sure} used more than its {mib} MiB of memory (KNARR_APP_MEMORY_MB); {why}"
        when = "" if answered else " before it answered" if container.labels.get(spec.PORT) else " at once"
        return AppDoesNotStart(f"{how_it_ended(container)}{when}", why=why, todo=AGAIN, log_tail=tail)

    async def tail(self, container_id: str, release: Release) -> tuple[str, ...]:
        """Its last lines, without values of config vars."""
        return blotted(await self._engine.tail(container_id, TAIL_LINES), release.env.values())

    async def _not_ready(self, container: Container, release: Release, check: Check, fault: str) -> AppDoesNotStart:
        label, port = container.labels[spec.PROCESS], container.labels.get(spec.PORT)
        elsewhere = self._answering.elsewhere(container)
        instead = elsewhere.fault(label, int(port)) if elsewhere and port else None
        if fault == REFUSED and check.port is None:
            what, todo = instead or (
                f"{label} refuses connections on PORT ({port})",
                "Make it listen on 0.0.0.0 and on the port that the environment variable PORT names.",
            )
        elif check.path is not None and fault != REFUSED:
            what = f"{label} listens on {check.port or 'PORT'}, but {fault}"
            todo = "Make the path of its health check answer 2xx or 3xx, or change the check in app.json."
        else:
            what = f"{label} does not pass {check.what}: {fault}"
            todo = "Make its health check pass, or change the check in app.json."
        return AppDoesNotStart(
            what,
            why=f"waited {check.budget_s:g} s for it",
            todo=f"{todo} If it only needs longer, set KNARR_START_TIMEOUT_S higher.",
            log_tail=await self.tail(container.id, release),
        )


def how_it_ended(container: Container) -> str:
    """In words, with its name."""
    how = f"exited with status {container.exit_code}"
    if container.exit_code in _SHELL_WORDS:
        how = f"{how} ({_SHELL_WORDS[container.exit_code]})"
    elif container.exit_code > 128:
        how = f"was ended by signal {container.exit_code - 128}"
    return f"{container.labels[spec.PROCESS]} {'ran out of memory' if container.out_of_memory else how}"


def _gone(label: str, *, wanted: bool) -> Conflict | Unavailable:
    if not wanted:
        return Conflict("The release was stopped meanwhile", why=f"the container of {label} is gone")
    return Unavailable(
        f"The container of {label} was removed outside of knarr",
        why="the engine does not have it any more",
        todo="It is made again at the next attempt.",
    )
