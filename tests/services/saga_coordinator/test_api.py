"""The routes under /sagas (DESIGN §6): shapes, filters by index, pages, the log, the stream, verbs."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import EVERY_TEAM, Access
from seedwork.chassis.paging import Paging
from seedwork.messages import WorkReported, envelope, new_id
from services.builder.contract import ImageBuildFailed
from services.saga_coordinator.models import sagas
from services.saga_coordinator.queries import Filters, list_query
from services.saga_coordinator.sagas import DEPLOY
from tests.services.saga_coordinator.conftest import APP_ID, Stage, Staging, building, follow

SHAPE = {
    "id", "saga", "definition", "app", "app_id", "team", "commit", "ref", "trigger", "number", "fence", "state",
    "direction", "held", "reason", "superseded_by", "parent_id", "needs_attention", "left_over", "created_at",
    "updated_at", "steps", "waiting_for",
}  # fmt: skip
ENTRY = {"seq", "at", "direction", "type", "message_id", "causation_id", "step", "attempt", "payload", "state"}


async def test_a_saga_has_the_shape_of_the_design(stage: Stage) -> None:
    """Names, times, steps and what it waits for."""
    saga = await stage.get(f"/sagas/{await building(stage)}")
    assert set(saga) >= SHAPE
    assert (saga["saga"], saga["definition"], saga["state"], saga["direction"]) == (
        "deploy",
        "deploy@4",
        "RUNNING",
        "forward",
    )
    assert (saga["app"], saga["app_id"], saga["team"], saga["ref"]) == ("shop", APP_ID, "default", "refs/heads/main")
    assert saga["created_at"].endswith("Z")
    assert saga["waiting_for"]["what"] == "answer"
    assert saga["waiting_for"]["from"] == "builder"
    assert saga["waiting_for"]["until"] > saga["waiting_for"]["since"]
    source = saga["steps"][0]
    assert set(source) >= {"name", "state", "attempts", "started_at", "ended_at", "error"}
    assert (source["name"], source["state"], source["attempts"]) == ("source", "DONE", 1)


async def test_a_report_shows_in_what_it_waits_for_and_not_in_the_log(stage: Stage) -> None:
    """The place in the queue."""
    saga_id = await building(stage)
    report = envelope(
        WorkReported(status="queued", position=2),
        source="builder",
        saga_id=saga_id,
        app_id=APP_ID,
        step="build",
        attempt=1,
    )
    before = (await stage.get(f"/sagas/{saga_id}/log"))["items"]
    await stage.bus.publish([report])
    saga = await stage.get(f"/sagas/{saga_id}")
    assert saga["waiting_for"]["note"] == "queued, position 2"
    assert (await stage.get(f"/sagas/{saga_id}/log"))["items"] == before


async def test_the_log_has_no_gaps_and_says_what_caused_what(stage: Stage) -> None:
    """In, out, in, out …; the cause of a command is the message before it."""
    saga_id = await stage.start(DEPLOY)
    await stage.until(saga_id, "SUCCEEDED")
    entries = (await stage.get(f"/sagas/{saga_id}/log"))["items"]
    assert all(set(each) >= ENTRY for each in entries)
    assert [each["seq"] for each in entries] == list(range(1, 13))
    assert [(each["direction"], each["type"]) for each in entries][:4] == [
        ("in", "DeploymentRequested"),
        ("out", "FetchSource"),
        ("in", "SourceFetched"),
        ("out", "BuildImage"),
    ]
    assert (entries[-1]["type"], entries[-1]["state"]) == ("DeploymentSucceeded", "SUCCEEDED")
    assert entries[1]["causation_id"] == entries[0]["message_id"]
    assert entries[2]["causation_id"] == entries[1]["message_id"]
    assert entries[2]["payload"]["digest"].startswith("sha256:")


async def test_the_log_comes_in_pages(stage: Stage) -> None:
    """Oldest first, each entry once."""
    saga_id = await stage.start(DEPLOY)
    await stage.until(saga_id, "SUCCEEDED")
    seqs: list[int] = []
    cursor = None
    while True:
        page = await stage.get(f"/sagas/{saga_id}/log", limit=4, **({"cursor": cursor} if cursor else {}))
        seqs += [each["seq"] for each in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seqs == list(range(1, 13))


async def test_sagas_are_listed_newest_first_in_pages_and_by_filters(stage: Stage) -> None:
    """State, app by name and id, commit, step, attention, time."""
    stage.participants.answers["FetchSource"] = lambda command: DEPLOY.steps[0].ok.model_validate(
        {**DEPLOY.steps[0].ok.EXAMPLE, "commit": command.data["commit"]}
    )
    stage.participants.answers["BuildImage"] = lambda command: (
        ImageBuildFailed.example() if command.appid.endswith("1") else DEPLOY.steps[1].ok.example()
    )
    ids = []
    for number in range(4):
        app = {"app": f"app{number}", "commit": f"{number}" * 40}
        saga_id = await stage.start(DEPLOY, app_id=f"0192f0c1-2345-7abc-8def-00000000000{number}", **app)
        await stage.until(saga_id, "SUCCEEDED", "COMPENSATED")
        ids.append(saga_id)

    async def listed(**params: Any) -> list[str]:
        return [each["id"] for each in (await stage.get("/sagas", **params))["items"]]

    assert await listed() == ids[::-1]
    page = await stage.get("/sagas", limit=3)
    assert [each["id"] for each in page["items"]] == ids[:0:-1]
    assert await listed(limit=3, cursor=page["next_cursor"]) == ids[:1]
    assert await listed(state="COMPENSATED") == [ids[1]]
    assert await listed(app="app2") == [ids[2]]
    assert await listed(app="0192f0c1-2345-7abc-8def-000000000003") == [ids[3]]
    assert await listed(commit="0" * 40) == [ids[0]]
    assert await listed(step="build") == [ids[1]]
    assert await listed(needs="attention") == []
    assert await listed(app="app1", state="SUCCEEDED") == []
    created = (await stage.get(f"/sagas/{ids[2]}"))["created_at"]
    assert await listed(since=created) == ids[:1:-1]
    assert await listed(until=created) == ids[1::-1]


async def test_a_teams_list_reads_an_index(stage: Stage) -> None:
    """A team with few sagas does not wait for those of the others."""
    statement = list_query(Filters(), Paging(limit=50), Access(frozenset({"acme"}))).compile(
        dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}
    )
    plan = await query_plan(stage, str(statement))
    assert "ix_sagas_team" in plan, plan
    assert "TEMP B-TREE" not in plan, plan


@pytest.mark.parametrize("later", [False, True], ids=["first page", "later page"])
@pytest.mark.parametrize(
    ("filters", "index"),
    [
        (Filters(), "ix_sagas_created"),
        (Filters(state="PAUSED"), "ix_sagas_state"),
        (Filters(state="PAUSED", until_ms=2), "ix_sagas_state"),
        (Filters(app="shop"), "ix_sagas_app"),
        (Filters(app=APP_ID), "ix_sagas_app_id"),
        (Filters(app="shop", state="PAUSED"), "ix_sagas_app_state"),
        (Filters(app="shop", since_ms=1), "ix_sagas_app"),
        (Filters(commit="c"), "ix_sagas_commit"),
        (Filters(step="build"), "ix_sagas_at_step"),
        (Filters(step="build", since_ms=1), "ix_sagas_at_step"),
        (Filters(step="build", state="PAUSED"), "ix_sagas_step"),
        (Filters(needs_attention=True), "ix_sagas_attention"),
        (Filters(since_ms=1, until_ms=2), "ix_sagas_created"),
    ],
    ids=str,
)
async def test_each_filter_reads_an_index(stage: Stage, filters: Filters, index: str, *, later: bool) -> None:
    """In the order of the list: nothing is sorted, and no more is read than a page."""
    paging = Paging(limit=50, position={"created_ms": 5, "id": new_id()} if later else {})
    statement = list_query(filters, paging, EVERY_TEAM).compile(
        dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}
    )
    plan = await query_plan(stage, str(statement))
    how = "SEARCH" if later or filters != Filters() else "SCAN"  # the newest of all: the index from its end
    assert plan.startswith(f"{how} {sagas.name} USING INDEX {index}"), plan
    assert "TEMP B-TREE" not in plan


async def query_plan(stage: Stage, statement: str, parameters: Sequence[Any] = ()) -> str:
    """How SQLite goes about it."""

    async def explain(conn: AsyncConnection) -> str:
        rows = await conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", tuple(parameters))
        return "; ".join(row[-1] for row in rows)

    plan: str = await stage.app.state.service.db.read(explain)
    return plan


async def test_a_saga_and_its_log_are_read_by_their_keys(stage: Stage) -> None:
    """However many others there are."""
    saga_id = await building(stage)
    db = stage.app.state.service.db
    asked: list[tuple[str, Sequence[Any]]] = []

    @event.listens_for(db._reader.sync_engine, "before_cursor_execute")
    def note(_conn: Any, _cursor: Any, statement: str, parameters: Sequence[Any], *_rest: Any) -> None:
        if statement.startswith("SELECT saga"):
            asked.append((statement, parameters))

    await stage.get(f"/sagas/{saga_id}")
    await stage.get(f"/sagas/{saga_id}/log")
    event.remove(db._reader.sync_engine, "before_cursor_execute", note)
    plans = [await query_plan(stage, *each) for each in asked]
    assert any("saga_log USING PRIMARY KEY" in plan for plan in plans), plans
    assert not [plan for plan in plans if "SCAN" in plan or "TEMP B-TREE" in plan], plans


async def test_a_stream_tells_each_entry_and_then_the_end(stage: Stage) -> None:
    """Followed while it happens; resumed after the last entry seen."""
    saga_id = await building(stage)
    stream = follow(stage, saga_id, 0)
    first = [await anext(stream) for _ in range(4)]
    assert [each["id"] for each in first] == [1, 2, 3, 4]
    assert first[3]["data"]["type"] == "BuildImage"
    waiting = asyncio.ensure_future(anext(stream))
    await stage.client.post(f"/sagas/{saga_id}/cancel", json={"reason": "stop"})
    assert (await waiting)["data"]["payload"] == {"by": "local", "reason": "stop"}
    rest = [event async for event in stream]
    assert (rest[-1]["event"], rest[-1]["data"]["state"]) == ("end", "COMPENSATED")
    resumed = [event async for event in follow(stage, saga_id, 5)]
    assert [each.get("id") for each in resumed] == [each.get("id") for each in rest]
    response = await stage.client.get(f"/sagas/{saga_id}/stream", headers={"Last-Event-ID": "5"})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.startswith("id: 6\nevent: log\ndata: {")
    assert response.text.rstrip().splitlines()[-2] == "event: end"


async def test_a_stop_ends_a_stream_without_saying_that_the_saga_has_ended(stage: Stage) -> None:
    """Whoever follows connects again, after the last entry seen."""
    saga_id = await building(stage)
    following = asyncio.create_task(stage.client.get(f"/sagas/{saga_id}/stream"))
    while saga_id not in stage.app.state.feed._bells:  # noqa: ASYNC110  nobody is told of it
        await asyncio.sleep(0)
    stage.app.state.service.stopping.set()
    answer = await asyncio.wait_for(following, 30)
    assert answer.status_code == 200
    assert "event: end" not in answer.text


async def test_a_verb_answers_with_the_saga_and_is_in_the_log_with_who_and_why(stage: Stage) -> None:
    """Pause, pause again (no change), resume."""
    saga_id = await building(stage)
    response = await stage.client.post(f"/sagas/{saga_id}/pause", json={"reason": "looking"})
    saga = response.json()
    assert (response.status_code, saga["state"]) == (200, "PAUSED")
    assert (saga["waiting_for"]["what"], saga["waiting_for"]["from"], saga["waiting_for"]["note"]) == (
        "operator",
        "local",
        "paused by local: looking",
    )
    again = await stage.client.post(f"/sagas/{saga_id}/pause", json={"reason": "still"})
    assert (again.status_code, again.json()) == (200, saga)
    entry = (await stage.get(f"/sagas/{saga_id}/log"))["items"][-1]
    assert (entry["direction"], entry["type"], entry["payload"]) == (
        "operator",
        "pause",
        {"by": "local", "reason": "looking"},
    )
    assert (await stage.client.post(f"/sagas/{saga_id}/resume")).json()["state"] == "RUNNING"


async def test_a_verb_that_the_state_does_not_allow_is_a_409_with_the_state(stage: Stage) -> None:
    """A problem that says what is possible."""
    saga_id = await building(stage)
    response = await stage.client.post(f"/sagas/{saga_id}/skip", json={})
    problem = response.json()
    assert (response.status_code, problem["state"], problem["code"]) == (409, "RUNNING", "conflict")
    assert "cancel, pause" in problem["detail"]


async def test_what_is_not_there_is_a_404_and_what_is_no_verb_a_400(stage: Stage) -> None:
    """With what to do next."""
    for path in ("/sagas/nobody", "/sagas/nobody/log", "/sagas/nobody/stream"):
        assert (await stage.client.get(path)).status_code == 404
    assert (await stage.client.post("/sagas/nobody/cancel", json={})).status_code == 404
    assert (await stage.client.post("/sagas/nobody/explode", json={})).status_code == 400


async def test_without_a_token_nothing_is_shown(stage: Stage) -> None:
    """Open are health, metrics and docs only."""
    response = await stage.client.get("/sagas", headers={"Authorization": "Bearer wrong"})
    assert response.status_code == 401


async def test_the_audit_is_a_metric(stage_at: Staging) -> None:
    """And so are the sagas that have not ended."""
    async with stage_at() as stage:
        await building(stage)
        await stage.app.state.audit.look()
        metrics = (await stage.client.get("/metrics")).text
        assert "knarr_sagas_forgotten 0.0" in metrics
        assert 'knarr_sagas_open{state="RUNNING"} 1.0' in metrics
