"""A stream of pushes: as GitHub sends them, and again whenever the answer was none; what was accepted out.

One sender, so that an app's pushes come in their order. A push that got no 2xx is sent again as it was until it gets
one, as an operator would press "Redeliver"; some that were accepted are sent once more, to be told apart as duplicates.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Self

from knarr.client import Platform
from knarr.push import Push, push_of
from seedwork.errors import KnarrError
from tests.e2e.harness import CRASHES, SECRET, Knarr, Repository, web_app

BAD = 0.12
"""Of pushes: their program ends at once, so that they are undone."""
AGAIN = 0.2
"""Of pushes: sent once more when they are accepted."""
ANSWER_S = 10
"""GitHub waits so long for an answer."""


@dataclass(slots=True)
class Pushed:
    """A push that got a 2xx."""

    app: str
    number: int
    """Of the app's pushes, from 1; an app answers `<app> <number>`."""
    commit: str
    good: bool
    sagas: tuple[str, ...]
    """That the answer named."""
    tries: int
    accepted_at: float

    @property
    def version(self) -> str:
        """What the app answers when this is live."""
        return f"{self.app} {self.number}"


@dataclass
class Pusher:
    """Pushes to these apps, in a thread of its own, about every `every_s`."""

    knarr: Knarr
    apps: Sequence[str]
    seed: int
    every_s: float
    pushed: list[Pushed] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """Answers that are wrong."""
    again: int = 0
    refusals: int = 0
    """Tries without a 2xx."""
    ended: BaseException | None = None

    def __post_init__(self) -> None:
        """A repository for each app, with a commit that nobody pushed."""
        self._chance = Random(self.seed)  # noqa: S311  no secret
        self._leaving, self._more = threading.Event(), threading.Condition()
        self._numbers = dict.fromkeys(self.apps, 0)
        self._repositories = {app: self._known(app) for app in self.apps}

    def __enter__(self) -> Self:
        """Begin."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """No new push; the one that is being sent is sent until it is accepted."""
        self._leaving.set()
        self._thread.join(600)
        if self.ended is not None:
            raise self.ended

    def wait_for_more(self, count: int, *, within_s: float = 600) -> None:
        """Until so many more are accepted."""
        with self._more:
            wanted = len(self.pushed) + count
            done = self._more.wait_for(lambda: len(self.pushed) >= wanted or self.ended is not None, within_s)
        if self.ended is not None:
            raise self.ended
        assert done, f"no push was accepted within {within_s:g} s; {self.refusals} tries were refused"

    def push(self, app: str, *, good: bool = True) -> Pushed:
        """One push, accepted."""
        self._numbers[app] += 1
        number = self._numbers[app]
        repository = self._repositories[app]
        files = web_app(f"{app} {number}") if good else {"app.py": f"# {app} {number}\n{CRASHES}"}
        commit = repository.commit(files)
        push = push_of(repository.path, full_name=repository.full_name, secret=SECRET, clone_url=repository.url)
        tries, sagas = self._sent(push)
        one = Pushed(app, number, commit, good, sagas, tries, time.time())
        with self._more:
            self.pushed.append(one)
            self._more.notify_all()
        if self._chance.random() < AGAIN:
            self.again += 1
            _, told = self._sent(push)
            if told != sagas:
                self.faults.append(f"push {one.version} named {sagas}, and {told} when it was sent again")
        return one

    def _run(self) -> None:
        try:
            while not self._leaving.wait(self._chance.uniform(0.5, 1.5) * self.every_s):
                self.push(self._chance.choice(self.apps), good=self._chance.random() >= BAD)
        except BaseException as error:  # noqa: BLE001  told to whoever waits
            self.ended = error
            with self._more:
                self._more.notify_all()

    def _sent(self, push: Push) -> tuple[int, tuple[str, ...]]:
        """Sent until it is accepted: how often, and the deployments that the answer names."""
        tries = 0
        while True:
            tries += 1
            sender = Platform(self.knarr.address, None, timeout_s=ANSWER_S)  # each delivery has its own connection
            try:
                answer: dict[str, Any] = sender.request(
                    "POST", "webhook", "/github-webhook", content=push.body, headers=dict(push.headers)
                )
            except KnarrError:
                self.refusals += 1
                time.sleep(0.5)
            else:
                return tries, tuple(answer["deployments"])
            finally:
                sender.close()

    def _known(self, app: str) -> Repository:
        repository = self.knarr.repository(app, web_app(f"{app} 0"))
        self.knarr.create_app(app, repository)
        return repository
