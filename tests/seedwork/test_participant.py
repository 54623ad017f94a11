"""Participants: at-least-once commands, effects once, answers that fit (DESIGN §3.5)."""

import asyncio

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import SystemClock
from seedwork.errors import FinalError, RetryableError
from seedwork.messages import Envelope, envelope, new_id
from seedwork.outbox import Outbox
from seedwork.participant import Work
from seedwork.tables import KernelTables
from seedwork.testing.bakery import Bake, Baked, Bakery, Sold, Unbake
from seedwork.unit_of_work import Database


@pytest.fixture
def bakery(db: Database, tables: KernelTables) -> Bakery:
    return Bakery(db=db, tables=tables)


async def test_a_command_is_answered_under_its_saga_step_attempt_and_fence(bakery: Bakery) -> None:
    """The answer carries what the coordinator needs to place it."""
    async with bakery.open():
        saga = new_id()
        await bakery.send(Bake(bread="oat"), saga)
        answer = await bakery.answer()
    assert (answer.type, answer.data["bread"]) == ("Baked", "oat")
    assert (answer.correlationid, answer.sagastep, answer.sagaattempt, answer.fence) == (saga, "bake", 1, 3)


async def test_the_same_message_twice_is_worked_once(bakery: Bakery) -> None:
    """The inbox knows the id."""
    async with bakery.open():
        saga, message_id = new_id(), new_id()
        await bakery.send(Bake(), saga, message_id=message_id)
        await bakery.answer()
        await bakery.send(Bake(), saga, message_id=message_id)
        await bakery.send(Bake(), new_id())
        await bakery.answer()
    assert bakery.bakes == 2
    assert bakery.answers.empty()


async def test_another_attempt_joins_the_work_that_runs(bakery: Bakery) -> None:
    """One effect, one answer, under the newest attempt's number."""
    oven = asyncio.Event()

    async def wait(_work: Work) -> None:
        await oven.wait()

    bakery.body = wait
    async with bakery.open():
        saga = new_id()
        await bakery.send(Bake(), saga, attempt=1)
        await bakery.send(Bake(), saga, attempt=2)
        oven.set()
        answer = await bakery.answer()
    assert bakery.bakes == 1
    assert answer.sagaattempt == 2
    assert bakery.answers.empty()


async def test_another_attempt_repeats_a_recorded_success(bakery: Bakery) -> None:
    """A lost answer is given again, and nothing is done twice."""
    async with bakery.open():
        saga = new_id()
        await bakery.send(Bake(), saga, attempt=1)
        await bakery.answer()
        await bakery.send(Bake(), saga, attempt=2)
        again = await bakery.answer()
    assert (again.type, again.sagaattempt, bakery.bakes) == ("Baked", 2, 1)


async def test_a_final_failure_is_repeated_and_a_retryable_one_is_worked_again(bakery: Bakery) -> None:
    """The type of the error says which."""
    error: Exception = RetryableError("The oven is cold", todo="Wait.")

    async def fail(_work: Work) -> None:
        raise error

    bakery.body = fail
    async with bakery.open():
        saga = new_id()
        await bakery.send(Bake(), saga, attempt=1)
        first = await bakery.answer()
        error = FinalError("The flour is sand", code="sand")
        await bakery.send(Bake(), saga, attempt=2)
        second = await bakery.answer()
        await bakery.send(Bake(), saga, attempt=3)
        third = await bakery.answer()
    assert (first.type, first.data["retryable"], first.data["message"]) == (
        "BakeFailed",
        True,
        "The oven is cold. Wait.",
    )
    assert (second.data["retryable"], second.data["code"], third.data["code"]) == (False, "sand", "sand")
    assert bakery.bakes == 2


async def test_faults_in_a_row_are_shown_until_a_job_has_another_end(bakery: Bakery) -> None:
    """For the health check: every job of a service fails, and none of the apps is at fault."""
    error: Exception = RetryableError("The oven is cold")

    async def fail(_work: Work) -> None:
        raise error

    bakery.body = fail
    async with bakery.open():
        for _ in range(2):
            await bakery.send(Bake(), new_id())
            await bakery.answer()
        assert bakery.participant.streak.trouble == "the last 2 attempts failed, the latest of Bake: The oven is cold."
        error = FinalError("The flour is sand")
        await bakery.send(Bake(), new_id())
        await bakery.answer()
        assert bakery.participant.streak.trouble == ""


