"""Undo of a release: what ran before serves again, then this one stops."""

import contextlib

from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.errors import FinalError
from seedwork.participant import Work
from seedwork.unit_of_work import Database
from services.deployer import observations, releases
from services.deployer.apps import App
from services.deployer.contract import ReleaseRolledBack, RollBackRelease
from services.deployer.deployer import Deployer, is_live, prepare, run, to_its_end
from services.deployer.errors import Fenced, PreviousDoesNotStart
from services.deployer.ports import Runtime
from services.deployer.releases import KnownRelease


async def roll_back_release(_command: RollBackRelease, *, work: Work, deployer: Deployer) -> ReleaseRolledBack:
    """Nothing of this saga's release stays; where it was live, what ran before it serves again first.

    Raises:
        PreviousDoesNotStart: The release before does not come up; this one keeps serving.
    """
    db, runtime = deployer.db, deployer.runtime
    ours = await db.write(lambda conn: _undoing(conn, work))
    found, done = [], []
    if ours is not None and ours.state == "live":
        found.append(f"live release {ours.number}")
        done.append(await _give_back(ours, work, deployer))
    elif ours is not None and ours.state != "undone":
        found.append(f"release {ours.number}, {ours.state}")
        await db.write(lambda conn: releases.undo(conn, ours))
        done.append("marked as undone")
    if ours is not None:
        await _follow_the_row(ours.app_id, db, runtime)
    things = [
        *await runtime.stop(work.app_id, work.saga_id),
        *await deployer.removal.undone(work.app_id, work.saga_id),
    ]
    if things:
        found += things
        done.append("stopped and removed")
    return ReleaseRolledBack(found=tuple(found), done=tuple(done))


async def _undoing(conn: AsyncConnection, work: Work) -> KnownRelease | None:
    """This saga's release; where there is none, nobody can make one any more.

    Of a live one the release before is warm from here on, also where its observation has passed: it is started again.
    """
    known = await releases.of_saga(conn, work.saga_id)
    if known is None:
        await releases.refuse_for_ever(conn, work.app_id, work.saga_id)
    elif known.state == "live" and (previous := await releases.before(conn, known.app_id, known.saga_id)):
        await observations.begin(conn, known.app_id, known.saga_id, previous.saga_id)
    return known


async def _give_back(ours: KnownRelease, work: Work, deployer: Deployer) -> str:
    """Traffic back to the release before ours; what was done."""
    db, runtime = deployer.db, deployer.runtime
    previous = await db.read(lambda conn: releases.before(conn, ours.app_id, ours.saga_id))
    if previous is None:
        await to_its_end(_return_traffic(ours, None, work.fence, db, runtime))
        return "there was no release before it: the app answers 503 until the next one"
    there = await runtime.instances(ours.app_id)
    running = {each.saga_id for each in there if each.state not in {"stopping", "down"}}
    back = False
    try:
        await _start_again(previous, ours, work, deployer)
        await to_its_end(_return_traffic(ours, previous, work.fence, db, runtime))
        back = True
    finally:
        back = back or await to_its_end(db.read(lambda conn: is_live(conn, previous.saga_id)))
        if not back and previous.saga_id not in running:
            await to_its_end(db.write(lambda conn: observations.end(conn, ours.saga_id)))
            await runtime.stop(ours.app_id, previous.saga_id)
    return f"release {previous.number} serves again"


async def _start_again(previous: KnownRelease, ours: KnownRelease, work: Work, deployer: Deployer) -> None:
    work.note(f"starting release {previous.number} again")
    app = App(app_id=work.app_id, name=work.app, team=work.team)
    try:
        release = await prepare(previous, app, work, deployer)
        await run(release, work, deployer, with_command=False)
    except FinalError as error:
        raise PreviousDoesNotStart(
            f"Release {previous.number}, which ran before, does not start again",
            why=error.message,
            todo=f"Release {ours.number} keeps serving. Repair what is missing, then retry the undo.",
            log_tail=error.log_tail,
        ) from error


async def _return_traffic(
    ours: KnownRelease, previous: KnownRelease | None, fence: int, db: Database, runtime: Runtime
) -> None:
    await db.write(lambda conn: releases.move_back(conn, ours, previous, fence=fence))
    await runtime.switch(ours.app_id, previous.saga_id if previous else None, fence=fence)


async def _follow_the_row(app_id: str, db: Database, runtime: Runtime) -> None:
    """An undo that was interrupted between the row and the runtime: what serves is what the row says."""
    route = await db.read(lambda conn: releases.route_of(conn, app_id))
    if route is not None:
        with contextlib.suppress(Fenced):  # a newer deployment is past us
            await runtime.switch(app_id, route.saga_id, fence=route.fence)
