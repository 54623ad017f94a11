"""The coordinator as an app, with participants that do what a test tells them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from pydantic import SecretStr

from seedwork.access import EVERY_TEAM
from seedwork.adapters.in_process import InProcessBus
from seedwork.messages import Command, Envelope, Event, Message, envelope, new_id
from seedwork.saga import Definitions, Saga
from seedwork.testing.http import running
from services.saga_coordinator import api
from services.saga_coordinator.app import create_app
from services.saga_coordinator.feed import Feed
from services.saga_coordinator.sagas import DEFINITIONS, DEPLOY
from services.saga_coordinator.settings import CoordinatorSettings

TOKEN = "operator"
APP_ID = "0192f0c1-2345-7abc-8def-0123456789ab"

Answer = Callable[[Envelope], Message | None]


class Participants:
    """Every other service: answers each command with its success, or with what the test says; remembers all."""

    def __init__(self, definitions: Definitions, keys: Sequence[str]) -> None:
        self.commands: list[Envelope] = []
        self.events: list[Envelope] = []
        self.answers: dict[str, Answer] = {}
        """By command type; None as the answer: silence."""
        self._steps = {step.name: step for key in keys for step in definitions[key].steps}
        self._by_saga = {(definitions[key].name, step.name): step for key in keys for step in definitions[key].steps}
        self._bus: InProcessBus | None = None

    async def join(self, bus: InProcessBus, commands: Sequence[type[Command]], events: Sequence[type[Event]]) -> None:
        self._bus = bus
        await bus.subscribe("participants", commands, self._take)
        await bus.subscribe("audience", events, self._hear)

    async def _hear(self, envelopes: Sequence[Envelope]) -> None:
        self.events += envelopes

    async def _take(self, envelopes: Sequence[Envelope]) -> None:
        self.commands += envelopes
        answers = [answer for each in envelopes if (answer := self.answer(each)) is not None]
        if answers:
            asyncio.get_running_loop().create_task(self.say(answers))

    async def say(self, answers: Sequence[Envelope]) -> None:
        assert self._bus is not None
        await self._bus.publish(answers)

    def answer(self, command: Envelope) -> Envelope | None:
        step = self._steps[command.sagastep or ""]
        if command.type in self.answers:
            message = self.answers[command.type](command)
        elif step.undone is not None and command.type.startswith(("Discard", "Unpublish", "RollBack", "Stop")):
            message = step.undone.example()
        else:
            message = step.ok.example()
        return reply(message, command) if message is not None else None


def reply(message: Message, command: Envelope) -> Envelope:
    """An answer to this command."""
    return envelope(
        message,
        source="test",
        saga_id=command.correlationid,
        app_id=command.appid,
        step=command.sagastep,
        attempt=command.sagaattempt,
        causation_id=command.id,
    )


@dataclass
class Stage:
    """A running coordinator and everybody else."""

    bus: InProcessBus
    client: httpx2.AsyncClient
    participants: Participants
    app: Any
    started: list[str] = field(default_factory=list)

    async def start(self, definition: Saga, *, app_id: str = APP_ID, saga_id: str | None = None, **data: Any) -> str:
        """A starting event; the saga's id."""
        message = definition.starts_on.model_validate({**definition.starts_on.EXAMPLE, **data})
        made = envelope(message, source="test", saga_id=saga_id or new_id(), app_id=app_id, app="shop")
        await self.bus.publish([made])
        self.started.append(made.correlationid)
        return made.correlationid

    async def get(self, path: str, **params: Any) -> Any:
        """What a route answers."""
        response = await self.client.get(path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    async def heard(self) -> list[Envelope]:
        """What the audience heard so far; it leaves after the commit."""
        return self.participants.events

    async def until(self, saga_id: str, *states: str) -> Any:
        """The saga, once it is in one of these states."""
        return await eventually(lambda: self._in(saga_id, states))

    async def _in(self, saga_id: str, states: Sequence[str]) -> Any:
        saga = await self.get(f"/sagas/{saga_id}")
        return saga if saga["state"] in states else None


async def eventually(look: Callable[[], Awaitable[Any]], *, within_s: float = 20.0) -> Any:
    """The first answer of `look` that says something."""
    async with asyncio.timeout(within_s):
        while not (found := await look()):  # noqa: ASYNC110  what is looked at lives behind HTTP
            await asyncio.sleep(0.01)
        return found


async def building(stage: Stage, **data: Any) -> str:
    """A saga whose build does not answer."""
    stage.participants.answers["BuildImage"] = lambda _: None
    saga_id = await stage.start(DEPLOY, **data)

    async def sent() -> bool:
        return any(each.type == "BuildImage" and each.correlationid == saga_id for each in stage.participants.commands)

    await eventually(sent)
    return saga_id


async def follow(stage: Stage, saga_id: str, after: int) -> AsyncIterator[dict[str, Any]]:
    """Events of its stream as dicts, without heartbeats."""
    feed: Feed = stage.app.state.feed
    async for text in api._events(stage.app.state.service.db, feed, saga_id, after, EVERY_TEAM):
        lines = dict(line.split(": ", 1) for line in text.decode().splitlines() if not line.startswith(":") and line)
        if lines:
            event: dict[str, Any] = {"event": lines["event"], "data": orjson.loads(lines["data"])}
            yield event | ({"id": int(lines["id"])} if "id" in lines else {})


Staging = Callable[..., Any]


@pytest.fixture
def stage_at(tmp_path: Path) -> Staging:
    """Starts a coordinator on this test's home; again on the same home for a restart."""

    @asynccontextmanager
    async def start(
        definitions: Definitions = DEFINITIONS,
        keys: Sequence[str] = ("deploy@4", "release@4", "rebase@1", "remove@1"),
        commands: Sequence[type[Command]] | None = None,
        **settings: Any,
    ) -> AsyncIterator[Stage]:
        bus = InProcessBus()
        participants = Participants(definitions, keys)
        app = create_app(
            CoordinatorSettings(home=tmp_path, token=SecretStr(TOKEN), test_endpoints=True, **settings),
            bus=bus,
            definitions=definitions,
        )
        async with running(app, token=TOKEN) as client:
            await participants.join(bus, commands or COMMANDS, EVENTS)
            await bus.open()
            yield Stage(bus, client, participants, app)

    return start


@pytest.fixture
async def stage(stage_at: Staging) -> AsyncIterator[Stage]:
    """A coordinator with knarr's own sagas."""
    async with stage_at() as started:
        yield started


def _commands() -> list[type[Command]]:
    from services.builder.contract import BuildImage, DiscardBuild, RebaseImage
    from services.deployer.contract import DeployRelease, ObserveRelease, RetireApp, RollBackRelease, StopObserving
    from services.registry.contract import DropImages, PublishImage, UnpublishImage
    from services.source.contract import DiscardSource, FetchSource

    return [
        FetchSource,
        DiscardSource,
        BuildImage,
        RebaseImage,
        DiscardBuild,
        PublishImage,
        UnpublishImage,
        ObserveRelease,
        StopObserving,
        DeployRelease,
        RollBackRelease,
        RetireApp,
        DropImages,
    ]


def _events() -> list[type[Event]]:
    from services.saga_coordinator.contract import DeploymentFailed, DeploymentSucceeded

    return [DeploymentSucceeded, DeploymentFailed]


COMMANDS = _commands()
EVENTS = _events()
