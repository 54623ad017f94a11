"""A coordinator in this process, and whoever answers it: at once, or through the kernel as the real services do.

`Instant` participants keep nothing: what is measured is the coordinator, one durable commit a step. Participants of the
kernel have a database each, an inbox, a job and an outbox: what `knarr up` costs apart from the work itself, three
durable commits a step.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import structlog
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import MetaData

from seedwork.adapters.in_process import InProcessBus
from seedwork.bus import Bus
from seedwork.clock import SystemClock
from seedwork.messages import Command, Envelope, Event, Message, UndoneEvent, envelope, new_id
from seedwork.outbox import Outbox, Relay
from seedwork.participant import Participant, Work
from seedwork.saga import Step
from seedwork.tables import kernel_tables
from seedwork.unit_of_work import Database
from services.builder.contract import BuildImage, DiscardBuild
from services.deployer.contract import (
    DeployRelease,
    ObserveRelease,
    ReleaseDeployFailed,
    RollBackRelease,
    StopObserving,
)
from services.registry.contract import PublishImage, UnpublishImage
from services.saga_coordinator.app import create_app
from services.saga_coordinator.contract import DeploymentFailed, DeploymentSucceeded
from services.saga_coordinator.sagas import DEPLOY
from services.saga_coordinator.settings import CoordinatorSettings
from services.source.contract import DiscardSource, FetchSource
from services.webhook.contract import DeploymentRequested

Kind = Literal["instant", "kernel"]

COMMANDS: Mapping[str, tuple[type[Command], type[Command]]] = {
    "source": (FetchSource, DiscardSource),
    "build": (BuildImage, DiscardBuild),
    "publish": (PublishImage, UnpublishImage),
    "deploy": (DeployRelease, RollBackRelease),
    "observe": (ObserveRelease, StopObserving),
}
"""What each step sends, forward and back."""
STEPS: Mapping[str, Step] = {step.name: step for step in DEPLOY.steps}
FAILING = "deploy"
"""The step that fails where everything is undone."""
FAILS = ReleaseDeployFailed(retryable=False, code="unhealthy", message="It does not answer.")


def check_participants(commands: Mapping[str, tuple[type[Command], type[Command]]] = COMMANDS) -> None:
    """Check that every step of a deployment has a participant: a saga without one would never end.

    Raises:
        RuntimeError: One has none, or one that takes another command.
    """
    for name, step in STEPS.items():
        sent = get_type_hints(step.send).get("return")
        if name not in commands:
            raise RuntimeError(f"the step {name!r} of a deployment has no participant in the measurements: add {sent}")
        if commands[name][0] is not sent:
            raise RuntimeError(f"the step {name!r} sends {sent}, and its participant takes {commands[name][0]}")


def steps_of(sagas: int, *, fail: bool) -> int:
    """Return how many commands these sagas have answered: undos count, too."""
    return sagas * (2 * (list(STEPS).index(FAILING) + 1) if fail else len(STEPS))


def quiet() -> None:
    """Warnings only, and not between the figures."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30), logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )


class Trips:
    """When each saga's commands arrive; from one to the next is a round trip: answer, decision, commit, command."""

    def __init__(self) -> None:
        self.taken_ms: list[float] = []
        self._last: dict[str, float] = {}

    def arrived(self, saga_id: str) -> None:
        """A command of that saga is here."""
        now = time.perf_counter()
        before = self._last.get(saga_id)
        if before is not None:
            self.taken_ms.append((now - before) * 1000)
        self._last[saga_id] = now

    def forget(self) -> None:
        """Begin anew."""
        self.taken_ms.clear()
        self._last.clear()


class Instant:
    """Answers without keeping anything.

    Args:
        bus: Where answers go.
        fail: Whether the last step fails, so that everything is undone.
        trips: Whom to tell of each command.
    """

    def __init__(self, bus: Bus, *, fail: bool, trips: Trips) -> None:
        self._bus = bus
        self._trips = trips
        self._answering: set[asyncio.Task[None]] = set()
        self._answers: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for name, (forward, back) in COMMANDS.items():
            step = STEPS[name]
            ok: Message = FAILS if fail and name == FAILING else step.ok.example()
            self._answers[forward.__name__] = _prepared(ok)
            if step.undone is not None:
                self._answers[back.__name__] = _prepared(step.undone.example())

    async def join(self) -> None:
        """Take commands from now on."""
        await self._bus.subscribe("participants", [each for pair in COMMANDS.values() for each in pair], self._take)

    async def _take(self, commands: Sequence[Envelope]) -> None:
        for each in commands:
            self._trips.arrived(each.correlationid)
        task = asyncio.create_task(self._bus.publish([self._answer(each) for each in commands]))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def _answer(self, command: Envelope) -> Envelope:
        kind, data = self._answers[command.type]
        return Envelope(
            id=new_id(),
            source="/bench",
            type=kind,
            time=command.time,
            correlationid=command.correlationid,
            appid=command.appid,
            data=data,
            causationid=command.id,
            sagastep=command.sagastep,
            sagaattempt=command.sagaattempt,
        )


def _prepared(message: Message) -> tuple[str, Mapping[str, Any]]:
    return type(message).__name__, message.model_dump(mode="json")