async def test_a_fault_of_the_service_is_retryable_and_shows_no_details(bakery: Bakery) -> None:
    """A person reads that it was ours; what an exception holds stays in the log."""

    async def fail(_work: Work) -> None:
        raise KeyError("hunter2")

    bakery.body = fail
    async with bakery.open():
        await bakery.send(Bake(), new_id())
        answer = await bakery.answer()
    assert (answer.data["retryable"], answer.data["code"]) == (True, "fault")
    assert "hunter2" not in str(answer.data)


async def test_work_over_its_limit_is_a_final_failure(bakery: Bakery) -> None:
    """A participant limits its own work and answers `timed_out`."""

    async def for_ever(_work: Work) -> None:
        await asyncio.Event().wait()

    bakery.body = for_ever
    async with bakery.open(limit_s=0.05):
        await bakery.send(Bake(), new_id())
        answer = await bakery.answer()
    assert (answer.data["retryable"], answer.data["code"]) == (False, "timed_out")


async def test_an_undo_stops_the_work_and_starts_when_it_has_let_go(bakery: Bakery) -> None:
    """Never both at once; the forward work gives no answer any more."""
    started = asyncio.Event()
    cleaned: list[int] = []

    async def for_ever(_work: Work) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(bakery.unbakes)

    bakery.body = for_ever
    async with bakery.open():
        saga = new_id()
        await bakery.send(Bake(), saga)
        await started.wait()
        await bakery.send(Unbake(), saga)
        answer = await bakery.answer()
    assert answer.type == "Unbaked"
    assert cleaned == [0]
    assert bakery.answers.empty()


async def test_an_undo_before_its_work_leaves_a_tombstone(bakery: Bakery) -> None:
    """The work that arrives later is refused with the code `undone`."""
    async with bakery.open():
        saga = new_id()
        await bakery.send(Unbake(), saga)
        assert (await bakery.answer()).type == "Unbaked"
        await bakery.send(Bake(), saga)
        answer = await bakery.answer()
    assert (answer.type, answer.data["code"], answer.data["retryable"]) == ("BakeFailed", "undone", False)
    assert bakery.bakes == 0


async def test_a_repeated_undo_is_answered_again_and_done_once(bakery: Bakery) -> None:
    """The second attempt repeats what the first one found."""
    async with bakery.open():
        saga = new_id()
        await bakery.send(Unbake(), saga, attempt=1)
        first = await bakery.answer()
        await bakery.send(Unbake(), saga, attempt=2)
        second = await bakery.answer()
    assert first.data == second.data
    assert (second.sagaattempt, bakery.unbakes) == (2, 1)


async def test_an_undo_that_fails_says_so_and_is_done_again(bakery: Bakery) -> None:
    """`UndoFailed`, then another attempt."""
    fails = [True]

    async def once(_work: Work) -> None:
        if fails.pop():
            fails.append(False)
            raise RetryableError("The loaf is hot")

    bakery.undo_body = once
    async with bakery.open():
        saga = new_id()
        await bakery.send(Unbake(), saga, attempt=1)
        first = await bakery.answer()
        await bakery.send(Unbake(), saga, attempt=2)
        second = await bakery.answer()
    assert (first.type, second.type) == ("UndoFailed", "Unbaked")


async def test_work_beyond_the_slots_waits_its_turn(bakery: Bakery) -> None:
    """Five at once, two slots: never more than two at work, all are answered."""

    async def a_moment(_work: Work) -> None:
        await asyncio.sleep(0)

    bakery.body = a_moment
    async with bakery.open(slots=2):
        await asyncio.gather(*(bakery.send(Bake(), new_id()) for _ in range(5)))
        for _ in range(5):
            assert (await bakery.answer()).type == "Baked"
    assert bakery.most_at_once <= 2


async def test_an_outcome_is_not_stored_by_a_worker_that_lost_its_lease(bakery: Bakery) -> None:
    """Somebody else took the job: what this one has is dropped, and what it would have written with it."""
    started, go = asyncio.Event(), asyncio.Event()
    written: list[str] = []

    async def also(_conn: AsyncConnection) -> None:
        written.append("also")

    async def wait(work: Work) -> None:
        work.with_outcome(also)
        started.set()
        await go.wait()

    bakery.body = wait
    jobs = bakery.tables.jobs

    async def steal(conn: AsyncConnection) -> None:
        await conn.execute(update(jobs).values(lease_owner="another", lease_number=jobs.c.lease_number + 1))

    async def state(conn: AsyncConnection) -> tuple[str, str]:
        found = (await conn.execute(select(jobs.c.state, jobs.c.lease_owner).where(jobs.c.saga_id == saga))).one()
        return found[0], found[1]

    saga = new_id()
    async with bakery.open():
        await bakery.send(Bake(), saga)
        await started.wait()
        await bakery.db.write(steal)
        go.set()
        await bakery.send(Bake(), new_id())
        await bakery.answer()
        assert await bakery.db.read(state) == ("running", "another")
    assert written == ["also"]


