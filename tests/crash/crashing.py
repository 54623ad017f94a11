"""A platform that is killed again and again on one home, and what must hold of it from outside."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx2

from knarr.push import Push, push_of
from seedwork.chassis.settings import SERVICE_PORTS
from tests.e2e.harness import SECRET, Knarr, Laptop, Process, Repository, eventually
from tests.e2e.warm import Launcher

QUICK = {
    "KNARR_DRAIN_S": "10",
    "KNARR_START_TIMEOUT_S": "60",
    "KNARR_REGISTRY_KEEP": "1000",
    "KNARR_OBSERVE_S": "0",
}
"""However busy the machine is, no request is cut off and no start given up; and nothing is collected meanwhile, so that
what is there can be compared with what was there."""


class CrashingKnarr(Laptop):
    """Started in a moment, armed while it runs."""

    def __init__(self, folder: Path, port_base: int, launcher: Launcher) -> None:
        """Take a folder and ports for itself."""
        super().__init__(folder, port_base, launcher, settings=dict(QUICK))
        self.lives = 0

    def launch(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Process:
        """Counted."""
        self.lives += 1
        return super().launch(arguments, environment)

    def last_words(self) -> str:
        """What it told its terminal last, without the greetings of its many starts."""
        lines = self.log_file.read_text(errors="replace").splitlines()
        return "\n".join([each for each in lines if each[:1].isdigit() or "Error" in each][-40:])

    def live_for(self, seconds: float) -> None:
        """Start it and kill it so long afterwards, ready or not."""
        self.mark.unlink(missing_ok=True)
        self.process = self.launch(self.arguments, self.environment())
        time.sleep(seconds)
        self.kill()

    def push_of(self, repository: Repository) -> Push:
        """The push of a repository's tip, to be sent as often as need be."""
        return push_of(repository.path, full_name=repository.full_name, secret=SECRET, clone_url=repository.url)

    def send(self, push: Push) -> list[str]:
        """Send a webhook; the deployments that it names."""
        answer = self.api.request("POST", "webhook", "/github-webhook", content=push.body, headers=dict(push.headers))
        deployments: list[str] = answer["deployments"]
        return deployments

    def has_nothing_left_to_do(self) -> None:
        """Every service has published everything and works on nothing; nothing went to the dead letters."""
        try:
            eventually("nothing is left to do", lambda: not self._open_work())
        except AssertionError as error:
            error.add_note(f"open are {self._open_work()}")
            raise
        for service in SERVICE_PORTS:
            assert self.api.pages(service, "/dead-letters", limit=10) == []
        archives = self.home / "source" / "archives"
        eventually("sources were let go of", lambda: not [each for each in archives.rglob("*") if each.is_file()])
        eventually("staged images were let go of", lambda: not [each for each in self.images() if "staging" in each])

    def _open_work(self) -> list[str]:
        lines = [
            f"{service}: {line}"
            for service in SERVICE_PORTS
            for line in self.text(service, "/metrics").splitlines()
            if line.startswith(("knarr_outbox_messages", "knarr_jobs{", "knarr_sagas_forgotten"))
        ]
        return [line for line in lines if float(line.split()[-1])]


@dataclass(frozen=True, slots=True)
class World:
    """What belongs to an app, and everything in the image store."""

    sagas: frozenset[str]
    releases: Mapping[int, Mapping[str, Any]]
    images: frozenset[str]

    @classmethod
    def of(cls, knarr: Knarr, app: str) -> "World":
        """As it is now."""
        releases = knarr.api.pages("deployer", f"/apps/{app}/releases", limit=1000)
        return cls(
            sagas=sagas_of(knarr, app),
            releases={each["number"]: each for each in releases if each["state"] != "undone"},
            images=frozenset(f"{name} {digest}" for name, digests in knarr.images().items() for digest in digests),
        )


def sagas_of(knarr: Knarr, app: str) -> frozenset[str]:
    """Every saga of an app."""
    return frozenset(each["id"] for each in knarr.api.pages("saga_coordinator", "/sagas", limit=10_000, app=app))


@dataclass
class Witness:
    """Asks an app all the time. While the platform is away nobody answers; a wrong answer is never right.

    After the first answer of a start, an error of the platform is a fault too, and so is an older version after a newer
    one.
    """

    knarr: CrashingKnarr
    app: str
    versions: tuple[str, ...]
    """What it may answer, in this order."""
    faults: list[str] = field(default_factory=list)
    answered_in: set[int] = field(default_factory=set)
    """In which lives of the platform it answered."""
    _newest: int = 0

    def __enter__(self) -> Self:
        """Begin with an answer."""
        self._url = self.knarr.app(self.app)["url"]
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self.answers()

    def __exit__(self, *_: object) -> None:
        """End; nothing was wrong."""
        self._left.set()
        self._thread.join(30)
        assert self.faults == []

    def answers(self) -> Self:
        """It answers since the last start."""
        life = self.knarr.lives
        eventually(f"{self.app} answers", lambda: self.faults or life in self.answered_in)
        return self

    def _run(self) -> None:
        with httpx2.Client(timeout=10, trust_env=False) as client:
            while not self._left.wait(0.04):
                life = self.knarr.lives
                try:
                    answer = client.get(self._url)
                except httpx2.HTTPError:
                    continue
                self._judge(life, answer)

    def _judge(self, life: int, answer: httpx2.Response) -> None:
        if answer.status_code == 200 and answer.text in self.versions[self._newest :]:
            self._newest = self.versions.index(answer.text)
            self.answered_in.add(life)
        elif answer.status_code == 200 or life in self.answered_in:
            self.faults.append(f"life {life}: {answer.status_code} {answer.text[:200]!r}")
