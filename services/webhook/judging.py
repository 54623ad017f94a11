"""What becomes of verified deliveries: rules without I/O, applied to several at once, one after the other.

In: the apps of their repositories and the deployments that came of the same bodies and delivery ids, as the database
has them. Out: an answer for each delivery, and what is to be written for all of them together.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from sqlalchemy import Row

from seedwork.messages import Envelope, new_id
from services.webhook import github, holds
from services.webhook.deployments import Wanted, deployment
from services.webhook.directory import Picture
from services.webhook.github import Notice, Push

Status = Literal["accepted", "ignored", "duplicate", "held"]


_MOST_NAMED = 5
"""Apps that one reason names."""


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
class Case:
    """A verified delivery on its way into the database."""

    arrival: Arrival
    read: Push | Notice
    holders: frozenset[bytes]
    """The secrets that made its signature."""
    picture: Picture
    """The apps as they were known when it was verified."""
    body_sha256: str
    traceparent: str | None
    delivery_id: str = field(default_factory=new_id)

    @property
    def repository_key(self) -> str | None:
        """Whose apps it may concern."""
        return None if self.read.repository is None else github.repository_key(self.read.repository)

    @property
    def marks(self) -> tuple[str, ...]:
        """What makes a later delivery the same one: its body, or its id."""
        return marks(self.body_sha256, self.arrival.provider_id)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a delivery."""

    status: Status
    deployments: tuple[str, ...]
    reason: str | None


Judgement = Answer | Literal["behind", "unverified"]
"""`behind`: the picture is older than the apps; `unverified`: no app of the repository has the secret. Both: nothing
is written."""


