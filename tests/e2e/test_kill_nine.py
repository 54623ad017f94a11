"""`kill -9` of the whole process in the middle of each step and of each undo, then a restart.

The saga ends, the app answers with what it should, one instance runs, nothing is left over.
"""

import contextlib

import pytest

from seedwork.errors import Unavailable
from tests.e2e.harness import CRASHES, NEVER_LISTENS, Laptop, Repository, eventually, web_app

pytestmark = pytest.mark.laptop(
    "one process is killed at points that a file names; `make chaos-stack` kills replicas on servers"
)

STEPS = ("FetchSource", "BuildImage", "PublishImage", "DeployRelease")
UNDOS = ("RollBackRelease", "UnpublishImage", "DiscardBuild", "DiscardSource")
WHEN = ("before_effect", "after_effect")


@pytest.fixture(scope="module")
def app(knarr: Laptop) -> Repository:
    """An app that lives through all of it, live when the first kill comes."""
    repository = knarr.repository("app")
    knarr.create_app("app", repository)
    saga = knarr.deploy(repository)
    assert saga["state"] == "SUCCEEDED", saga
    return repository


def one_instance_answers(knarr: Laptop, app: str, version: str) -> None:
    """At its address, and only one instance of it is in the process table."""
    eventually(f"{app} answers {version}", lambda: knarr.ask(app) == version)
    eventually("one instance runs", lambda: len(knarr.app(app)["instances"]) == 1)
    eventually("one instance is in the process table", lambda: knarr.running(app) == 1)


def pushed_into_a_crash(knarr: Laptop, repository: Repository, point: str) -> str:
    """Push, see the crash, start again; the saga's id."""
    knarr.arm(point)
    (saga_id,) = knarr.push(repository)["deployments"]
    knarr.dies_at(point)
    knarr.start()
    return str(saga_id)


def only_saga(knarr: Laptop) -> str | None:
    """The one saga that there is; none yet."""
    found = knarr.api.pages("saga_coordinator", "/sagas", limit=10)
    assert len(found) <= 1, found
    return str(found[0]["id"]) if found else None


@pytest.mark.xdist_group("e2e-kill-steps")
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("command", STEPS)
def test_a_kill_in_a_step_is_taken_up_after_the_restart(
    knarr: Laptop, app: Repository, command: str, when: str
) -> None:
    """The push goes through as if nothing had been; the version before goes on in between."""
    version = f"{command} {when}"
    app.commit(web_app(version))
    saga = knarr.ended(pushed_into_a_crash(knarr, app, f"job.{when}/{command}"))
    assert saga["state"] == "SUCCEEDED", saga
    one_instance_answers(knarr, "app", version)


@pytest.mark.xdist_group("e2e-kill-undos")
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("command", UNDOS)
def test_a_kill_in_an_undo_is_taken_up_after_the_restart(
    knarr: Laptop, app: Repository, command: str, when: str
) -> None:
    """The undo is finished, the version before answers, nothing of the saga is left."""
    version = str(knarr.ask("app"))
    eventually(
        "the builder has let go of what is published", lambda: not any("staging" in each for each in knarr.images())
    )
    images = knarr.images()
    app.commit({"app.py": CRASHES})
    saga_id = pushed_into_a_crash(knarr, app, f"job.{when}/{command}")
    saga = knarr.ended(saga_id)
    assert saga["state"] == "COMPENSATED", saga
    one_instance_answers(knarr, "app", version)
    knarr.has_let_go_of(saga_id)
    assert knarr.images() == images


@pytest.mark.parametrize("point", ["webhook.after_commit", "coordinator.before_commit", "outbox.before_publish"])
def test_a_push_that_reached_knarr_is_never_lost(own_knarr: Laptop, point: str) -> None:
    """Killed before the answer left, or before the coordinator has seen it: it is deployed all the same, once."""
    knarr = own_knarr.start()
    repository = knarr.repository("app")
    knarr.create_app("app", repository)
    knarr.arm(point)
    with contextlib.suppress(Unavailable):  # some points are passed before the answer leaves
        knarr.push(repository)
    knarr.dies_at(point)
    knarr.start()
    saga_id = eventually("the saga is there", lambda: only_saga(knarr))
    assert knarr.ended(saga_id)["state"] == "SUCCEEDED"
    one_instance_answers(knarr, "app", "one")


def test_a_kill_while_an_app_starts_leaves_no_process_behind(own_knarr: Laptop) -> None:
    """The instance that was being started has no owner any more: it goes, and the deployment is finished or undone."""
    own_knarr.settings["KNARR_START_TIMEOUT_S"] = "4"
    knarr = own_knarr.start()
    repository = knarr.repository("app")
    knarr.create_app("app", repository)
    assert knarr.deploy(repository)["state"] == "SUCCEEDED"
    repository.commit({"app.py": NEVER_LISTENS})
    (saga_id,) = knarr.push(repository)["deployments"]
    eventually("the new instance is being started", lambda: knarr.processes(saga_id))
    knarr.kill()
    knarr.start()
    assert knarr.ended(saga_id)["state"] == "COMPENSATED"
    knarr.has_let_go_of(saga_id)
    one_instance_answers(knarr, "app", "one")


def test_what_ran_runs_again_once_after_a_kill(own_knarr: Laptop) -> None:
    """At the same address, one process."""
    knarr = own_knarr.start()
    repository = knarr.repository("app")
    knarr.create_app("app", repository)
    knarr.deploy(repository)
    url = knarr.app("app")["url"]
    knarr.kill()
    knarr.start()
    assert knarr.app("app")["url"] == url
    one_instance_answers(knarr, "app", "one")
