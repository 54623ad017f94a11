"""A webhook in; stored, judged, and its deployments asked for, in one transaction before the answer.

A delivery that no secret verifies leaves no trace. A verified one is stored whatever becomes of it, with the reason.
Per app, the same body or the same delivery id starts one deployment, for ever; so does a push that the poller found
before its webhook came. To send a stored delivery again, on purpose, is `redelivery.py`.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import orjson
from sqlalchemy import Row, bindparam, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.chassis.tracing import current_traceparent
from seedwork.clock import Clock
from seedwork.errors import Unauthenticated, Unavailable
from seedwork.messages import new_id
from seedwork.outbox import Outbox
from seedwork.unit_of_work import Database
from services.webhook import github
from services.webhook.deployments import Wanted, request_deployment
from services.webhook.directory import Directory, Picture
from services.webhook.github import Notice, Push
from services.webhook.models import apps, deliveries, delivery_deployments

Status = Literal["accepted", "ignored", "duplicate"]

_LOOKS = 5
"""Each look but the first means that an app changed in the last milliseconds."""

_INLINE_BYTES = 64 * 1024
"""Hashing this much takes some 0.1 ms; more of it goes to a thread."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request, as it arrived."""

    headers: Mapping[str, str]
    """Those of `github.KEPT_HEADERS` that were there, names in lower case."""
    body: bytes

    @property
    def event(self) -> str | None:
        """What happened: `push`, `ping` and so on."""
        return self.headers.get("x-github-event")

    @property
    def content_type(self) -> str:
        """In lower case; empty if the sender did not say."""
        return self.headers.get("content-type", "").lower()

    @property
    def provider_id(self) -> str | None:
        """GitHub's delivery id: not signed, and one for all hooks of an event."""
        return self.headers.get("x-github-delivery", "")[:100] or None


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a delivery."""

    status: Status
    deployments: tuple[str, ...]
    reason: str | None
    started: tuple[str, ...] = ()
    """Those deployments that are new."""


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What one app makes of a push: a new deployment, an earlier one, or a reason for none."""

    app: Row[Any]
    wanted: Wanted | None = None
    earlier_saga_id: str | None = None
    polled: bool = False
    """The earlier one was the poller's: this delivery takes its place in the memory of duplicates."""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Case:
    """A verified delivery on its way into the database."""

    arrival: Arrival
    read: Push | Notice
    holders: frozenset[bytes]
    picture: Picture
    body_sha256: str
    traceparent: str | None
    delivery_id: str = field(default_factory=new_id)


class Intake:
    """Takes webhooks in."""

    def __init__(self, db: Database, outbox: Outbox, directory: Directory, clock: Clock) -> None:
        self._db = db
        self._outbox = outbox
        self._directory = directory
        self._clock = clock

    async def receive(self, arrival: Arrival) -> Answer:
        """Judge and store a webhook.

        Raises:
            Unauthenticated: No app's secret made its signature; nothing was stored.
            InvalidInput: It is signed, but it cannot be read; nothing was stored.
            DatabaseUnavailable: It could not be stored.
        """
        picture = await self._directory.picture()
        for _ in range(_LOOKS):
            picture, holders = await self._verified(arrival, picture)
            case = await self._case(arrival, picture, holders)
            answer = await self._db.write(partial(self._store, case=case))
            if isinstance(answer, Answer):
                return answer
            if answer == "unverified":
                raise _unverified("no app of this repository has the secret that makes its signature")
            picture = await self._directory.newer(picture)
        raise Unavailable("The delivery could not be judged", why="its apps change too quickly", todo="Send it again.")

    async def _verified(self, arrival: Arrival, picture: Picture) -> tuple[Picture, frozenset[bytes]]:
        """The secrets that made the signature, and the picture in which they were found."""
        digest = github.signature(arrival.headers.get("x-hub-signature-256"))
        if digest is None:
            raise _unverified("the header X-Hub-Signature-256 is missing or is not sha256=<64 hex digits>")
        while True:
            candidates = picture.candidates(github.mentioned_repositories(arrival.body, arrival.content_type))
            if len(arrival.body) * len(candidates) <= _INLINE_BYTES:
                holders = github.signers(candidates, arrival.body, digest)
            else:
                holders = await asyncio.to_thread(github.signers, candidates, arrival.body, digest)
            if holders:
                return picture, holders
            looked_again = await self._directory.looked_again(picture)
            if looked_again is picture:
                raise _unverified("no app's secret makes its signature")
            picture = looked_again

    async def _case(self, arrival: Arrival, picture: Picture, holders: frozenset[bytes]) -> _Case:
        if len(arrival.body) <= _INLINE_BYTES:
            read = github.read_event(arrival.event, arrival.body, arrival.content_type)
            body_sha256 = hashlib.sha256(arrival.body).hexdigest()
        else:
            read = await asyncio.to_thread(github.read_event, arrival.event, arrival.body, arrival.content_type)
            body_sha256 = await asyncio.to_thread(lambda: hashlib.sha256(arrival.body).hexdigest())
        return _Case(arrival, read, holders, picture, body_sha256, current_traceparent())

    async def _store(self, conn: AsyncConnection, case: _Case) -> Answer | Literal["behind", "unverified"]:
        """Everything about one delivery, or nothing where the picture is behind the database."""
        rows = await _apps_of(conn, case.read)
        secrets = [case.picture.secrets.get((app.app_id, app.secret_version)) for app in rows]
        if None in secrets:
            return "behind"
        mine = [app for app, secret in zip(rows, secrets, strict=True) if secret in case.holders]
        if rows and not mine:
            return "unverified"
        verdicts = await self._verdicts(conn, case, mine)
        links: list[dict[str, Any]] = []
        started: list[str] = []
        for verdict in verdicts:
            if verdict.wanted:
                new = await request_deployment(conn, self._outbox, verdict.app, verdict.wanted)
                started.append(new.saga_id)
                links.append(_link(case, verdict, new.saga_id, len(links), remembered=True))
            elif verdict.earlier_saga_id:
                links.append(_link(case, verdict, verdict.earlier_saga_id, len(links), remembered=verdict.polled))
        status: Status = "accepted" if started else "duplicate" if links else "ignored"
        reason = "; ".join(each.reason for each in verdicts if each.reason) or None
        if not links and reason is None:
            reason = _why_nothing(case)
        team = mine[0].team if mine else case.picture.teams[min(case.holders)]
        await conn.execute(insert(deliveries), _row(case, status, reason, team, self._clock.now_ms()))
        if links:
            await conn.execute(insert(delivery_deployments), links)
        return Answer(status, tuple(each["saga_id"] for each in links), reason, tuple(started))

    async def _verdicts(self, conn: AsyncConnection, case: _Case, mine: Sequence[Row[Any]]) -> list[_Verdict]:
        push = case.read
        if not isinstance(push, Push) or not mine:
            return []
        earlier = await earlier_deployments(
            conn, [app.app_id for app in mine], case.arrival.provider_id, case.body_sha256
        )
        return [_judge(app, push, earlier.get(app.app_id), case.traceparent) for app in mine]