@dataclass(slots=True)
class _App:
    """An app's row, and what the deliveries so far have made of it."""

    row: Row[Any]
    last_number: int
    last_commit: str | None
    tip_commit: str | None
    changed: bool = False
    held_commit: str | None = None


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What one app makes of a push: an earlier deployment or a new one, and the reason for not making a new one."""

    saga_id: str | None = None
    is_new: bool = False
    remembered: bool = False
    """Whether later copies of this delivery are to find this deployment."""
    reason: str | None = None
    held: bool = False
    """Whether it would have been deployed, were the app not held."""


class Desk:
    """Takes deliveries in their order; what was taken counts for those behind it."""

    def __init__(
        self, apps: Iterable[Row[Any]], earlier: Iterable[tuple[str, str, str | None, str | None]], now_ms: int
    ) -> None:
        """Take what the database knows.

        Args:
            apps: The apps of the repositories, none removed.
            earlier: App id, saga id, and the body's hash and the delivery id that led there.
            now_ms: When the deliveries arrived.
        """
        self._now_ms = now_ms
        self._apps: defaultdict[str, list[_App]] = defaultdict(list)
        for row in apps:
            self._apps[row.repository_key].append(_App(row, row.last_number, row.last_commit, row.tip_commit))
        self._earlier: dict[tuple[str, str], str] = {
            (app_id, mark): saga_id for app_id, saga_id, body, provider in earlier for mark in marks(body, provider)
        }
        self.deliveries: list[dict[str, Any]] = []
        self.links: list[dict[str, Any]] = []
        self.messages: list[Envelope] = []

    @property
    def changed_apps(self) -> list[dict[str, Any]]:
        """The apps that got deployments, as `deployments.APP_REQUESTED` takes them."""
        return [
            {"wanted_id": app.row.app_id, "number": app.last_number, "commit": app.last_commit, "tip": app.tip_commit}
            for apps in self._apps.values()
            for app in apps
            if app.changed
        ]

    @property
    def held_apps(self) -> list[dict[str, Any]]:
        """The apps that got pushes which were not deployed, as `holds.PUSH_HELD` takes them."""
        return [
            {"wanted_id": app.row.app_id, "held": app.held_commit}
            for apps in self._apps.values()
            for app in apps
            if app.held_commit is not None
        ]

    def take(self, case: Case) -> Judgement:
        """Judge one delivery."""
        apps = self._apps.get(case.repository_key, []) if case.repository_key is not None else []
        secrets = [case.picture.secrets.get((app.row.app_id, app.row.secret_version)) for app in apps]
        if None in secrets:
            return "behind"
        mine = [app for app, secret in zip(apps, secrets, strict=True) if secret in case.holders]
        if apps and not mine:
            return "unverified"
        verdicts = [(app, self._judge(app, case, case.read)) for app in mine] if isinstance(case.read, Push) else []
        links = [self._link(case, app, verdict) for app, verdict in verdicts if verdict.saga_id]
        status: Status = "ignored"
        if links:
            status = "accepted" if any(verdict.is_new for _, verdict in verdicts) else "duplicate"
        elif any(verdict.held for _, verdict in verdicts):
            status = "held"
        reason = "; ".join(verdict.reason for _, verdict in verdicts if verdict.reason) or None
        team = mine[0].row.team if mine else case.picture.teams[min(case.holders)]
        kept = "; ".join(each.reason for app, each in verdicts if each.reason and app.row.team == team) or None
        if not verdicts:
            kept = reason = _why_nothing(case, team)
        self.deliveries.append(self._delivery(case, status, kept, team))
        self.links += [{**link, "position": position} for position, link in enumerate(links)]
        return Answer(status, tuple(link["saga_id"] for link in links), reason)

    def _judge(self, app: _App, case: Case, push: Push) -> _Verdict:
        """What a push means for one app that holds its secret."""
        row = app.row
        earlier = [self._earlier.get((row.app_id, mark)) for mark in case.marks]
        if any(earlier):
            return _Verdict(next(filter(None, earlier)), reason=f"{row.name} got this delivery before")
        if why_not := _why_not(row, push):
            return _Verdict(reason=why_not)
        if _was_polled(app, push):
            reason = f"{row.name} was asked to deploy this commit when its ref was polled"
            return self._remember(case, row.app_id, _Verdict(row.polled_saga_id, remembered=True, reason=reason))
        if row.held_ms is not None:
            app.held_commit = push.commit
            return _Verdict(held=True, reason=holds.reason(row))
        return self._remember(case, row.app_id, self._deploy(app, case, push))

    def _deploy(self, app: _App, case: Case, push: Push) -> _Verdict:
        wanted = Wanted(
            commit=push.commit,
            ref=push.ref,
            trigger="push",
            requested_by=push.pusher,
            traceparent=case.traceparent,
        )
        app.last_number += 1
        app.last_commit = app.tip_commit = push.commit
        app.changed = True
        message = deployment(app.row, wanted, app.last_number)
        self.messages.append(message)
        return _Verdict(message.correlationid, is_new=True, remembered=True)

    def _remember(self, case: Case, app_id: str, verdict: _Verdict) -> _Verdict:
        self._earlier.update({(app_id, mark): verdict.saga_id for mark in case.marks if verdict.saga_id})
        return verdict

    def _link(self, case: Case, app: _App, verdict: _Verdict) -> dict[str, Any]:
        return {
            "delivery_id": case.delivery_id,
            "saga_id": verdict.saga_id,
            "app_id": app.row.app_id,
            "provider_id": case.arrival.provider_id if verdict.remembered else None,
            "body_sha256": case.body_sha256 if verdict.remembered else None,
        }

    def _delivery(self, case: Case, status: Status, reason: str | None, team: str) -> dict[str, Any]:
        return {
            "delivery_id": case.delivery_id,
            "team": team,
            "provider_id": case.arrival.provider_id,
            "body_sha256": case.body_sha256,
            "event": _event(case),
            "repository": case.read.repository,
            "ref": case.read.ref if isinstance(case.read, Push) else None,
            "received_ms": self._now_ms,
            "status": status,
            "reason": reason,
            "headers": orjson.dumps(dict(case.arrival.headers)).decode(),
            "body": case.arrival.body,
        }


def marks(body_sha256: str | None, provider_id: str | None) -> tuple[str, ...]:
    """The body's mark first: when both were seen, with different deployments, the body's counts."""
    body = () if body_sha256 is None else (f"body {body_sha256}",)
    return body if provider_id is None else (*body, f"id {provider_id}")


def _why_not(app: Row[Any], push: Push) -> str | None:
    """Why the push does not concern the app; None: it does."""
    if app.state != "active":
        return f"{app.name} is being removed"
    if push.ref != app.ref:
        return f"{app.name} follows {app.ref}, not {push.ref}"
    return f"{push.ref} was deleted" if push.commit is None else None


def _was_polled(app: _App, push: Push) -> bool:
    """Whether the poller saw this very push: its commit is what was polled, and nothing else was pushed in between.

    A push back to that commit later on is a new one: then the tip has moved, and GitHub took it after we looked.
    """
    row = app.row
    if row.polled_commit is None or row.polled_commit != push.commit:
        return False
    return bool(app.tip_commit == push.commit or (push.pushed_s and push.pushed_s * 1000 <= row.polled_ms))


def _why_nothing(case: Case, team: str) -> str:
    if isinstance(case.read, Push):
        return f"no app has the repository {case.read.repository}{_moved(case, case.read.repository, team)}"
    event = _event(case)
    return "ping: the webhook is set up" if event == "ping" else f"knarr acts on push events, not on {event}"


def _moved(case: Case, repository: str, team: str) -> str:
    """The commands for a repository that was renamed: only its apps hold the secret that signed this."""
    apps = [app for app in case.picture.renamed(case.holders) if app.team == team]
    commands = [f"`knarr apps update {app.name} --repository {repository}`" for app in apps[:_MOST_NAMED]]
    return f": moved? {', '.join(commands)}" if commands else ""


def _event(case: Case) -> str:
    return (case.arrival.event or "")[:64]
