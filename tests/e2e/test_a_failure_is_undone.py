"""A push that cannot work is undone at whichever step it fails, while what ran before goes on answering.

What is left is read from outside: what runs, folders, image store, routes, before and after.
"""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import (
    CRASHES,
    ENDED,
    NEVER_LISTENS,
    WRONG_PORT,
    Client,
    Knarr,
    Laptop,
    Repository,
    error_of,
    eventually,
    step_of,
    web_app,
)

pytestmark = pytest.mark.xdist_group("e2e-failures")

ATTEMPTS_S = 200
"""So long the attempts of a step may go on: nine, with three minutes of waits between them at most."""


@dataclass
class World:
    """What a failed deployment must not change."""

    images: dict[str, list[str]]
    workloads: set[str]
    url: str
    release: int

    @classmethod
    def of(cls, knarr: Knarr, app: str) -> "World":
        """As it is now."""
        found = knarr.app(app)
        return cls(
            images=knarr.images(),
            workloads=knarr.workloads(),
            url=found["url"],
            release=found["release"],
        )


@pytest.fixture(scope="module")
def patient(knarr: Knarr) -> Knarr:
    """The shared platform, with little patience for apps that do not start."""
    knarr.stop()
    knarr.settings["KNARR_START_TIMEOUT_S"] = str(knarr.least_start_s)
    return knarr.start()


@pytest.fixture
def live(patient: Knarr, request: pytest.FixtureRequest) -> Repository:
    """An app whose first version runs."""
    name = f"live-{sum(map(ord, request.node.name)) * 7919 % 100_000}"
    repository = patient.repository(name)
    patient.create_app(name, repository)
    assert patient.deploy(repository)["state"] == "SUCCEEDED"
    eventually("the builder has let go of it", lambda: not any("staging" in each for each in patient.images()))
    return repository


def undone(knarr: Knarr, repository: Repository, *, at: str) -> dict[str, object]:
    """Push what cannot work; everything is as before, and the client has noticed nothing."""
    app = repository.path.name
    before = World.of(knarr, app)
    with Client(before.url, expected=("one",)) as client:
        saga = knarr.deploy(repository)
    assert saga["state"] == "COMPENSATED", saga
    assert saga["reason"] == "failed"
    assert step_of(saga, at)["error"], saga
    knarr.has_let_go_of(saga["id"])
    assert World.of(knarr, app) == before
    assert client.faults == []
    assert client.answers > 0
    return saga


def test_a_commit_that_does_not_exist_fails_at_the_source(patient: Knarr, live: Repository) -> None:
    """Nothing later was ever asked to do anything."""
    app = live.path.name
    before = World.of(patient, app)
    started = patient.api.post("webhook", f"/apps/{app}/deployments", {"commit": "dead" * 10})
    saga = patient.ended(started["saga_id"])
    assert saga["state"] == "COMPENSATED"
    assert "dead" in error_of(saga, "source")
    assert [step["state"] for step in saga["steps"]] == ["UNDONE", "PENDING", "PENDING", "PENDING", "PENDING"]
    patient.has_let_go_of(saga["id"])
    assert World.of(patient, app) == before


def test_requirements_that_cannot_be_installed_fail_at_the_build(patient: Knarr, live: Repository) -> None:
    """The last lines are in the event, the whole log is one request away."""
    live.commit({"requirements.txt": "./there-is-no-such-folder\n"})
    saga = undone(patient, live, at="build")
    assert "there-is-no-such-folder" in patient.text("builder", f"/builds/{saga['id']}/log")


@pytest.mark.parametrize(
    ("code", "says"),
    [(CRASHES, "exit"), (NEVER_LISTENS, "listen"), (WRONG_PORT, "port")],
    ids=["crashes", "never-listens", "wrong-port"],
)
def test_an_app_that_does_not_start_fails_at_the_deployment(
    patient: Knarr, live: Repository, code: str, says: str
) -> None:
    """It says what was waited for, and what the app printed."""
    live.commit({"app.py": code})
    saga = undone(patient, live, at="deploy")
    assert says in error_of(saga, "deploy").lower()
    assert [step["state"] for step in saga["steps"]] == [*["UNDONE"] * 4, "PENDING"]  # type: ignore[attr-defined]


