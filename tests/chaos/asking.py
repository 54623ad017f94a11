"""Asks the real systems for the facts: MySQL, the registry, the cluster, the apps, the services' folders."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from seedwork.adapters.pulsar_admin import Letters
from seedwork.chassis.settings import SERVICE_PORTS
from seedwork.unit_of_work import Database
from services.saga_coordinator.queries import forgotten
from tests.chaos.judging import Facts, Front, ReleaseRow, SagaRow, Thing
from tests.chaos.pushing import Pushed
from tests.chaos.replicated import Replicated
from tests.chaos.watching import Watcher

MANIFEST = "application/vnd.oci.image.manifest.v1+json"

_SAGAS = """
    SELECT s.id, s.app, s.app_id, s.commit_id, s.state, s.body, COUNT(l.seq) AS entries,
           COALESCE(MAX(l.seq) - MIN(l.seq) + 1 - COUNT(l.seq), 0) AS gaps
    FROM knarr_saga_coordinator.sagas s LEFT JOIN knarr_saga_coordinator.saga_log l ON l.saga_id = s.id
    WHERE s.definition LIKE 'deploy@%' GROUP BY s.id
"""
_PUBLISHED = """
    SELECT DISTINCT JSON_UNQUOTE(JSON_EXTRACT(payload, '$.repository')), JSON_UNQUOTE(JSON_EXTRACT(payload, '$.digest'))
    FROM knarr_saga_coordinator.saga_log WHERE direction = 'in' AND type IN ('ImagePublished', 'ImageBuilt')