class Halts:
    """Where work never comes to an end: in one step of each saga, about a fifth of them in each."""

    def __init__(self) -> None:
        self.halted: set[str] = set()

    async def at(self, step: str, saga_id: str) -> None:
        """Wait for ever, if it is this step."""
        if list(COMMANDS)[int(saga_id[-1], 16) % len(COMMANDS)] == step:
            self.halted.add(saga_id)
            await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def kernel_participant(
    name: str, url: str, bus: Bus, *, fail: bool, trips: Trips, halts: Halts | None, slots: int
) -> AsyncIterator[None]:
    """A step's participant with a database of its own, as in `Service`; its handler does nothing.

    Args:
        name: The step's name, under which it subscribes.
        url: Of the database; its tables are made, if they are not there.
        bus: Where commands come from.
        fail: Whether the last step fails.
        trips: Whom to tell of each command.
        halts: Work that never ends.
        slots: How many handlers may be at work.
    """
    step, (forward, back) = STEPS[name], COMMANDS[name]
    metadata = MetaData()
    tables = kernel_tables(metadata)
    clock = SystemClock()
    db = Database(url)
    await db.open()
    await db.write(lambda conn: conn.run_sync(metadata.create_all))
    outbox = Outbox(tables, clock)
    participant = Participant(name, db=db, tables=tables, bus=bus, clock=clock, outbox=outbox)
    answer: Event = FAILS if fail and name == FAILING else step.ok.example()

    async def work_on(_command: Command, *, work: Work) -> Event:
        trips.arrived(work.saga_id)
        if halts is not None:
            await halts.at(name, work.saga_id)
        return answer

    async def undo(_command: Command, *, work: Work) -> UndoneEvent:
        trips.arrived(work.saga_id)
        return UndoneEvent.model_validate({}) if step.undone is None else _undone(step.undone)

    participant.step(
        forward, work_on, ok=step.ok, failed=step.failed, undo=back, undo_handler=undo,
        undone=_kind_of_undone(step), slots=slots,
    )  # fmt: skip
    await participant.subscribe()
    tasks = [asyncio.create_task(each) for each in (participant.run(), Relay(db, tables, bus, clock, outbox).run())]
    try:
        yield
    finally:
        await participant.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await db.close()


def _kind_of_undone(step: Step) -> type[UndoneEvent]:
    if step.undone is None or not issubclass(step.undone, UndoneEvent):
        raise TypeError(f"step {step.name} has no undo")
    return step.undone


def _undone(kind: type[Event]) -> UndoneEvent:
    example = kind.example()
    if not isinstance(example, UndoneEvent):
        raise TypeError(f"{kind.__name__} answers no undo")
    return example


class Audience:
    """Starts deployments, and hears of their ends."""

    def __init__(self, bus: Bus, trips: Trips) -> None:
        self.bus = bus
        self.trips = trips
        self._ends: dict[str, asyncio.Future[str]] = {}
        self._starts: list[Envelope] = []
        self._publishing: asyncio.Task[None] | None = None

    async def _heard(self, events: Sequence[Envelope]) -> None:
        for each in events:
            end = self._ends.pop(each.correlationid, None)
            if end is not None and not end.done():
                end.set_result(each.type)

    async def listen(self) -> None:
        """Hear of every end."""
        await self.bus.subscribe("audience", [DeploymentSucceeded, DeploymentFailed], self._heard)

    async def saga(self) -> str:
        """One deployment from its beginning to its end, of an app of its own."""
        made = start()
        end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._ends[made.correlationid] = end
        self._starts.append(made)
        if self._publishing is None or self._publishing.done():
            self._publishing = asyncio.create_task(self._publish())
        return await end

    async def _publish(self) -> None:
        """What begins at the same time goes out together, as from an outbox."""
        while self._starts:
            starts, self._starts = self._starts, []
            await self.bus.publish(starts)

    async def sagas(self, count: int, in_flight: int) -> None:
        """So many, of which so many at a time."""
        left = iter(range(count))

        async def one_after_the_other() -> None:
            for _ in left:
                await self.saga()

        await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))


class Orchestra(Audience):
    """A running coordinator in this process, and everybody else."""

    def __init__(self, app: FastAPI, bus: Bus, trips: Trips) -> None:
        super().__init__(bus, trips)
        self.app = app


def start() -> Envelope:
    """What starts a deployment of a new app."""
    return envelope(DeploymentRequested.example(), source="bench", saga_id=new_id(), app_id=new_id(), app="shop")


@contextlib.asynccontextmanager
async def orchestra(
    home: Path, kind: Kind, *, fail: bool = False, halts: Halts | None = None, slots: int = 1000
) -> AsyncIterator[Orchestra]:
    """Start all of it in a folder, stop it at the end.

    Args:
        home: Empty, or of an earlier life.
        kind: Who answers.
        fail: Whether the last step fails, so that everything is undone.
        halts: Work that never ends; participants of the kernel have it.
        slots: How many handlers of a step may be at work; participants of the kernel have a limit.

    Raises:
        RuntimeError: A step has no participant.
    """
    check_participants()
    bus, trips = InProcessBus(), Trips()
    settings = CoordinatorSettings(home=home, token=SecretStr("bench"), _env_file=None)
    app = create_app(settings, bus=bus)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        if kind == "instant":
            await Instant(bus, fail=fail, trips=trips).join()
        else:
            for name in COMMANDS:
                url = f"sqlite+aiosqlite:///{home / name}.db"
                participant = kernel_participant(name, url, bus, fail=fail, trips=trips, halts=halts, slots=slots)
                await stack.enter_async_context(participant)
        all_of_it = Orchestra(app, bus, trips)
        await all_of_it.listen()
        await bus.open()
        yield all_of_it
        await bus.close()