def test_the_undo_is_last_in_first_out_and_says_what_it_did(patient: Knarr, live: Repository) -> None:
    """Each undo's entry has what was found and what was done."""
    live.commit({"app.py": CRASHES})
    saga = undone(patient, live, at="deploy")
    log = patient.log(str(saga["id"]))
    sent = [entry["type"] for entry in log if entry["direction"] == "out"]
    undos = [each for each in sent if each in {"RollBackRelease", "UnpublishImage", "DiscardBuild", "DiscardSource"}]
    assert undos == ["RollBackRelease", "UnpublishImage", "DiscardBuild", "DiscardSource"]
    answers = {entry["type"]: entry["payload"] for entry in log if entry["direction"] == "in"}
    for name in ("ReleaseRolledBack", "ImageUnpublished", "BuildDiscarded", "SourceDiscarded"):
        data = answers[name].get("data", answers[name])
        assert "found" in data
        assert "done" in data


def test_a_first_deployment_that_fails_leaves_an_app_without_a_release(patient: Knarr) -> None:
    """Nothing ran before: nothing runs after."""
    repository = patient.repository("first-fails", {**web_app("one"), "app.py": CRASHES})
    patient.create_app("first-fails", repository)
    images = patient.images()
    saga = patient.deploy(repository)
    assert saga["state"] == "COMPENSATED"
    patient.has_let_go_of(saga["id"])
    assert patient.images() == images


def test_the_same_commit_can_be_tried_again(patient: Knarr) -> None:
    """`retry` of an undone saga is a new, linked one."""
    repository = patient.repository("again", {**web_app("one"), "app.py": CRASHES})
    patient.create_app("again", repository)
    failed = patient.deploy(repository)
    again = patient.api.post("saga_coordinator", f"/sagas/{failed['id']}/retry", {"reason": "once more"})
    linked = eventually("the linked saga is there", lambda: _child_of(patient, "again", failed["id"]))
    assert patient.ended(linked)["state"] == "COMPENSATED"
    assert again["id"] in {failed["id"], linked}


def test_a_cancelled_deployment_is_undone(patient: Knarr, live: Repository) -> None:
    """In the middle of a step: its handler is stopped, everything before it is undone."""
    app = live.path.name
    before = World.of(patient, app)
    live.commit({"app.py": "import time\n" + NEVER_LISTENS})
    with Client(before.url, expected=("one",)) as client:
        (saga_id,) = patient.push(live)["deployments"]
        patient.at(saga_id, "deploy", "SENT")
        patient.api.post("saga_coordinator", f"/sagas/{saga_id}/cancel", {"reason": "wrong branch"})
        saga = patient.ended(saga_id)
    assert (saga["state"], saga["reason"]) == ("COMPENSATED", "cancelled")
    patient.has_let_go_of(saga_id)
    assert World.of(patient, app) == before
    assert client.faults == []
    verb = next(entry for entry in patient.log(saga_id) if entry["direction"] == "operator")
    assert "wrong branch" in str(verb["payload"])


@pytest.fixture
def store_that_is_full(patient: Laptop) -> Iterator[Path]:
    """The image store cannot be written: a file stands where its folder for new images was."""
    store = patient.home / "registry" / "images"
    hidden = store.with_name("images-away")
    store.rename(hidden)
    store.write_text("")
    try:
        yield store
    finally:
        if store.is_file():
            store.unlink()
            hidden.rename(store)