"""


def facts_of(knarr: Replicated, pushed: Sequence[Pushed], watcher: Watcher) -> Facts:
    """As they are now."""
    facts = knarr.loop.run(_from_mysql(knarr, pushed))
    unreadable = knarr.loop.run(Letters(knarr.servers.pulsar_address).show())
    facts.dead_letters = {**facts.dead_letters, "bus": len(unreadable)}
    facts.stored = knarr.images()
    facts.tags, facts.served = _from_registry(knarr, facts.stored, knarr.loop.run(_published(knarr)))
    facts.things, facts.fronts = _from_cluster(knarr)
    facts.answers = {app: _answer(each.url) for app, each in watcher.apps.items()}
    facts.shown = {app: [version for _, version in each.shown] for app, each in watcher.apps.items()}
    facts.files = knarr.files()
    return facts


def open_sagas(knarr: Replicated) -> list[SagaRow]:
    """Deployments that have not ended; those that wait for a person, too."""
    return [
        each for each in knarr.loop.run(_all_sagas(knarr)).values() if each.state not in ("SUCCEEDED", "COMPENSATED")
    ]


async def _all_sagas(knarr: Replicated) -> Mapping[str, SagaRow]:
    engine = create_async_engine(knarr.servers.mysql_url())
    try:
        return await _sagas(engine)
    finally:
        await engine.dispose()


async def _published(knarr: Replicated) -> set[tuple[str, str]]:
    engine = create_async_engine(knarr.servers.mysql_url())
    try:
        return {(str(row[0]), str(row[1])) for row in await _rows(engine, _PUBLISHED)}
    finally:
        await engine.dispose()


async def _from_mysql(knarr: Replicated, pushed: Sequence[Pushed]) -> Facts:
    engine = create_async_engine(knarr.servers.mysql_url())
    try:
        facts = Facts(pushed=list(pushed), sagas=await _sagas(engine))
        for service in SERVICE_PORTS:
            facts.unsent = {**facts.unsent, service: await _count(engine, f"knarr_{service}.outbox")}
            facts.dead_letters = {**facts.dead_letters, service: await _count(engine, f"knarr_{service}.dead_letters")}
            is_open = "(state IN ('queued', 'running') AND tombstone_ms IS NULL) OR undo_state IN ('queued', 'running')"
            facts.open_jobs = {**facts.open_jobs, service: await _count(engine, f"knarr_{service}.jobs", is_open)}
        rows = await _rows(engine, "SELECT saga_id, app_id, `commit`, digest, state FROM knarr_deployer.releases "
                                   "WHERE number IS NOT NULL")  # fmt: skip
        facts.releases = [ReleaseRow(**row._mapping) for row in rows]
        rows = await _rows(engine, "SELECT app_id, saga_id FROM knarr_deployer.routes")
        facts.routes = {row.app_id: row.saga_id for row in rows}
        rows = await _rows(engine, "SELECT repository, digest, saga_id FROM knarr_registry.image_references")
        facts.references = frozenset((row.repository, row.digest, row.saga_id) for row in rows)
    finally:
        await engine.dispose()
    db = Database(knarr.servers.mysql_url("knarr_saga_coordinator"))
    await db.open()
    try:
        facts.forgotten = await db.read(forgotten)
    finally:
        await db.close()
    return facts


async def _sagas(engine: AsyncEngine) -> dict[str, SagaRow]:
    return {row.id: _saga_row(row) for row in await _rows(engine, _SAGAS)}


def _saga_row(row: Any) -> SagaRow:
    body = json.loads(row.body)
    errors = [step["error"]["message"] for step in body["steps"] if step.get("error")]
    return SagaRow(
        id=row.id,
        app=row.app,
        app_id=row.app_id,
        commit=row.commit_id,
        state=row.state,
        held=bool(body.get("held")),
        why=(errors or [body.get("reason") or ""])[-1],
        fence=body.get("fence") or 0,
        entries=row.entries,
        gaps=int(row.gaps),
    )


async def _rows(engine: AsyncEngine, query: str) -> Sequence[Any]:
    async with engine.connect() as conn:
        return (await conn.execute(text(query))).all()


async def _count(engine: AsyncEngine, table: str, where: str = "TRUE") -> int:
    return int((await _rows(engine, f"SELECT COUNT(*) FROM {table} WHERE {where}"))[0][0])  # noqa: S608  our own names


def _from_registry(
    knarr: Replicated, stored: Mapping[str, Sequence[str]], published: set[tuple[str, str]]
) -> tuple[Mapping[str, Mapping[str, str]], Mapping[tuple[str, str], int]]:
    """Its tags, and its answers; asked past the proxy."""
    headers = {"Accept": MANIFEST}
    base = f"http://127.0.0.1:{knarr.servers.registry_port}/v2"
    with httpx2.Client(trust_env=False, timeout=30, headers=headers) as client:
        catalog = client.get(f"{base}/_catalog", params={"n": 1000}).raise_for_status().json()["repositories"]
        tags: dict[str, dict[str, str]] = {}
        for repository in {*catalog, *stored}:
            listed = client.get(f"{base}/{repository}/tags/list")
            told = (listed.json().get("tags") or []) if listed.status_code == 200 else []
            names = [name for name in told if not name.startswith("knarr-")]  # the store's own marks
            digests = {name: client.head(f"{base}/{repository}/manifests/{name}") for name in names}
            tags[repository] = {
                name: each.headers.get("Docker-Content-Digest", str(each.status_code)) for name, each in digests.items()
            }
        served = {
            (repository, digest): client.get(f"{base}/{repository}/manifests/{digest}").status_code
            for repository, digest in published
            if not repository.startswith("staging/")
        }
    return tags, served


def _from_cluster(knarr: Replicated) -> tuple[list[Thing], dict[str, Front]]:
    things, fronts = [], {}
    for each in knarr.objects("deployments", "replicasets", "jobs", "pods", "secrets", "services"):
        metadata = each["metadata"]
        labels, notes = metadata["labels"], metadata.get("annotations", {})
        if each["kind"] == "Service":
            saga_id = each["spec"]["selector"]["knarr.io/saga"]
            fronts[labels["knarr.io/app-id"]] = Front(saga_id=saga_id, fence=int(notes["knarr.io/fence"]))
        elif "knarr.io/saga" in labels:
            things.append(
                Thing(
                    app_id=labels["knarr.io/app-id"],
                    name=f"{each['kind']}/{metadata['name']}",
                    saga_id=labels["knarr.io/saga"],
                    digest=_digest(each),
                )
            )
    return things, fronts


def _digest(each: Mapping[str, Any]) -> str | None:
    """Of the image that a pod was told to run."""
    if each["kind"] != "Pod":
        return None
    return str(each["spec"]["containers"][0]["image"]).rpartition("@")[2]


def _answer(url: str) -> str:
    try:
        return httpx2.get(url, timeout=10, trust_env=False).text
    except httpx2.HTTPError as error:
        return f"{type(error).__name__}: {error}"
