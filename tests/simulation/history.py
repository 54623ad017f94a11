"""Runs a plan: everything happens, then the faults end, people see to what waits for them, and all must come to an end.

`run` gives back what was violated, and figures. The invariants, at each commit (see `watch.py` and
`reference_model.py`) and once all is over:

- every push that was accepted has its saga, and each saga ends, once;
- paths are legal, undos go last-in-first-out over every step ever sent, the log has no gaps and replays to the state;
- no forward effect stays after its undo; a saga that succeeded runs what was built from its commit;
- lanes are never shared and never forgotten; an older fence never wins;
- bytes exist while somebody refers to them, and go afterwards;
- leases are never stolen, outcomes never replaced; the audit finds nothing; no exception was unplanned.
"""

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import orjson

from seedwork.access import Caller
from seedwork.errors import KnarrError
from seedwork.messages import Envelope, Event, envelope, new_id
from seedwork.saga_records import from_json, replay
from seedwork.testing.saga import without_reports
from seedwork.testing.simulated_bus import BusFaults
from seedwork.testing.simulated_database import DatabaseFaults, end_storage
from seedwork.testing.simulated_loop import SimulatedLoop, Stalled
from services.saga_coordinator.sagas import DEFINITIONS
from services.saga_coordinator.store import lane_from_json
from services.webhook.contract import AppRemovalRequested, DeploymentRequested
from tests.simulation.cluster import Cluster, Running, simulated
from tests.simulation.plans import (
    APPS,
    Ask,
    Crash,
    Happening,
    Jump,
    Outage,
    PauseProcess,
    Plan,
    Press,
    Push,
    Remove,
    Storm,
)
from tests.simulation.reference_model import LogEntry, SagaModel
from tests.simulation.world import image_config

PATIENCE_S = 3600.0
"""Virtual time within which all sagas must have ended once the faults are over."""
HOUR_S = 240.0
"""Where clocks have jumped, what was set while they were wrong is an hour late; after so long the hour has passed."""
CLEAN_S = 1800.0
"""And then nothing may be left behind after this."""
LOOK_S = 10.0
OPERATOR = Caller(name="ingrid", team="default", scopes=frozenset({"admin"}))


@dataclass(slots=True)
class Outcome:
    """What came of a history."""

    plan: Plan
    sagas: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    turns: int = 0
    virtual_s: float = 0.0
    real_s: float = 0.0

    def __str__(self) -> str:
        """For people."""
        lines = [f"{self.sagas} sagas in {self.virtual_s:.0f} s of virtual time, {self.turns} turns"]
        lines += [f"  {kind}: {count}" for kind, count in sorted({**self.ends, **self.faults}.items())]
        lines += [f"VIOLATED  {each}" for each in self.violations]
        return "\n".join(lines)


class Violated(AssertionError):
    """An invariant does not hold; the text tells the history."""

    def __init__(self, outcome: Outcome) -> None:
        text = [*outcome.violations, "", f"replay it: simulate({outcome.plan!r})", "", *outcome.history]
        super().__init__("\n".join(text))


def simulate(plan: Plan) -> Outcome:
    """Run it.

    Raises:
        Violated: An invariant does not hold.
    """
    outcome = run(plan)
    if outcome.violations:
        raise Violated(outcome)
    return outcome


def run(plan: Plan) -> Outcome:
    """Run it; what was violated is in the outcome."""
    with _folder() as folder:
        return _run(plan, folder)


def _run(plan: Plan, folder: Path) -> Outcome:
    began = time.perf_counter()
    loop = SimulatedLoop(plan.seed)
    cluster = Cluster(loop, folder, laptop=plan.laptop, hold_s=plan.hold_s)
    history = History(plan, cluster)
    with simulated(cluster.world.violated, loop):
        try:
            loop.run_to_end(history.play())
        except Stalled as error:
            cluster.world.violated(str(error))
        finally:
            end_storage(loop)
    for fault in loop.faults:
        cluster.world.violated(f"nobody caught: {fault}")
    outcome = history.outcome
    outcome.violations = cluster.world.violations
    outcome.history = cluster.world.history
    outcome.turns, outcome.virtual_s, outcome.real_s = loop.turns, loop.time(), time.perf_counter() - began
    return outcome


@contextmanager
def _folder() -> Iterator[Path]:
    """Of a history, in memory where the machine has such a place; it is gone afterwards."""
    memory = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it
    base = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="knarr-simulation-", dir=base) as folder:
        yield Path(folder)