@pytest.mark.laptop("the store's folder is broken by hand")
def test_a_store_that_fails_for_a_while_is_tried_again(
    patient: Knarr, live: Repository, store_that_is_full: Path
) -> None:
    """A fault of ours is retried after a wait; when it has passed, the deployment goes on and succeeds."""
    live.commit(web_app("two"))
    (saga_id,) = patient.push(live)["deployments"]
    eventually("an attempt has failed", lambda: _attempts(patient, saga_id) >= 2)
    hidden = store_that_is_full.with_name("images-away")
    store_that_is_full.unlink()
    os.rename(hidden, store_that_is_full)  # noqa: PTH104  a pair with unlink: nothing in between
    saga = patient.ended(saga_id)
    assert saga["state"] == "SUCCEEDED", saga
    assert patient.ask(live.path.name) == "two"


@pytest.fixture
def nowhere_to_publish(patient: Laptop) -> Iterator[tuple[Repository, Path]]:
    """An app whose permanent place in the image store is taken by a file: staging works, publishing does not."""
    name = f"unpublishable-{uuid.uuid4().hex[:8]}"
    repository = patient.repository(name)
    patient.create_app(name, repository)
    place = patient.home / "registry" / "images" / "repositories" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("")
    yield repository, place
    if place.is_file():
        place.unlink()


@pytest.mark.laptop("the store's folder is broken by hand")
def test_an_image_that_cannot_be_published_waits_for_a_person_and_goes_on_at_that_step(
    patient: Knarr, nowhere_to_publish: tuple[Repository, Path]
) -> None:
    """After the last attempt it is held with its reason; `retry` repeats that step, and nothing that was finished."""
    repository, place = nowhere_to_publish
    (saga_id,) = patient.push(repository)["deployments"]
    held = eventually("it is held", lambda: _held(patient, saga_id), patience_s=patient.patience_s + ATTEMPTS_S)
    assert (held["state"], held["held"], held["needs_attention"]) == ("PAUSED", True, True)
    assert error_of(held, "publish")
    place.unlink()
    patient.api.post("saga_coordinator", f"/sagas/{saga_id}/retry", {"reason": "the place is free"})
    saga = eventually("it has ended", lambda: _ended(patient, saga_id))
    assert saga["state"] == "SUCCEEDED", saga
    assert step_of(saga, "build")["attempts"] == 1
    assert patient.ask(repository.path.name) == "one"


@pytest.mark.laptop("the store's folder is broken by hand")
def test_an_image_that_cannot_be_published_is_undone_when_a_person_says_so(
    patient: Knarr, nowhere_to_publish: tuple[Repository, Path]
) -> None:
    """In the middle of its attempts; the staged image and the archive go, too."""
    repository, place = nowhere_to_publish
    before = patient.images()
    (saga_id,) = patient.push(repository)["deployments"]
    eventually("an attempt has failed", lambda: _attempts(patient, saga_id) >= 2)
    assert error_of(patient.saga(saga_id), "publish")
    place.unlink()  # a store that is still broken could not say that nothing is left
    patient.api.post("saga_coordinator", f"/sagas/{saga_id}/cancel", {"reason": "not worth it"})
    saga = eventually("it has ended", lambda: _ended(patient, saga_id))
    assert saga["state"] == "COMPENSATED", saga
    assert [step["state"] for step in saga["steps"]] == ["UNDONE", "UNDONE", "UNDONE", "PENDING", "PENDING"]
    patient.has_let_go_of(saga["id"])
    assert patient.images() == before


def _ended(knarr: Knarr, saga_id: str) -> dict[str, Any] | None:
    saga = knarr.saga(saga_id)
    return saga if saga["state"] in ENDED else None


def _held(knarr: Knarr, saga_id: str) -> dict[str, Any] | None:
    saga = knarr.saga(saga_id)
    return saga if saga["held"] else None


def _attempts(knarr: Knarr, saga_id: str) -> int:
    return max(int(step["attempts"]) for step in knarr.saga(saga_id)["steps"])


def _child_of(knarr: Knarr, app: str, parent: str) -> str | None:
    found = knarr.api.pages("saga_coordinator", "/sagas", limit=10, app=app)
    return next((saga["id"] for saga in found if saga["parent_id"] == parent), None)
