"""What somebody wants of the platform while it is killed, and what must have come of it in the end."""

import contextlib
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from seedwork.errors import Conflict, NotFound, Unavailable
from tests.crash.cases import Case
from tests.crash.crashing import CrashingKnarr, Witness, World, sagas_of
from tests.e2e.harness import CRASHES, ENDED, NEVER_LISTENS, Repository, eventually, step_of, web_app

OBSERVE_S = 600.0
ENDS_SOON = "import os, threading\nthreading.Timer(2, lambda: os._exit(3)).start()\n" + web_app("ends soon")["app.py"]


@dataclass
class Subject:
    """An app that lives through many crashes."""

    name: str
    repository: Repository
    live: str
    """The version that runs."""
    pushes: int = 0

    @classmethod
    def made(cls, knarr: CrashingKnarr, name: str) -> "Subject":
        """A new app; its first version runs."""
        repository = knarr.repository(name, web_app(f"{name} 0"))
        knarr.create_app(name, repository)
        saga = knarr.deploy(repository)
        assert saga["state"] == "SUCCEEDED", saga
        knarr.has_nothing_left_to_do()
        return cls(name, repository, live=f"{name} 0")

    def next_version(self) -> str:
        """One that was never there."""
        self.pushes += 1
        return f"{self.name} {self.pushes}"


class Scene:
    """Somebody asks for something, is not answered, asks again as one does, and gets it once."""

    ends = "SUCCEEDED"

    def __init__(self, knarr: CrashingKnarr, subject: Subject) -> None:
        """Look at what is there."""
        self.knarr = knarr
        self.app = subject
        self.answered = False
        self.before = World.of(knarr, subject.name)

    def prepare(self) -> AbstractContextManager[object]:
        """Everything up to the moment from which on crashes come; the witness of the time until the end."""
        return Witness(self.knarr, self.app.name, (self.app.live,))

    def ask(self) -> None:
        """The request."""
        raise NotImplementedError

    def insist(self) -> None:
        """Ask, if there was no answer yet; the platform may die meanwhile."""
        if not self.answered:
            with contextlib.suppress(Unavailable):
                self.ask()
                self.answered = True

    def after_first_crash(self) -> None:
        """What a person would do before the next start."""

    def saga(self) -> dict[str, Any]:
        """The one that came of it, at its end."""
        (saga_id,) = eventually("a saga came of it", self._new_sagas)
        saga = eventually("it ends", lambda: _if_ended(self.knarr.saga(saga_id)))
        assert self._new_sagas() == {saga_id}
        return saga

    def _new_sagas(self) -> frozenset[str]:
        return sagas_of(self.knarr, self.app.name) - self.before.sagas

    def verify(self, saga: dict[str, Any]) -> None:
        """The right end; a log without gaps."""
        assert saga["state"] == self.ends, saga
        log = self.knarr.log(saga["id"])
        assert [entry["seq"] for entry in log] == list(range(log[0]["seq"], log[0]["seq"] + len(log)))
        assert log[-1]["state"] == self.ends

    # What may be there in the end

    def one_release_more(self, saga: dict[str, Any]) -> None:
        """One release, one set of instances, nothing besides."""
        after = World.of(self.knarr, self.app.name)
        (number,) = after.releases.keys() - self.before.releases.keys()
        release = after.releases[number]
        assert (release["state"], release["saga_id"]) == ("live", saga["id"])
        assert [each["number"] for each in after.releases.values() if each["state"] == "live"] == [number]
        assert after.images >= self.before.images
        self.one_instance(self.app.live)
        elsewhere = [each for each in self.knarr.files_named(saga["id"]) if not each.startswith("deployer/")]
        assert elsewhere == []

    def nothing_more(self, saga: dict[str, Any]) -> None:
        """As if it had never been."""
        self.knarr.has_let_go_of(saga["id"])
        after = World.of(self.knarr, self.app.name)
        assert (after.releases, after.images) == (self.before.releases, self.before.images)
        self.one_instance(self.app.live)

    def one_instance(self, version: str) -> None:
        """The version answers; one instance runs, by the deployer's word and by the process table."""
        name = self.app.name
        eventually(f"{name} answers {version}", lambda: self.knarr.ask(name) == version)
        eventually("one instance is known", lambda: len(self.knarr.app(name)["instances"]) == 1)
        eventually("one instance is in the process table", lambda: self.knarr.running(name) == 1)


