"""Facts in, violations out: what must hold of pushes, sagas, registry and cluster when it is over. Pure.

The facts come from MySQL, the registry's disk, the cluster and the apps (`asking.py`), so that the platform's word is
compared with what is there. Each violation is a sentence.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.pushing import Pushed

ENDED = ("SUCCEEDED", "COMPENSATED")
HELD_IMAGES = ("live", "superseded")
"""States of releases whose image must be there."""
STAGING = "staging/"


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaRow:
    """A deployment, as the coordinator's database has it."""

    id: str
    app: str
    app_id: str
    commit: str | None
    state: str
    held: bool
    why: str
    """For a person: the error of the step at which it waits, or why it was undone."""
    fence: int
    entries: int
    """Of its log."""
    gaps: int
    """Numbers that its log leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRow:
    """As the deployer's database has it."""

    saga_id: str
    app_id: str
    commit: str | None
    digest: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """An object in the cluster that belongs to a release."""

    app_id: str
    name: str
    """`Deployment/web-r3-…`"""
    saga_id: str
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The Service of an app."""

    saga_id: str
    fence: int


@dataclass(slots=True, kw_only=True)
class Facts:
    """Everything at one moment."""

    pushed: Sequence[Pushed]
    sagas: Mapping[str, SagaRow]
    forgotten: Sequence[str] = ()
    """What the coordinator's audit finds."""
    unsent: Mapping[str, int] = field(default_factory=dict)
    """Messages in outboxes, by service."""
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    """By service; those that nobody could read under `bus`."""
    open_jobs: Mapping[str, int] = field(default_factory=dict)
    releases: Sequence[ReleaseRow] = ()
    routes: Mapping[str, str | None] = field(default_factory=dict)
    """The saga that serves, by app id."""
    references: frozenset[tuple[str, str, str]] = frozenset()
    """Repository, digest and saga, as the registry service's database has them."""
    stored: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Digests by repository, on the registry's disk."""
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What each tag of a repository names, asked from the registry."""
    served: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """What the registry answers to a GET of the image in its repository: of each that any saga has ever published."""
    things: Sequence[Thing] = ()
    fronts: Mapping[str, Front] = field(default_factory=dict)
    """By app id."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """By app."""
    shown: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By app: its versions in the order in which the watcher saw them."""
    files: Sequence[str] = ()
    """What the services have on disk."""

    def live(self) -> Mapping[str, SagaRow]:
        """By app id: the newest one that succeeded, in the order of its lane."""
        done = [each for each in self.sagas.values() if each.state == "SUCCEEDED"]
        return {each.app_id: each for each in sorted(done, key=lambda one: one.fence)}

    def of_push(self, pushed: Pushed) -> SagaRow | None:
        """Its saga."""
        return self.sagas.get(pushed.sagas[0]) if len(pushed.sagas) == 1 else None


def violations_of(facts: Facts) -> list[str]:
    """All of them."""
    rules = (_pushes, _sagas, _rest, _releases, _registry, _cluster, _apps, _traffic, _files)
    return [each for rule in rules for each in rule(facts)]


def _pushes(facts: Facts) -> Iterator[str]:
    """Every accepted push has exactly one saga, and every saga a push."""
    for push in facts.pushed:
        if len(push.sagas) != 1:
            yield f"push {push.version} started {len(push.sagas)} sagas: {push.sagas}"
        elif (saga := facts.of_push(push)) is None:
            yield f"push {push.version} was accepted, and its saga {push.sagas[0]} does not exist"
        elif (saga.app, saga.commit) != (push.app, push.commit):
            yield f"push {push.version} is of {push.commit}, and its saga {saga.id} of {saga.app} {saga.commit}"
    named = Counter(each for push in facts.pushed for each in push.sagas)
    for saga_id, count in named.items():
        if count > 1:
            yield f"{count} pushes have the saga {saga_id}"
    for saga_id in facts.sagas.keys() - named.keys():
        yield f"saga {saga_id} of {facts.sagas[saga_id].app} has no push"


def _sagas(facts: Facts) -> Iterator[str]:
    """Each has ended or waits for a person and says why; its log has no gap."""
    for saga in facts.sagas.values():
        waits = saga.held or saga.state == "STUCK"
        if saga.state not in ENDED and not waits:
            yield f"saga {saga.id} of {saga.app} has not ended: {saga.state}"
        if waits and not saga.why:
            yield f"saga {saga.id} of {saga.app} waits for a person ({saga.state}) and does not say why"
        if saga.gaps or not saga.entries:
            yield f"the log of saga {saga.id} has {saga.entries} entries and {saga.gaps} gaps"
    yield from (f"audit: {each}" for each in facts.forgotten)


def _rest(facts: Facts) -> Iterator[str]:
    """Nothing is on its way any more, nothing was put aside."""
    for what, counts in (
        ("messages not sent", facts.unsent),
        ("dead letters", facts.dead_letters),
        ("open jobs", facts.open_jobs),
    ):
        for where, count in counts.items():
            if count:
                yield f"{where} has {count} {what}"


