"""An event loop on virtual time that runs several simulated processes in one thread, in an order drawn from a seed.

Each process has a queue of its own, first come, first served, as a real event loop has; which process gets the next
turn is drawn. When nobody has anything to do, the clock jumps to the next timer. So an hour takes no time, and the same
seed gives the same history.

A process can be killed between any two of its turns, which means at every `await`: whatever it was doing is never heard
of again, not even its `finally`. It can be paused, as a machine is that swaps or a container that is frozen: time goes
on without it. What belongs to a process is found by a context variable, which tasks inherit.
"""

import asyncio
import contextvars
import heapq
import random
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

_TURN_S = 0.000_01
"""What a turn costs: time also passes where somebody is always busy."""
_LAST_ROUNDS = 1_000
"""How often the tasks of a world that has ended are asked to end."""

_process: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("simulated_process", default=None)


class Stalled(RuntimeError):
    """Everybody waits for something that will never come."""


class Process:
    """One process: its turns that are due, its tasks, and whether it lives."""

    def __init__(self, loop: "SimulatedLoop", name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.turns = 0
        """How many it has had."""
        self.dies_at: int | None = None
        """It is killed when it has had so many turns."""
        self.on_death: list[Callable[[], None]] = []
        """Called when it is killed: what the world around it notices."""
        self.ready: deque[asyncio.Handle] = deque()
        self.tasks: set[asyncio.Task[Any]] = set()
        """Those that have not ended; kept, so that none of a dead process is collected and cleans up."""
        self._loop = loop

    def __repr__(self) -> str:
        """For failure reports."""
        return f"<{self.name}>"

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run a coroutine as part of this process."""
        with self.entered():
            return self._loop.create_task(work, name=name)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What is begun in here belongs to this process."""
        token = _process.set(self)
        try:
            yield
        finally:
            _process.reset(token)

    def kill(self) -> None:
        """`kill -9`: no more turns, no clean-up."""
        if self.alive:
            self.alive = False
            self._loop.forget(self)
            for notice in self.on_death:
                notice()


def current_process() -> Process | None:
    """The one that runs now; None outside of all of them."""
    return _process.get()


class SimulatedLoop(asyncio.BaseEventLoop):
    """See above.

    Args:
        seed: Of everything that is left to chance; `chance` is for all who take part in the simulation.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.chance = random.Random(seed)  # noqa: S311  no secret
        self.turns = 0
        self.faults: list[str] = []
        """What was raised and nobody caught."""
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._ties = 0
        self._outside = Process(self, "outside")
        self._processes = [self._outside]
        self._buried: list[Process] = []
        self._over = False
        self._home = threading.get_ident()
        self.set_exception_handler(self._uncaught)
        self.set_task_factory(_make_task)

    def process(self, name: str) -> Process:
        """A new process."""
        made = Process(self, name)
        self._processes.append(made)
        return made

    def forget(self, process: Process) -> None:
        """A process was killed: it gets no turns any more."""
        self._processes.remove(process)
        self._buried.append(process)

    def time(self) -> float:
        """Virtual seconds since the beginning."""
        return self._now

    def run_to_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine outside of all processes; then end and close whatever is still there."""
        asyncio.set_event_loop(None)
        try:
            return self.run_until_complete(work)
        finally:
            self._end_everything()
            self.close()

    # ------------------------------------------------------------------------------------------ what asyncio calls

    def call_soon(  # type: ignore[override]  # without the types of `args`
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Queue a turn of the process to which the context belongs."""
        handle = asyncio.Handle(callback, args, self, context)
        self._owner(handle).ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]  # likewise
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Queue a turn for later."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._ties += 1
        heapq.heappush(self._timers, (when, self._ties, handle))
        return handle

    def call_later(  # type: ignore[override]  # likewise
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Queue a turn for later."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_soon_threadsafe(  # type: ignore[override]  # likewise
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """There are no threads in a simulation: their order could not be repeated."""
        if threading.get_ident() != self._home:
            raise RuntimeError("something in this simulation uses a thread")
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, *_: Any) -> Any:  # type: ignore[override]  # likewise
        """Likewise."""
        raise RuntimeError("something in this simulation uses a thread")

    def _timer_handle_cancelled(self, _handle: asyncio.TimerHandle) -> None:
        """It stays in the heap until its time has come."""

    def _process_events(self, _events: Any) -> None:
        """There is no input or output."""

    def _write_to_self(self) -> None:
        """Nobody wakes us."""

    def _run_once(self) -> None:
        """One turn of one process; if nobody has one, the next timer's time comes."""
        while True:
            if self._timers and self._timers[0][0] <= self._now:
                self._due()
            runnable = [each for each in self._processes if each.ready and not each.paused]
            if runnable:
                break
            self._jump()
        process = runnable[0] if len(runnable) == 1 else runnable[int(self.chance.random() * len(runnable))]
        handle = process.ready.popleft()
        self._now += _TURN_S
        self.turns += 1
        process.turns += 1
        if not handle._cancelled:  # noqa: SLF001  as every event loop looks at its handles
            handle._run()  # noqa: SLF001  likewise
        if process.dies_at is not None and process.turns >= process.dies_at:
            process.kill()

    # ------------------------------------------------------------------------------------------ its parts

    def _owner(self, handle: asyncio.Handle) -> Process:
        """A dead process keeps its turns, and never gets them."""
        process: Process | None = handle._context.get(_process)  # type: ignore[attr-defined]  # noqa: SLF001  see Handle._run
        return process or self._outside

    def _due(self) -> None:
        while self._timers and self._timers[0][0] <= self._now:
            handle = heapq.heappop(self._timers)[2]
            if not handle.cancelled():
                self._owner(handle).ready.append(handle)

    def _jump(self) -> None:
        if not self._timers:
            raise Stalled("everybody waits for something that will never come")
        self._now = max(self._now, self._timers[0][0])

    def _uncaught(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self._over:
            self.faults.append(f"{context.get('message')}: {context.get('exception')!r}")

    def _end_everything(self) -> None:
        """The world is over: let every task end, the dead ones too, by cancelling them until they do.

        What they do meanwhile is not part of the history any more.
        """
        self._over = True
        self._processes += self._buried
        for process in self._processes:
            process.alive, process.paused, process.dies_at = True, False, None
        for _ in range(_LAST_ROUNDS):
            tasks = [task for process in self._processes for task in process.tasks]
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            self._drain()
        else:
            raise Stalled(f"{len(tasks)} tasks do not end when they are cancelled: {tasks[:3]}")
        self._timers.clear()

    def _drain(self) -> None:
        """All turns that are due now, and those that follow from them, unless they go on for ever."""
        asyncio.events._set_running_loop(self)  # noqa: SLF001  as `run_forever` does
        try:
            for _ in range(_LAST_ROUNDS):
                ready = [each for each in self._processes if each.ready]
                if not ready:
                    break
                for process in ready:
                    handle = process.ready.popleft()
                    if not handle._cancelled:  # noqa: SLF001  as in a turn
                        handle._run()  # noqa: SLF001  likewise
        finally:
            asyncio.events._set_running_loop(None)  # noqa: SLF001  likewise


def _make_task(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, T] | Generator[Any, None, T],
    context: contextvars.Context | None = None,
    **options: Any,
) -> "asyncio.Task[T]":
    task: asyncio.Task[T] = asyncio.Task(work, loop=loop, context=context, **options)
    process = context.get(_process) if context is not None else _process.get()
    owner = process or loop._outside  # type: ignore[attr-defined]  # noqa: SLF001  the loop's own part
    owner.tasks.add(task)
    task.add_done_callback(owner.tasks.discard)
    return task