class PushScene(Scene):
    """A push of a new version; if its answer never came, it is redelivered as it is."""

    def prepare(self) -> AbstractContextManager[object]:
        """The commit."""
        self.version = self.app.next_version()
        self.app.repository.commit(web_app(self.version))
        self.push = self.knarr.push_of(self.app.repository)
        return Witness(self.knarr, self.app.name, (self.app.live, self.version))

    def ask(self) -> None:
        """Send it."""
        self.knarr.send(self.push)

    def verify(self, saga: dict[str, Any]) -> None:
        """The new version runs, by one new image."""
        super().verify(saga)
        assert self.knarr.send(self.push) == [saga["id"]]  # once more: still the same deployment
        self.app.live = self.version
        self.one_release_more(saga)
        (image,) = World.of(self.knarr, self.app.name).images - self.before.images
        assert image.startswith(f"repositories/{self.app.name} {saga['commit']}@sha256:")


class FailingPushScene(Scene):
    """A push of a version that does not start: all that was done is undone."""

    ends = "COMPENSATED"
    program = CRASHES
    steps = ("UNDONE", "UNDONE", "UNDONE", "UNDONE", "PENDING")

    def prepare(self) -> AbstractContextManager[object]:
        """The commit."""
        self.app.repository.commit({"app.py": f"# {self.app.next_version()}\n{self.program}"})
        self.push = self.knarr.push_of(self.app.repository)
        return super().prepare()

    def ask(self) -> None:
        """Send it."""
        self.knarr.send(self.push)

    def verify(self, saga: dict[str, Any]) -> None:
        """Everything is undone, in the right order, and nothing is left."""
        super().verify(saga)
        assert tuple(step["state"] for step in saga["steps"]) == self.steps
        undone = ("ReleaseRolledBack", "ImageUnpublished", "BuildDiscarded", "SourceDiscarded")
        answers = [each["type"] for each in self.knarr.log(saga["id"]) if each["direction"] == "in"]
        assert tuple(each for each in answers if each in undone) == undone
        assert self.knarr.send(self.push) == [saga["id"]]
        self.nothing_more(saga)


class PushThatEndsScene(FailingPushScene):
    """A push of a version that answers and ends soon after: the traffic moves back to the version before."""

    program = ENDS_SOON
    steps = ("UNDONE",) * 5

    def prepare(self) -> AbstractContextManager[object]:
        """The commit, of an app that is observed for long; while it serves, another version than before answers."""
        super().prepare()
        self.knarr.api.patch("webhook", f"/apps/{self.app.name}", {"observe_s": OBSERVE_S})
        self.knarr.has_nothing_left_to_do()
        return contextlib.nullcontext()

    def verify(self, saga: dict[str, Any]) -> None:
        """As any failing push; later scenes are not observed."""
        super().verify(saga)
        self.knarr.api.patch("webhook", f"/apps/{self.app.name}", {"observe_s": 0.0})


class CancelledPushScene(FailingPushScene):
    """A push is under way when somebody cancels it, and says so again when no answer comes."""

    program = NEVER_LISTENS

    def prepare(self) -> AbstractContextManager[object]:
        """Pushed, and at its last step."""
        witness = super().prepare()
        (self.saga_id,) = self.knarr.send(self.push)
        self.knarr.at(self.saga_id, "deploy", "SENT")
        return witness

    def ask(self) -> None:
        """Press the button; that it is in force already is an answer, too."""
        with contextlib.suppress(Conflict):
            self.knarr.api.post("saga_coordinator", f"/sagas/{self.saga_id}/cancel", {"reason": "the tests want it so"})

    def verify(self, saga: dict[str, Any]) -> None:
        """Cancelled once."""
        super().verify(saga)
        assert saga["reason"] == "cancelled"
        pressed = [each for each in self.knarr.log(saga["id"]) if each["direction"] == "operator"]
        assert len(pressed) == 1