def _judge(app: Row[Any], push: Push, earlier_saga_id: str | None, traceparent: str | None) -> _Verdict:
    """What a push means for one app that holds its secret."""
    if earlier_saga_id:
        return _Verdict(app, earlier_saga_id=earlier_saga_id, reason=f"{app.name} got this delivery before")
    if app.state != "active":
        return _Verdict(app, reason=f"{app.name} is being removed")
    if push.ref != app.ref:
        return _Verdict(app, reason=f"{app.name} follows {app.ref}, not {push.ref}")
    if push.commit is None:
        return _Verdict(app, reason=f"{push.ref} was deleted")
    if _was_polled(app, push):
        reason = f"{app.name} was asked to deploy this commit when its ref was polled"
        return _Verdict(app, earlier_saga_id=app.polled_saga_id, polled=True, reason=reason)
    wanted = Wanted(
        commit=push.commit,
        ref=push.ref,
        trigger="push",
        requested_by=push.pusher,
        is_tip=True,
        traceparent=traceparent,
    )
    return _Verdict(app, wanted=wanted)


def _was_polled(app: Row[Any], push: Push) -> bool:
    """Whether the poller saw this very push: its commit is what was polled, and nothing else was pushed in between.

    A push back to that commit later on is a new one: then the tip has moved, and GitHub took it after we looked.
    """
    if app.polled_commit is None or app.polled_commit != push.commit:
        return False
    return bool(app.tip_commit == push.commit or (push.pushed_s and push.pushed_s * 1000 <= app.polled_ms))


async def _apps_of(conn: AsyncConnection, read: Push | Notice) -> Sequence[Row[Any]]:
    """The apps of the repository that the delivery names, held until the transaction ends where it may start some."""
    if read.repository is None:
        return []
    query = _APPS_OF_REPOSITORY.with_for_update() if isinstance(read, Push) else _APPS_OF_REPOSITORY
    return (await conn.execute(query, {"wanted_key": github.repository_key(read.repository)})).all()


async def earlier_deployments(
    conn: AsyncConnection, app_ids: Sequence[str], provider_id: str | None, body_sha256: str
) -> Mapping[str, str]:
    """The deployment that each app got by the same body or delivery id."""
    links = delivery_deployments.c
    same = links.body_sha256 == body_sha256
    if provider_id is not None:
        same = or_(same, links.provider_id == provider_id)
    rows = await conn.execute(
        select(links.app_id, links.saga_id).where(links.app_id.in_(app_ids), same).order_by(links.saga_id.desc())
    )
    return {row.app_id: row.saga_id for row in rows}


_APPS_OF_REPOSITORY = (
    select(apps)
    .where(apps.c.repository_key == bindparam("wanted_key"), apps.c.state != "removed")
    .order_by(apps.c.app_id)
)


def _link(case: _Case, verdict: _Verdict, saga_id: str, position: int, *, remembered: bool) -> dict[str, Any]:
    return {
        "delivery_id": case.delivery_id,
        "saga_id": saga_id,
        "app_id": verdict.app.app_id,
        "position": position,
        "provider_id": case.arrival.provider_id if remembered else None,
        "body_sha256": case.body_sha256 if remembered else None,
    }


def _row(case: _Case, status: Status, reason: str | None, team: str, now_ms: int) -> dict[str, Any]:
    return {
        "delivery_id": case.delivery_id,
        "team": team,
        "provider_id": case.arrival.provider_id,
        "body_sha256": case.body_sha256,
        "event": (case.arrival.event or "")[:64],
        "repository": case.read.repository,
        "ref": case.read.ref if isinstance(case.read, Push) else None,
        "received_ms": now_ms,
        "status": status,
        "reason": reason,
        "headers": orjson.dumps(dict(case.arrival.headers)).decode(),
        "body": case.arrival.body,
    }


def _why_nothing(case: _Case) -> str:
    event = (case.arrival.event or "")[:64]
    if isinstance(case.read, Push):
        return f"no app has the repository {case.read.repository}"
    return "ping: the webhook is set up" if event == "ping" else f"knarr acts on push events, not on {event}"


def _unverified(why: str) -> Unauthenticated:
    return Unauthenticated(
        "The webhook's signature is not verified",
        why=why,
        todo="Give the hook on GitHub the app's secret; PATCH /apps/{app} with a new webhook_secret sets another one.",
    )