def _releases(facts: Facts) -> Iterator[str]:
    """Who serves is the newest success; one that was undone has no release."""
    live = facts.live()
    for app_id, saga in live.items():
        states = [each.state for each in facts.releases if each.saga_id == saga.id]
        if states != ["live"]:
            yield f"saga {saga.id} of {saga.app} is the newest success, and its releases are {states}"
        if facts.routes.get(app_id) != saga.id:
            yield f"{saga.app} is served by {facts.routes.get(app_id)}, and its newest success is {saga.id}"
    for release in facts.releases:
        owner = facts.sagas.get(release.saga_id)
        if owner is None:
            yield f"a release of the unknown saga {release.saga_id}"
        elif owner.state == "COMPENSATED" and release.state != "undone":
            yield f"saga {owner.id} of {owner.app} was undone, and its release is {release.state}"
        elif release.state == "live" and live.get(release.app_id) != owner:
            yield f"a second live release of {owner.app}: that of saga {owner.id}"


def _registry(facts: Facts) -> Iterator[str]:
    """Each kept release has its image, by its commit's tag; nothing else is there, and what was undone answers 404."""
    waiting = {each.id for each in facts.sagas.values() if each.state not in ENDED}
    kept = {each.saga_id: each for each in facts.releases if each.state in HELD_IMAGES}
    held = {saga_id: (repository, digest) for repository, digest, saga_id in facts.references}
    for saga_id, release in kept.items():
        if saga_id not in held:
            yield f"release of saga {saga_id} is {release.state}, and the registry service holds no image for it"
        elif held[saga_id][1] != release.digest:
            yield f"release of saga {saga_id} is {release.digest}, and what is held for it {held[saga_id][1]}"
    yield from (f"an image is held for saga {each}, which has no release" for each in held.keys() - kept - waiting)
    wanted: dict[str, set[str]] = {}
    for repository, digest in held.values():
        wanted.setdefault(repository, set()).add(digest)
    for repository in facts.stored.keys() | wanted.keys():
        there = set(facts.stored.get(repository, ()))
        if repository.startswith(STAGING):
            if there and not waiting:
                yield f"{repository} still has {sorted(there)}"
            continue
        yield from (f"{repository} lacks {each}" for each in wanted.get(repository, set()) - there)
        yield from (f"{repository} has {each}, which nobody holds" for each in there - wanted.get(repository, set()))
    yield from _served(facts, wanted)


def _served(facts: Facts, wanted: Mapping[str, set[str]]) -> Iterator[str]:
    for (repository, digest), status in facts.served.items():
        should = 200 if digest in wanted.get(repository, ()) else 404
        if status != should:
            yield f"GET {repository}@{digest} is answered by {status}, not by {should}"
    for repository, tags in facts.tags.items():
        if repository.startswith(STAGING):
            continue
        of_commit = {
            facts.sagas[saga_id].commit: digest
            for place, digest, saga_id in facts.references
            if place == repository and saga_id in facts.sagas
        }
        if tags != of_commit:
            yield f"tags of {repository} are {dict(tags)}, and should be {of_commit}"


def _cluster(facts: Facts) -> Iterator[str]:
    """What runs of an app is its live release, with its digest; its Service sends traffic there, under its fence."""
    live = facts.live()
    digests = {each.saga_id: each.digest for each in facts.releases}
    for thing in facts.things:
        saga = live.get(thing.app_id)
        owner = facts.sagas.get(thing.saga_id)
        if owner is not None and owner.state not in ENDED:
            continue  # it waits for a person: what it has made is its own
        if saga is None or thing.saga_id != saga.id:
            yield f"{thing.name} of saga {thing.saga_id} is still there"
        elif thing.digest not in (None, digests.get(saga.id)):
            yield f"{thing.name} runs {thing.digest}, and the release is {digests.get(saga.id)}"
    for app_id, saga in live.items():
        front = facts.fronts.get(app_id)
        if front is None or front.saga_id != saga.id:
            yield f"the Service of {saga.app} leads to {front}, and the newest success is {saga.id}"
        elif front.fence != saga.fence:
            yield f"the Service of {saga.app} has the fence {front.fence}, and its saga {saga.fence}"
        if not any(each.saga_id == saga.id and each.name.startswith("Pod/") for each in facts.things):
            yield f"no pod of {saga.app} runs"


def _apps(facts: Facts) -> Iterator[str]:
    """Each answers with its newest success."""
    of_saga = {push.sagas[0]: push for push in facts.pushed if push.sagas}
    for saga in facts.live().values():
        push = of_saga.get(saga.id)
        if push is not None and facts.answers.get(saga.app) != push.version:
            yield f"{saga.app} answers {facts.answers.get(saga.app)!r}, and its newest success is {push.version!r}"


def _traffic(facts: Facts) -> Iterator[str]:
    """An app never goes back to an older version, unless the newer one was undone; and shows nothing that failed."""
    by_version = {push.version: push for push in facts.pushed}
    for app, shown in facts.shown.items():
        for version in shown:
            if version not in by_version or not by_version[version].good:
                yield f"{app} answered {version!r}, which nobody has pushed"
        for newer, older in pairwise(each for each in shown if each in by_version):
            saga = facts.of_push(by_version[newer])
            went_back = by_version[older].number < by_version[newer].number
            if went_back and saga is not None and saga.state == "SUCCEEDED":
                yield f"{app} went back from {newer!r}, which succeeded, to {older!r}"


def _files(facts: Facts) -> Iterator[str]:
    """No archive and no work folder of a saga that has ended."""
    waiting = any(each.state not in ENDED for each in facts.sagas.values())
    for path in facts.files:
        if any(each.id in path for each in facts.sagas.values() if each.state in ENDED):
            yield f"{path} is left of a saga that has ended"
        elif "archives/sha256/" in path and not waiting:
            yield f"{path} is an archive that nobody needs"