class RestartScene(Scene):
    """Fresh instances of what is live."""

    def ask(self) -> None:
        """Ask the deployer."""
        self.knarr.api.post("deployer", f"/apps/{self.app.name}/restart")

    def insist(self) -> None:
        """The request is on disk before any of the crashes: to ask again would be another restart."""
        if not self.answered:
            self.answered = True
            with contextlib.suppress(Unavailable):
                self.ask()

    def verify(self, saga: dict[str, Any]) -> None:
        """The same version, as a new release, by the image that was there."""
        super().verify(saga)
        self.one_release_more(saga)
        assert World.of(self.knarr, self.app.name).images == self.before.images


class FailingChangeScene(Scene):
    """A change of the configuration with which the app cannot start: the release is undone, the image stays."""

    ends = "COMPENSATED"

    def ask(self) -> None:
        """Python finds no library of its own with this."""
        self.knarr.api.patch("deployer", f"/apps/{self.app.name}/config", {"PYTHONHOME": "/nowhere"})

    insist = RestartScene.insist

    def verify(self, saga: dict[str, Any]) -> None:
        """Both steps are undone, the last one first."""
        super().verify(saga)
        assert [step["state"] for step in saga["steps"]] == ["UNDONE", "UNDONE", "PENDING"]
        answers = [each["type"] for each in self.knarr.log(saga["id"]) if each["direction"] == "in"]
        assert answers[-2:] == ["ReleaseRolledBack", "ImageUnpublished"]
        self.nothing_more(saga)


class TakenBackScene(Scene):
    """The live deployment is undone by a person: the one before it comes back, as a release of its own."""

    def prepare(self) -> AbstractContextManager[object]:
        """One more deployment."""
        self.app.repository.commit(web_app(self.app.next_version()))
        self.saga_id = self.knarr.deploy(self.app.repository)["id"]
        before, self.app.live = self.app.live, self.knarr.ask(self.app.name)
        self.knarr.has_nothing_left_to_do()
        self.before = World.of(self.knarr, self.app.name)
        witness = Witness(self.knarr, self.app.name, (self.app.live, before))
        self.app.live = before
        return witness

    def ask(self) -> None:
        """Press the button; that it was pressed already is an answer, too."""
        with contextlib.suppress(Conflict):
            self.knarr.api.post("saga_coordinator", f"/sagas/{self.saga_id}/compensate", {"reason": "it is slow"})

    def verify(self, saga: dict[str, Any]) -> None:
        """One linked saga, one release, no image more."""
        super().verify(saga)
        assert self.knarr.saga(self.saga_id)["linked_id"] == saga["id"]
        self.one_release_more(saga)
        assert World.of(self.knarr, self.app.name).images == self.before.images


class RequestScene(PushScene):
    """A deployment asked for by the API, with an idempotency key."""

    def ask(self) -> None:
        """Ask for the commit."""
        self.knarr.api.request(
            "POST",
            "webhook",
            f"/apps/{self.app.name}/deployments",
            json={"commit": self.push.commit},
            headers={"Idempotency-Key": self.version.replace(" ", "-")},
        )

    def verify(self, saga: dict[str, Any]) -> None:
        """As a push."""
        Scene.verify(self, saga)
        self.app.live = self.version
        self.one_release_more(saga)


class UploadScene(RequestScene):
    """A folder is uploaded, with an idempotency key."""

    def ask(self) -> None:
        """Send the archive."""
        archive = subprocess.run(
            ["git", "-C", str(self.app.repository.path), "archive", "--format=tar.gz", "HEAD"],
            check=True,
            capture_output=True,
        )
        self.knarr.api.request(
            "POST",
            "webhook",
            f"/apps/{self.app.name}/deployments",
            content=archive.stdout,
            headers={"Content-Type": "application/gzip", "Idempotency-Key": self.version.replace(" ", "-")},
        )


class PolledPushScene(PushScene):
    """A push whose webhook never comes: the repository is asked."""

    def prepare(self) -> AbstractContextManager[object]:
        """What earlier scenes only uploaded is pushed, so nothing else is new; from now on knarr asks every second."""
        self.knarr.deploy(self.app.repository)
        self.app.live = self.knarr.ask(self.app.name)
        self.knarr.has_nothing_left_to_do()
        self.before = World.of(self.knarr, self.app.name)
        self.version = self.app.next_version()
        self.knarr.settings["KNARR_POLL_S"] = "1"
        self.knarr.kill()
        self.knarr.start()
        return Witness(self.knarr, self.app.name, (self.app.live, self.version))

    def insist(self) -> None:
        """Nobody sends anything."""
        if not self.answered:
            self.answered = True
            self.app.repository.commit(web_app(self.version))

    def verify(self, saga: dict[str, Any]) -> None:
        """As a push."""
        Scene.verify(self, saga)
        assert saga["trigger"] == "poll"
        self.app.live = self.version
        self.one_release_more(saga)
        del self.knarr.settings["KNARR_POLL_S"]
        self.knarr.kill()
        self.knarr.start()


