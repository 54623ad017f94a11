"""Pushes whose webhook never arrived are deployed all the same, once."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Row, select, update

from seedwork.errors import NotFound, Unavailable
from seedwork.git import GitUrlPolicy, run_git
from seedwork.git_credentials import GitCredentials
from seedwork.messages import new_id
from services.webhook import models
from services.webhook.adapters.git_refs import GitRefs
from services.webhook.polling import Poller, Schedule
from tests.services.webhook.conftest import BOUND_S, Knarr, running
from tests.services.webhook.github_payloads import COMMIT, Webhook, push

URL = "https://github.com/acme/shop.git"
MAIN = (URL, "refs/heads/main")
NEXT = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"
HOUR_MS = 3_600_000


def poller(knarr: Knarr, poll_s: float = 180.0) -> Poller:
    """A poller on the service's database that asks when the test says so."""
    service = knarr.service
    return Poller(service.db, service.outbox, knarr.clock, refs=knarr.refs, schedule=Schedule(poll_s), at_once=4)


async def look(knarr: Knarr) -> None:
    """Let every app become due, and ask."""
    knarr.clock.ahead_ms += 2 * HOUR_MS
    await poller(knarr).round()


async def row_of(knarr: Knarr, name: str = "shop") -> Row[Any]:
    """The app as the database has it."""

    async def load(conn: Any) -> Row[Any]:
        found: Row[Any] = (await conn.execute(select(models.apps).where(models.apps.c.name == name))).one()
        return found

    return await knarr.service.db.read(load)


async def test_a_tip_that_nobody_asked_for_is_deployed_once(knarr: Knarr) -> None:
    """Looking again changes nothing."""
    app = await knarr.make_app()
    knarr.refs.tips[MAIN] = COMMIT
    for _ in range(3):
        await look(knarr)
    (told,) = await knarr.events("DeploymentRequested", 1)
    expected = {"commit": COMMIT, "ref": "refs/heads/main", "trigger": "poll", "number": 1}
    assert expected.items() <= told.data.items()
    assert told.appid == app["id"]
    assert len(knarr.refs.asked) == 3


async def test_a_push_that_has_arrived_is_not_deployed_again(knarr: Knarr) -> None:
    """Its commit is the tip, and was asked for."""
    await knarr.make_app()
    await knarr.send(Webhook(push(after=COMMIT)))
    knarr.refs.tips[MAIN] = COMMIT
    await look(knarr)
    (told,) = await knarr.events("DeploymentRequested", 1)
    assert told.data["trigger"] == "push"


async def test_a_webhook_after_the_poll_is_answered_with_the_polls_deployment(knarr: Knarr) -> None:
    """Also its copies; the next push is a new one."""
    await knarr.make_app()
    knarr.refs.tips[MAIN] = COMMIT
    await look(knarr)
    (told,) = await knarr.events("DeploymentRequested", 1)
    for _ in range(2):
        answer = (await knarr.send(Webhook(push(after=COMMIT)))).json()
        assert (answer["status"], answer["deployments"]) == ("duplicate", [told.correlationid])
    assert (await knarr.send(Webhook(push(before=COMMIT, after=NEXT)))).json()["status"] == "accepted"
    await knarr.events("DeploymentRequested", 2)


async def test_a_webhook_that_arrives_while_git_answers_starts_the_only_deployment(knarr: Knarr) -> None:
    """The poll's answer may be older than the push: it is not acted on."""
    await knarr.make_app()
    knarr.refs.tips[MAIN] = COMMIT

    async def meanwhile() -> None:
        knarr.refs.while_asked = None
        assert (await knarr.send(Webhook(push(after=NEXT)))).json()["status"] == "accepted"
        knarr.refs.tips[MAIN] = NEXT

    knarr.refs.while_asked = meanwhile
    await look(knarr)
    await look(knarr)
    (told,) = await knarr.events("DeploymentRequested", 1)
    assert told.data["commit"] == NEXT


async def test_two_replicas_that_ask_at_once_start_one_deployment(home: Path) -> None:
    """One claims the app; and if both had asked, the row decides."""
    async with running(home) as here, running(home) as there:
        await here.make_app()
        for each in (here, there):
            each.refs.tips[MAIN] = COMMIT
        await asyncio.gather(look(here), look(there))
        assert len(here.refs.asked) + len(there.refs.asked) == 1
        app = await row_of(here)
        await asyncio.gather(*(poller(each).ask(app) for each in (here, there)))
        assert (await row_of(here)).last_number == 1


async def test_a_push_back_to_an_earlier_commit_is_found(knarr: Knarr) -> None:
    """What was deployed once is not what is live."""
    await knarr.make_app()
    for tip in (COMMIT, NEXT, COMMIT):
        knarr.refs.tips[MAIN] = tip
        await look(knarr)
    assert [each.data["commit"] for each in await knarr.events("DeploymentRequested", 3)] == [COMMIT, NEXT, COMMIT]