async def test_a_worker_that_slept_through_its_undo_cleans_up_after_itself(bakery: Bakery) -> None:
    """Paused beyond its lease, undone meanwhile by another replica: what it made is undone once more."""
    started, go, swept = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait(_work: Work) -> None:
        started.set()
        await go.wait()

    async def undo(_work: Work) -> None:
        swept.set()

    bakery.body, bakery.undo_body = wait, undo
    jobs = bakery.tables.jobs
    saga = new_id()
    command = envelope(Unbake(), source="test", saga_id=saga, app_id="app", step="bake", attempt=1)

    async def undone_elsewhere(conn: AsyncConnection) -> None:
        await conn.execute(
            update(jobs).values(
                tombstone_ms=1, undo_state="done", undo_command=command.to_json().decode(),
                lease_number=jobs.c.lease_number + 2, lease_owner=None, lease_until_ms=None,
            )
        )  # fmt: skip

    async with bakery.open():
        await bakery.send(Bake(), saga)
        await started.wait()
        await bakery.db.write(undone_elsewhere)
        go.set()
        async with asyncio.timeout(30):
            await swept.wait()
    assert bakery.unbakes == 1
    assert bakery.answers.empty()


async def test_a_worker_that_died_three_times_is_a_final_failure(bakery: Bakery) -> None:
    """The work that kills its workers is not tried for ever."""
    saga = new_id()
    died = asyncio.Event()

    async def never_ends(_work: Work) -> None:
        died.set()
        await asyncio.Event().wait()

    bakery.body = never_ends

    async def die(conn: AsyncConnection) -> None:
        """As kill -9 leaves it: the lease stands, its holder is gone."""
        await conn.execute(update(bakery.tables.jobs).values(lease_owner="dead", lease_until_ms=1, state="running"))

    async with bakery.open():
        await bakery.send(Bake(), saga)
        await died.wait()
    for _ in range(3):
        await bakery.db.write(die)
        died.clear()
        async with bakery.open():
            done, _pending = await asyncio.wait(
                [asyncio.create_task(died.wait()), asyncio.create_task(bakery.answer())],
                return_when=asyncio.FIRST_COMPLETED,
            )
            result = next(iter(done)).result()
            for task in _pending:
                task.cancel()
    assert isinstance(result, Envelope)
    assert (result.type, result.data["code"], result.data["retryable"]) == ("BakeFailed", "worker_lost", False)


async def test_a_graceful_stop_gives_the_work_back(bakery: Bakery) -> None:
    """The next process takes it up, and no lease counts as lost."""
    started = asyncio.Event()
    again = asyncio.Event()

    async def until_again(_work: Work) -> None:
        started.set()
        await again.wait()

    bakery.body = until_again
    async with bakery.open():
        await bakery.send(Bake(), new_id())
        await started.wait()
    again.set()
    async with bakery.open():
        assert (await bakery.answer()).type == "Baked"

    async def lost(conn: AsyncConnection) -> int:
        return int((await conn.execute(select(bakery.tables.jobs.c.lost_leases))).scalar_one())

    assert await bakery.db.read(lost) == 0


async def test_an_event_that_cannot_be_handled_is_a_dead_letter_and_its_neighbours_are_heard(bakery: Bakery) -> None:
    """One poisoned message holds nothing up."""
    async with bakery.open():
        batch = [
            envelope(Sold(bread=bread), source="test", saga_id=new_id(), app_id="app")
            for bread in ("rye", "poison", "oat")
        ]
        await bakery.bus.publish(batch)

    async def letters(conn: AsyncConnection) -> list[tuple[str, str]]:
        table = bakery.tables.dead_letters
        return [(row[0], row[1]) for row in await conn.execute(select(table.c.id, table.c.error))]

    assert set(bakery.heard) == {"oat", "rye"}  # a rolled-back transaction may have heard them before
    assert await bakery.db.read(letters) == [(batch[1].id, "ValueError: this bread cannot be sold")]


async def test_answers_of_a_killed_process_leave_at_the_next_start(db: Database, tables: KernelTables) -> None:
    """What stands in the outbox is published, in order, by whoever opens the database next."""
    outbox = Outbox(tables, SystemClock())
    left = [envelope(Baked(bread=str(n)), source="bakery", saga_id=new_id(), app_id="app") for n in range(3)]
    await db.write(lambda conn: outbox.add(conn, left))
    bakery = Bakery(db=db, tables=tables)
    async with bakery.open():
        assert [(await bakery.answer()).id for _ in left] == [each.id for each in left]