class RemovalScene(Scene):
    """The app is removed, with all that it has."""

    def prepare(self) -> AbstractContextManager[object]:
        """Nobody watches it go."""
        return contextlib.nullcontext()

    def ask(self) -> None:
        """Ask for it."""
        with contextlib.suppress(NotFound):
            self.knarr.api.delete("webhook", f"/apps/{self.app.name}")

    def verify(self, saga: dict[str, Any]) -> None:
        """No process, no image, no file, no route."""
        super().verify(saga)
        assert self.knarr.running(self.app.name) == 0
        assert [name for name in self.knarr.images() if self.app.name in name.split("/")] == []
        for each in self.before.sagas:
            self.knarr.has_let_go_of(each)
        eventually("everybody has forgotten it", lambda: self._unknown_to("webhook") and self._unknown_to("deployer"))

    def _unknown_to(self, service: str) -> bool:
        try:
            self.knarr.api.get(service, f"/apps/{self.app.name}")
        except NotFound:
            return True
        return False


class PushTriedAgainScene(PushScene):
    """The image store has no place for the app at first: a timer tries again."""

    def prepare(self) -> AbstractContextManager[object]:
        """A file stands where the app's images are kept."""
        witness = super().prepare()
        place = self.knarr.home / "registry" / "images" / "repositories" / self.app.name
        self._place, self._hidden = place, place.with_name(f"{place.name}-hidden")
        place.rename(self._hidden)
        place.write_text("")
        return witness

    def after_first_crash(self) -> None:
        """The way is free again."""
        self._place.unlink()
        self._hidden.rename(self._place)

    def verify(self, saga: dict[str, Any]) -> None:
        """It took more than one attempt."""
        super().verify(saga)
        assert step_of(saga, "publish")["attempts"] > 1


SCENES: dict[str, Callable[[CrashingKnarr, Subject], Scene]] = {
    "push": PushScene,
    "failing-push": FailingPushScene,
    "push-that-ends": PushThatEndsScene,
    "cancelled-push": CancelledPushScene,
    "push-tried-again": PushTriedAgainScene,
    "restart": RestartScene,
    "failing-change": FailingChangeScene,
    "taken-back": TakenBackScene,
    "request": RequestScene,
    "upload": UploadScene,
    "polled-push": PolledPushScene,
    "removal": RemovalScene,
}
ENDS_ITS_APP = {"removal", "failing-change"}
"""Scenes after which the app is gone, or cannot take part in another one."""


def play(knarr: CrashingKnarr, subject: Subject, case: Case) -> None:
    """Kill it at the case's point, kill it again during the recovery, and see what came of it."""
    scene = SCENES[case.scene](knarr, subject)
    with scene.prepare() as witness:
        knarr.arm(case.point)
        scene.insist()
        knarr.dies_at(case.point)
        scene.after_first_crash()
        knarr.arm(case.second)
        knarr.start()
        scene.insist()
        knarr.dies_at(case.second)
        _comes_to_its_end(knarr, scene, witness)


def play_at_any_moment(knarr: CrashingKnarr, subject: Subject, name: str, first_s: float, second_s: float) -> None:
    """Kill it so long after the request, and again so long after the next start."""
    scene = SCENES[name](knarr, subject)
    with scene.prepare() as witness:
        scene.insist()
        time.sleep(first_s)
        knarr.kill()
        knarr.live_for(second_s)
        _comes_to_its_end(knarr, scene, witness)


def _comes_to_its_end(knarr: CrashingKnarr, scene: Scene, witness: object) -> None:
    knarr.start()
    scene.insist()
    assert scene.answered
    saga = scene.saga()
    if isinstance(witness, Witness):
        witness.answers()
    scene.verify(saga)
    knarr.has_nothing_left_to_do()


def _if_ended(saga: dict[str, Any]) -> dict[str, Any] | None:
    return saga if saga["state"] in ENDED or saga["held"] else None