async def test_a_late_webhook_does_not_hide_a_push_back(knarr: Knarr) -> None:
    """Polled C, then D was pushed, then C again: the webhook of the last push is a new deployment."""
    await knarr.make_app()
    knarr.refs.tips[MAIN] = COMMIT
    await look(knarr)
    seconds = knarr.clock.now_ms() // 1000
    await knarr.send(Webhook(push(before=COMMIT, after=NEXT, pushed_at=seconds + 10)))
    answer = (await knarr.send(Webhook(push(before=NEXT, after=COMMIT, pushed_at=seconds + 20)))).json()
    assert answer["status"] == "accepted"
    await knarr.events("DeploymentRequested", 3)


async def test_an_older_push_whose_webhook_comes_late_does_not_deploy_the_polled_one_twice(knarr: Knarr) -> None:
    """Pushed B, pushed C, polled C; then both webhooks: C's is answered with the poll's deployment."""
    await knarr.make_app()
    knarr.refs.tips[MAIN] = NEXT
    seconds = knarr.clock.now_ms() // 1000
    await look(knarr)
    assert (await knarr.send(Webhook(push(after=COMMIT, pushed_at=seconds)))).json()["status"] == "accepted"
    late = (await knarr.send(Webhook(push(before=COMMIT, after=NEXT, pushed_at=seconds + 1)))).json()
    assert late["status"] == "duplicate"


async def test_a_deployment_by_hand_is_not_overruled(knarr: Knarr) -> None:
    """The tip was deployed, then somebody chose an earlier commit: the tip has not moved, so nothing happens."""
    await knarr.make_app()
    knarr.refs.tips[MAIN] = NEXT
    assert (await knarr.client.post("/apps/shop/deployments", json={})).json()["commit"] == NEXT
    await knarr.client.post("/apps/shop/deployments", json={"commit": COMMIT, "force": True})
    await look(knarr)
    await knarr.events("DeploymentRequested", 2)


async def test_a_tip_that_was_deployed_by_hand_is_not_deployed_again(knarr: Knarr) -> None:
    """Whoever asked for it, it was asked for."""
    await knarr.make_app()
    await knarr.client.post("/apps/shop/deployments", json={"commit": COMMIT})
    knarr.refs.tips[MAIN] = COMMIT
    await look(knarr)
    await look(knarr)
    await knarr.events("DeploymentRequested", 1)


async def test_another_branch_is_another_tip(knarr: Knarr) -> None:
    """After the app has been told to follow another ref, that one's tip is deployed."""
    await knarr.make_app()
    knarr.refs.tips = {MAIN: COMMIT, (URL, "refs/heads/live"): NEXT}
    await look(knarr)
    await knarr.client.patch("/apps/shop", json={"ref": "refs/heads/live"})
    await look(knarr)
    told = await knarr.events("DeploymentRequested", 2)
    assert (told[1].data["ref"], told[1].data["commit"]) == ("refs/heads/live", NEXT)


async def test_an_answer_about_a_ref_that_the_app_left_is_dropped(knarr: Knarr) -> None:
    """It was asked before the change."""
    await knarr.make_app()
    knarr.refs.tips[MAIN] = COMMIT

    async def meanwhile() -> None:
        knarr.refs.while_asked = None
        await knarr.client.patch("/apps/shop", json={"ref": "refs/heads/live"})

    knarr.refs.while_asked = meanwhile
    await look(knarr)
    assert (await row_of(knarr)).last_number == 0


async def test_removed_apps_and_apps_without_a_repository_are_not_asked(knarr: Knarr) -> None:
    """There is nothing to ask for."""
    await knarr.client.post("/apps", json={"name": "notes"})
    await knarr.make_app()
    await knarr.client.delete("/apps/shop")
    await look(knarr)
    assert knarr.refs.asked == []


async def test_failures_are_shown_and_make_the_pauses_longer(knarr: Knarr) -> None:
    """Up to an hour; one answer ends it."""
    await knarr.make_app()
    knarr.refs.error = Unavailable("Asking did not work", why="the network is down")
    pauses = []
    for _ in range(8):
        await look(knarr)
        pauses.append((await row_of(knarr)).next_poll_ms - knarr.clock.now_ms())
    assert pauses[0] <= 3 * 180_000
    assert pauses[2] > 8 * 180_000 - 1
    assert max(pauses) <= HOUR_MS + 180_000
    shown = (await knarr.client.get("/apps/shop")).json()["polling"]
    assert shown == {"failures": 8, "error": "Asking did not work: the network is down."}
    knarr.refs.error = None
    knarr.refs.tips[MAIN] = COMMIT
    await look(knarr)
    assert (await knarr.client.get("/apps/shop")).json()["polling"] == {"failures": 0, "error": None}
    assert (await row_of(knarr)).next_poll_ms - knarr.clock.now_ms() <= 180_000
    await knarr.events("DeploymentRequested", 1)


