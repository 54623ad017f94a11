"""Asks the apps all the time, at their own address: what they answered, when it changed, and how often nobody did.

Apps run in the cluster, so no fault of the platform excuses one that does not answer; and an app that goes back to an
older version than it had shown is only right when the newer one was undone.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import httpx2

EVERY_S = 0.2
KEPT = 50
"""Failures of which each app's words are kept."""


@dataclass(slots=True)
class Watched:
    """What one app showed."""

    url: str
    answers: int = 0
    failures: list[tuple[float, str]] = field(default_factory=list)
    failed: int = 0
    shown: list[tuple[float, str]] = field(default_factory=list)
    """Each time another version than before: when, and which."""

    def saw(self, at: float, status: int, body: str) -> None:
        """An answer."""
        if status != 200:
            self.missed(at, f"{status} {body[:80]!r}")
            return
        self.answers += 1
        if not self.shown or self.shown[-1][1] != body:
            self.shown.append((at, body))

    def missed(self, at: float, why: str) -> None:
        """None."""
        self.failed += 1
        if len(self.failures) < KEPT:
            self.failures.append((at, why))


class Watcher:
    """A thread for each app.

    Args:
        urls: Of the apps, by name; each has answered before.
    """

    def __init__(self, urls: Mapping[str, str]) -> None:
        self.apps = {app: Watched(url) for app, url in urls.items()}
        self._leaving = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(each,), daemon=True) for each in self.apps.values()]

    def __enter__(self) -> Self:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._leaving.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self, app: Watched) -> None:
        each_its_own = httpx2.Limits(max_keepalive_connections=0)  # connection: pods come and go
        with httpx2.Client(timeout=10, trust_env=False, limits=each_its_own) as client:
            while not self._leaving.wait(EVERY_S):
                try:
                    answer = client.get(app.url)
                except httpx2.HTTPError as error:
                    app.missed(time.time(), f"{type(error).__name__}: {error}")
                else:
                    app.saw(time.time(), answer.status_code, answer.text)