class History:
    """One plan and its cluster."""

    def __init__(self, plan: Plan, cluster: Cluster) -> None:
        self.plan = plan
        self.cluster = cluster
        self.loop = cluster.loop
        self.world = cluster.world
        self.outcome = Outcome(plan)
        self.app_ids = [f"0192f0c1-0000-7000-8000-00000000000{i}" for i in range(APPS)]
        self.numbers = [0] * APPS
        self.accepted: dict[str, int] = {}
        """Pushes and requests that were accepted: app by saga."""
        self.pushed: dict[str, str] = {}
        """Commit by saga."""
        self.removed: set[int] = set()
        self.counted: dict[str, int] = {}
        self._hour_at = 0.0
        self._deliveries: list[asyncio.Task[Any]] = []
        cluster.watch.on_entry = self._look_at

    def count(self, kind: str) -> None:
        """One more fault."""
        self.counted[kind] = self.counted.get(kind, 0) + 1

    async def play(self) -> None:
        """From the beginning to the end."""
        self.cluster.declare()
        self.cluster.start_all()
        await asyncio.sleep(3.0)
        self._begin_weather()
        for happening in self.plan.happenings:
            await asyncio.sleep(happening.gap_s)
            self._happen(happening)
        await asyncio.sleep(5.0)
        await self._end()

    def _begin_weather(self) -> None:
        weather = self.plan.weather
        rate = weather.messages / 100
        self.cluster.broker.faults = BusFaults(
            refused=rate, unheard=rate, twice=rate, late=rate / 2, unacknowledged=rate
        )
        rate = weather.database / 100
        for file in self.cluster.files.values():
            file.faults = DatabaseFaults(
                refused=rate,
                commit_refused=rate,
                commit_unheard=0.0 if self.plan.laptop else rate,  # a file's commit is done or refused
                slow=rate / 4,
            )
        self.world.faults.world = weather.world / 100

    def _happen(self, what: Happening) -> None:
        happen: dict[type[Happening], Callable[[Any], None]] = {
            Push: self._push,
            Storm: self._storm,
            Press: self._press,
            Ask: self._ask,
            Crash: self._crash,
            PauseProcess: self._pause,
            Jump: self._jump,
            Outage: self._outage,
            Remove: self._remove,
        }
        happen[type(what)](what)

    # ------------------------------------------------------------------------------------------ what happens

    def _storm(self, storm: Storm) -> None:
        for i in range(storm.pushes):
            self._push(Push(i % APPS, fates=() if i % 3 else storm.fates))

    def _push(self, push: Push) -> None:
        if push.app in self.removed:
            return
        repository = f"acme/{push.app % 3}"
        known = self.world.origin.commits.get(repository)
        commit = known[-1] if known and push.again else self.world.origin.push(repository)
        self.numbers[push.app] += 1
        saga_id = new_id()
        for fate in push.fates:
            self.world.fates[saga_id, fate.step, fate.undo] = fate
        self.world.say(f"push {self.numbers[push.app]} of app {push.app}: saga {saga_id}, {commit[:7]} {push.fates}")
        self.pushed[saga_id] = commit
        self._accept(
            saga_id,
            push.app,
            DeploymentRequested(
                app=f"app{push.app}",
                repository=repository,
                clone_url="https://example.org/it.git",
                ref="refs/heads/main",
                commit=commit,
                trigger="push",
                number=self.numbers[push.app],
            ),
        )

    def _accept(self, saga_id: str, app: int, event: Event) -> None:
        """Stored, so it must reach the coordinator, however often that has to be tried."""
        self.accepted[saga_id] = app
        message = envelope(event, source="webhook", saga_id=saga_id, app_id=self.app_ids[app], app=f"app{app}")
        self._deliveries.append(self.loop.create_task(self._publish(message)))

    async def _publish(self, message: Envelope) -> None:
        while True:
            try:
                if not self.cluster.laptop:
                    await self.cluster.broker.publish([message])
                elif not await self._publish_inside(message):
                    await asyncio.sleep(0.5)
                    continue
            except KnarrError:
                await asyncio.sleep(0.5)
            else:
                return

    async def _publish_inside(self, message: Envelope) -> bool:
        """By the one process, which may die meanwhile."""
        for running in list(self.cluster.running.values()):
            if running.bus is not None:
                return await self._within(running, partial(running.bus.publish, [message])) is not None
        return False

    async def _within(self, running: Running, work: Callable[[], Awaitable[Any]]) -> tuple[Any] | None:
        """Done in that process; None if it died over it."""
        over: asyncio.Future[tuple[Any] | None] = self.loop.create_future()

        async def inside() -> None:
            try:
                result = await work()
            except KnarrError as error:
                if not over.done():
                    over.set_exception(error)
            else:
                if not over.done():
                    over.set_result((result,))

        def died() -> None:
            if not over.done():
                over.set_result(None)

        running.process.on_death.append(died)
        running.process.spawn(inside())
        return await over

    def _some(self, has: Callable[[Running], bool]) -> Running | None:
        found = [each for each in self.cluster.running.values() if has(each) and not each.process.paused]
        return found[int(self.loop.chance.random() * len(found))] if found else None

    def _press(self, press: Press) -> None:
        known = self.cluster.watch.sagas
        under_way = sorted(saga_id for saga_id, model in known.items() if not model.ended)
        sagas = under_way if under_way and press.back % 4 else sorted(known)
        if sagas:
            saga_id = sagas[-1 - press.back % len(sagas)]
            self._deliveries.append(self.loop.create_task(self._pressed(saga_id, press)))

    async def _pressed(self, saga_id: str, press: Press) -> None:
        again = press.verb in {"retry", "compensate"} and self.cluster.watch.sagas[saga_id].state != "STUCK"
        if again and self._app_of(saga_id) in self.removed:
            return  # what belongs to a removed app is not deployed again; an undo of it goes on
        running = self._some(lambda each: each.engine is not None)
        if running is None or running.engine is None:
            return
        engine = running.engine
        self.count(f"operator: {press.verb}")
        try:
            await self._within(
                running,
                lambda: engine.press(
                    saga_id, press.verb, access=OPERATOR.access, who="ingrid", why="a simulation", force=press.force
                ),
            )
            self.world.say(f"{press.verb} of {saga_id}")
        except KnarrError as error:
            self.world.say(f"{press.verb} of {saga_id}: {error.what}")

    def _not_begun(self) -> dict[str, int]:
        """What was accepted and is not known to the coordinator: app by saga."""
        known = self.cluster.watch.sagas
        return {saga_id: app for saga_id, app in self.accepted.items() if saga_id not in known}

    def _app_of(self, saga_id: str) -> int:
        return self.app_ids.index(self.cluster.watch.app_of[saga_id])

    def _ask(self, ask: Ask) -> None:
        if ask.app not in self.removed:
            self._deliveries.append(self.loop.create_task(self._asked(ask)))

    async def _asked(self, ask: Ask) -> None:
        running = self._some(lambda each: each.requests is not None)
        if running is None or running.requests is None or running.rebase is None:
            return
        requests, rebase = running.requests, running.rebase
        before = self.query("deployer", "SELECT number FROM releases WHERE app_id = ? AND state = 'superseded'",
                            self.app_ids[ask.app])  # fmt: skip

        async def ask_it() -> Any:
            app = await requests.app(self.app_ids[ask.app], OPERATOR)
            match ask.what:
                case "config":
                    change: dict[str, str | None] = {"GREETING": str(self.loop.time())}
                    return await requests.change_config(app, change, OPERATOR)
                case "scale":
                    return await requests.scale(app, {"web": 1 + int(self.loop.chance.random() * 3)}, OPERATOR)
                case "restart":
                    return await requests.restart(app, OPERATOR)
                case "rebase":
                    return await rebase(app, OPERATOR)
                case "rollback":
                    number = before[int(self.loop.chance.random() * len(before))][0] if before else 1
                    return await requests.roll_back(app, number, OPERATOR)

        try:
            answer = await self._within(running, ask_it)
        except KnarrError as error:
            self.world.say(f"{ask.what} of app {ask.app}: {error.what}")
            return
        if answer is not None and answer[0].saga_id is not None:
            self.accepted[answer[0].saga_id] = ask.app
            self.world.say(f"{ask.what} of app {ask.app}: saga {answer[0].saga_id}")

    def _remove(self, remove: Remove) -> None:
        self._deliveries.append(self.loop.create_task(self._removed(remove)))

    async def _removed(self, remove: Remove) -> None:
        """Once all that was asked for has reached the coordinator; afterwards nothing more is accepted."""
        if remove.app in self.removed or self.numbers[remove.app] == 0:
            return
        self.removed.add(remove.app)
        while any(app == remove.app for app in self._not_begun().values()):  # noqa: ASYNC110  seen by a look at a table
            await asyncio.sleep(0.5)
        saga_id = new_id()
        self.count("app removed")
        self.world.say(f"app {remove.app} is removed: saga {saga_id}")
        self._accept(saga_id, remove.app, AppRemovalRequested(app=f"app{remove.app}"))

    def _name(self, number: int) -> str:
        names = self.cluster.names
        return names[number % len(names)]

    def _process(self, number: int) -> Running | None:
        return self.cluster.running.get(self._name(number))

    def _crash(self, crash: Crash) -> None:
        running = self._process(crash.process)
        if running is not None:
            self.count("kill -9")
            self.world.say(f"{running.process.name} is killed in {crash.turns} turns")
            running.process.dies_at = running.process.turns + crash.turns

    def _pause(self, pause: PauseProcess) -> None:
        running = self._process(pause.process)
        if running is not None:
            self.count("process paused")
            self.world.say(f"{running.process.name} stands still for {pause.seconds} s")
            self.cluster.pause(running.process.name, pause.seconds)

    def _jump(self, jump: Jump) -> None:
        self.count("clocks jump")
        name = None if jump.process is None else self._name(jump.process)
        self.world.say(f"the clock of {name or 'everybody'} jumps by {jump.hours} h, for {jump.lasting_s} s")
        self.cluster.jump(jump.hours, name)
        if jump.lasting_s:
            self.loop.call_later(jump.lasting_s, self.cluster.jump, -jump.hours, name)

    def _outage(self, outage: Outage) -> None:
        self.count(f"outage: {outage.what}")
        self.world.say(f"{outage.seconds} s of outage: {outage.what}")
        if outage.what == "broker":
            self.cluster.broker.refuses = True
        elif outage.what == "world":
            self.world.faults.world = 1.0
        elif outage.what == "slow":
            self.world.faults.all_slow = True
        else:
            for file in self.cluster.files.values():
                file.faults.refused = 1.0
        self.loop.call_later(outage.seconds, self._outage_over, outage)

    def _outage_over(self, outage: Outage) -> None:
        if outage.what == "broker":
            self.cluster.broker.refuses = False
        elif outage.what == "world":
            self.world.faults.world = self.plan.weather.world / 100
        elif outage.what == "slow":
            self.world.faults.all_slow = False
        else:
            for file in self.cluster.files.values():
                file.faults.refused = self.plan.weather.database / 100

    # ------------------------------------------------------------------------------------------ the end

    async def _end(self) -> None:
        await asyncio.sleep(max((each.seconds for each in self.plan.happenings if isinstance(each, Outage)), default=0))
        self.cluster.calm()
        self.world.say("the faults are over")
        end = self.loop.time() + PATIENCE_S
        self._hour_at = self.loop.time() + HOUR_S
        while open_ones := self._open():
            if self.loop.time() > end:
                self.world.violated(f"{len(open_ones)} sagas never end: {open_ones}; {self.waiting()}")
                break
            await self._see_to(open_ones)
            await asyncio.sleep(LOOK_S)
            self._pass_hours()
        await self._tidy()
        self._conclude()

    def _pass_hours(self) -> None:
        """An hour without anything to see, for everybody who waits by the clock."""
        jumped = any(isinstance(each, Jump) for each in self.plan.happenings)
        if jumped and self.loop.time() >= self._hour_at:
            self._hour_at = self.loop.time() + HOUR_S
            self.world.say("an hour passes")
            self.cluster.jump(1.0)

    def waiting(self) -> list[str]:
        """What is still on its way, for reports."""
        return self.cluster.broker.undelivered()

    def _open(self) -> dict[str, str]:
        known = self.cluster.watch.sagas
        lost = dict.fromkeys(self._not_begun(), "not known to the coordinator")
        return lost | {saga_id: model.state for saga_id, model in known.items() if not model.ended}

    async def _see_to(self, open_ones: dict[str, str]) -> None:
        """What a specialist does."""
        for saga_id, state in open_ones.items():
            verb = {"PAUSED": "resume", "STUCK": "retry"}.get(state)
            if verb is not None:
                await self._pressed(saga_id, Press(verb, 0))  # type: ignore[arg-type]  # both are verbs

    async def _tidy(self) -> None:
        """Sweepers and collectors get their time."""
        end = self.loop.time() + CLEAN_S
        while True:
            left = [*self._left_over()]
            if not left or self.loop.time() > end:
                break
            await asyncio.sleep(LOOK_S)
            self._pass_hours()
        for each in left:
            self.world.violated(each)

    def query(self, service: str, sql: str, *parameters: Any) -> list[Any]:
        """What stands in a database."""
        return self.cluster.query(service, sql, *parameters)

    def _left_over(self) -> Iterable[str]:
        """What should not be there any more, and what should but is not."""
        ended = {saga_id: model for saga_id, model in self.cluster.watch.sagas.items() if model.ended}
        skipped = {saga_id for saga_id, model in ended.items() if model.skipped}
        undone = {saga_id for saga_id, model in ended.items() if model.state == "COMPENSATED"} - skipped
        releases = {
            row[0]: (row[1], row[2], row[3])
            for row in self.query("deployer", "SELECT saga_id, app_id, state, digest FROM releases")
            if row[2] in {"pending", "live", "superseded"}
        }
        yield from self._left_by_undone(undone, releases)
        yield from self._bytes(skipped, releases)
        yield from self._what_runs(skipped, releases)
        yield from self._jobs()

    def _left_by_undone(self, undone: set[str], releases: dict[str, tuple[str, str, str]]) -> Iterable[str]:
        holders = {
            "an archive": {row[0] for row in self.query("source", "SELECT saga_id FROM archive_references")},
            "a staged image": {row[0] for row in self.query("builder", "SELECT saga_id FROM staged")},
            "an image": {row[0] for row in self.query("registry", "SELECT saga_id FROM image_references")},
            "a release": set(releases),
            "instances": set(self.world.runtime.running()),
        }
        for what, sagas in holders.items():
            for saga_id in sorted(sagas & undone):
                yield f"saga {saga_id} was undone and still has {what}"

    def _bytes(self, skipped: set[str], releases: dict[str, tuple[str, str, str]]) -> Iterable[str]:
        archives = {path.name for path in (self.cluster.folder / "archives" / "sha256").iterdir()}
        held = {row[0].removeprefix("sha256:") for row in self.query("source", "SELECT digest FROM archive_references")}
        if archives - held:
            yield f"{len(archives - held)} archives that nobody holds"
        kept = self.world.images.kept()
        wanted = {
            (row[0], row[1]): row[2]
            for row in self.query("registry", "SELECT repository, digest, saga_id FROM image_references")
        }
        staged = {
            (f"staging/{row[0]}", row[1]): row[2]
            for row in self.query("builder", "SELECT app_id, digest, saga_id FROM staged")
        }
        yield from (
            f"image {each} is there, and nobody holds it" for each in sorted(kept - wanted.keys() - staged.keys())
        )
        yield from (f"image {each} is held by {saga_id}, and is not there"
                    for each, saga_id in wanted.items() if each not in kept and saga_id not in skipped)  # fmt: skip
        holders = {row[0] for row in self.query("registry", "SELECT saga_id FROM image_references")}
        yield from (f"the image of {each} is not held" for each in sorted(releases.keys() - holders - skipped))
        yield from (
            f"saga {each} holds an image, and has no release that could want it"
            for each in sorted(holders - releases.keys() - skipped)
        )
        yield from (f"image {each} is still staged for {by}" for each, by in staged.items() if by not in skipped)

    def _what_runs(self, skipped: set[str], releases: dict[str, tuple[str, str, str]]) -> Iterable[str]:
        running = self.world.runtime.running()
        live = {saga_id: row for saga_id, row in releases.items() if row[1] == "live"}
        routes = dict(self.query("deployer", "SELECT app_id, saga_id FROM routes"))
        for saga_id, (app_id, _, digest) in live.items():
            if self.world.runtime.digest_of(saga_id) != digest:
                yield f"the live release of {saga_id} runs {self.world.runtime.digest_of(saga_id)}"
            if routes.get(app_id) != saga_id or self.world.runtime.serving.get(app_id) != saga_id:
                yield f"{saga_id} is live, but the traffic of {app_id} goes elsewhere"
        for app_id, saga_id in self.world.runtime.serving.items():
            if saga_id not in live:
                yield f"the traffic of {app_id} goes to {saga_id}, which is not live"
        yield from (f"{each} runs and is not live" for each in sorted(running.keys() - live.keys() - skipped))

    def _jobs(self) -> Iterable[str]:
        for service in ("source", "builder", "registry", "deployer"):
            sql = (
                "SELECT saga_id, step FROM jobs WHERE lease_owner IS NOT NULL OR (tombstone_ms IS NULL AND state IN"
                " ('queued', 'running')) OR undo_state IN ('queued', 'running')"
            )
            yield from (f"{service} still works on {row[1]} of {row[0]}" for row in self.query(service, sql))
            for row in self.query(service, "SELECT count(*) FROM outbox"):
                if row[0]:
                    yield f"{row[0]} messages stay in the outbox of {service}"

    def _conclude(self) -> None:
        """What can be said once everything has ended."""
        self._replays()
        for row in self.query("saga_coordinator", "SELECT app_id, body FROM lanes"):
            lane = lane_from_json(row[1])
            if lane.holder is not None or lane.waiting:
                self.world.violated(f"the lane of {row[0]} is not empty: {lane}")
        for row in self.query("saga_coordinator", "SELECT saga_id, kind FROM timers"):
            self.world.violated(f"a timer {row[1]} of {row[0]} stays")
        for service in self.cluster.files:
            for row in self.query(service, "SELECT type, saga_id, error FROM dead_letters"):
                self.world.violated(f"a dead letter in {service}: {row[0]} of {row[1]}: {row[2]}")
        self._figures()

    def _replays(self) -> None:
        columns = (
            "seq", "at_ms", "direction", "type", "message_id", "causation_id", "step", "attempt", "state", "payload",
            "context",
        )  # fmt: skip
        with sqlite3.connect(self.cluster.folder / "saga_coordinator.db") as conn:
            sagas = [from_json(*row) for row in conn.execute("SELECT origin, body FROM sagas")]
            sql = f"SELECT {', '.join(columns)} FROM saga_log WHERE saga_id = ? ORDER BY seq"  # noqa: S608  our columns
            for saga in sagas:
                entries = [dict(zip(columns, row, strict=True)) for row in conn.execute(sql, (saga.id,))]
                for entry in entries:
                    entry["payload"] = orjson.loads(entry["payload"])
                    entry["context"] = orjson.loads(entry["context"]) if entry["context"] else None
                states = replay(DEFINITIONS, saga.id, entries)
                if without_reports(states[-1]) != without_reports(saga):
                    self.world.violated(f"the log of {saga.id} leads to {states[-1]}, and its row is {saga}")
        conn.close()

    def _figures(self) -> None:
        outcome = self.outcome
        outcome.sagas = len(self.cluster.watch.sagas)
        for model in self.cluster.watch.sagas.values():
            outcome.ends[model.state] = outcome.ends.get(model.state, 0) + 1
        for counted in (self.counted, self.world.faults.counted, self.cluster.broker.counted,
                        *(file.counted for file in self.cluster.files.values())):  # fmt: skip
            for kind, count in counted.items():
                outcome.faults[kind] = outcome.faults.get(kind, 0) + count

    # ------------------------------------------------------------------------------------------ at each log entry

    def _look_at(self, entry: LogEntry, model: SagaModel) -> list[str]:
        """What the reference model cannot know: the world."""
        wrong: list[str] = []
        if entry.direction != "in" or model.undoing:
            return wrong
        if entry.type.endswith("Failed"):
            code = str(entry.payload.get("code"))
            if code not in EXPECTED:
                wrong.append(f"{entry.type} with the code {code}: {entry.payload.get('message')}")
        commit = self.pushed.get(entry.saga_id)
        if entry.type == "ReleaseDeployed" and commit is not None:
            wrong += self._observed(entry, self.cluster.watch.app_of[entry.saga_id], commit)
        return wrong

    def _observed(self, entry: LogEntry, app_id: str, commit: str) -> list[str]:
        """Status does not lie: what was built from the pushed commit."""
        digest = _built(image_config(app_id, commit))
        if entry.payload["digest"] != digest:
            return [f"{entry.payload['digest']} was deployed for the commit {commit}, whose image is {digest}"]
        return []


EXPECTED = {
    "planned", "unavailable", "fault", "superseded", "undone", "fenced", "timed_out", "worker_lost", "silent",
    "not_found", "conflict", "observe_failed",
}  # fmt: skip
"""Codes of failures that a history may bring about."""


@cache
def _built(config: bytes) -> str:
    from ocistore.manifest import draft

    return draft(config, ()).manifest_digest