async def test_one_app_that_fails_does_not_keep_others_from_being_asked(knarr: Knarr) -> None:
    """Each is on its own."""
    await knarr.make_app("blog", repository="acme/blog")
    await knarr.make_app()
    knarr.refs.tips[MAIN] = COMMIT
    await look(knarr)
    (told,) = await knarr.events("DeploymentRequested", 1)
    assert told.data["app"] == "shop"
    assert (await knarr.client.get("/apps/blog")).json()["polling"]["failures"] == 1


async def test_only_so_many_are_asked_at_once(knarr: Knarr) -> None:
    """A hundred apps are not a hundred git processes."""
    for index in range(10):
        await knarr.make_app(f"shop{index}")
    knarr.refs.tips[MAIN] = COMMIT
    running_now, most = 0, 0

    async def count() -> None:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        await asyncio.sleep(0)
        running_now -= 1

    knarr.refs.while_asked = count
    await look(knarr)
    assert (len(knarr.refs.asked), most) == (10, 4)


async def test_a_new_app_is_not_asked_at_once(home: Path) -> None:
    """Its webhook has half a period to come; then within a period and a half it is asked."""
    async with running(home, poll_s=180.0) as knarr:
        await knarr.make_app()
        row = await row_of(knarr)
        assert 90_000 < row.next_poll_ms - row.created_ms <= 270_000
        knarr.clock.ahead_ms += 89_000
        await poller(knarr).round()
        assert knarr.refs.asked == []
        knarr.clock.ahead_ms += 181_000
        await poller(knarr).round()
        assert knarr.refs.asked == [MAIN]


async def test_asking_can_be_turned_off(knarr: Knarr) -> None:
    """`KNARR_POLL_S=0`: the loop ends, and nobody is asked."""
    await knarr.make_app()
    knarr.clock.ahead_ms += HOUR_MS
    await poller(knarr, poll_s=0).run()
    assert knarr.refs.asked == []


async def test_a_real_push_without_a_webhook_is_found_by_the_running_service(home: Path, tmp_path: Path) -> None:
    """A real repository, real git, the service's own loop."""
    origin = tmp_path / "origin"
    origin.mkdir()
    await run_git(["init", "--quiet", "--initial-branch=main", "."], cwd=origin, timeout_s=20, max_output_bytes=9999)
    commit = ["-c", "user.name=Ada", "-c", "user.email=ada@acme.example", "commit", "--quiet", "--allow-empty"]
    await run_git([*commit, "--message=first"], cwd=origin, timeout_s=20, max_output_bytes=9999)
    tip = (await run_git(["rev-parse", "HEAD"], cwd=origin, timeout_s=20, max_output_bytes=9999)).decode().strip()
    allow = f"file://{tmp_path}/"
    refs = GitRefs(GitUrlPolicy([allow]), credentials=GitCredentials({}), timeout_s=20)
    async with running(home, poll_s=0.2, source_allow=(allow,), refs=refs) as knarr:
        await knarr.make_app(clone_url=f"file://{origin}")
        (told,) = await knarr.events("DeploymentRequested", 1)
        assert (told.data["commit"], told.data["trigger"]) == (tip, "poll")


@settings(deadline=None)
@given(poll_s=st.floats(0.05, 10_000), now_ms=st.integers(0, 2**42), failures=st.integers(0, 100))
def test_every_app_has_a_moment_of_its_own_in_each_period(poll_s: float, now_ms: int, failures: int) -> None:
    """The next moment is within one period after the pause, and the same for the same app."""
    schedule, app_id = Schedule(poll_s), "0199c0de-0000-7000-8000-000000000001"
    period_ms = int(poll_s * 1000)
    first = schedule.first(app_id, now_ms)
    assert now_ms + period_ms // 2 < first <= now_ms + period_ms // 2 + period_ms
    following = schedule.next(app_id, first)
    assert following == first + period_ms
    failed = schedule.next(app_id, now_ms, failures)
    assert now_ms < failed <= now_ms + max(HOUR_MS, period_ms) + period_ms


def test_apps_are_spread_over_the_period() -> None:
    """A thousand apps are not asked in one second."""
    schedule = Schedule(180.0)
    moments = [schedule.next(new_id(), 0) for _ in range(1000)]
    busiest = max(sum(1 for each in moments if start <= each < start + 1000) for start in range(0, 180_000, 1000))
    assert busiest < 30


async def test_a_shorter_period_counts_after_a_restart(knarr: Knarr) -> None:
    """An app that was to be asked in an hour is asked within the new period."""
    await knarr.make_app()

    async def put_off(conn: Any) -> None:
        await conn.execute(update(models.apps).values(next_poll_ms=knarr.clock.now_ms() + HOUR_MS))

    await knarr.service.db.write(put_off)
    looping = asyncio.create_task(poller(knarr, poll_s=0.2).run())
    try:
        knarr.refs.error = NotFound("not there")
        async with asyncio.timeout(BOUND_S):
            while not knarr.refs.asked:  # noqa: ASYNC110  the loop under test has no event to wait for
                await asyncio.sleep(0.01)
    finally:
        looping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looping
