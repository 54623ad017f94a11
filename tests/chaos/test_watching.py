"""What the watcher keeps of an app's answers, and what the command does without its servers."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.chaos.__main__ import main
from tests.chaos.acting import FAULTS
from tests.chaos.plans import REGISTRY_FAULTS
from tests.chaos.watching import KEPT, Watched, Watcher
from tests.e2e.harness import eventually


def test_each_change_of_version_is_kept_once() -> None:
    """Also a change back."""
    app = Watched("http://shop")
    for at, version in enumerate(["one", "one", "two", "two", "one"]):
        app.saw(at, 200, version)
    assert app.shown == [(0, "one"), (2, "two"), (4, "one")]
    assert (app.answers, app.failed) == (5, 0)


def test_failures_are_counted_and_the_first_ones_kept() -> None:
    """An error of the app is one, too, and shows no version."""
    app = Watched("http://shop")
    app.saw(0, 502, "bad gateway")
    for at in range(2 * KEPT):
        app.missed(at, "ConnectError")
    assert (app.answers, app.failed, len(app.failures), app.shown) == (0, 2 * KEPT + 1, KEPT, [])
    assert app.failures[0] == (0, "502 'bad gateway'")


@contextmanager
def serving(versions: list[str]) -> Iterator[str]:
    """An app that answers with the last of these; 503 while there is none."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if versions else 503)
            self.end_headers()
            self.wfile.write((versions or ["no version"])[-1].encode())

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_apps_are_asked_until_the_end() -> None:
    """What each of them shows, and that one did not answer."""
    versions = ["shop 1"]
    with serving(versions) as url, serving([]) as silent, Watcher({"shop": url, "silent": silent}) as watcher:
        eventually("shop answers", lambda: watcher.apps["shop"].answers)
        versions.append("shop 2")
        eventually("the new version is seen", lambda: len(watcher.apps["shop"].shown) == 2)
        eventually("the silence is noticed", lambda: watcher.apps["silent"].failed)
    assert [version for _, version in watcher.apps["shop"].shown] == ["shop 1", "shop 2"]
    assert watcher.apps["silent"].shown == []


def test_every_fault_of_the_plan_can_be_made() -> None:
    """By its name."""
    assert set(FAULTS) == set(REGISTRY_FAULTS)


def test_without_a_cluster_nothing_is_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """And it says what is missing."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert main([]) == 2
    assert "KUBECONFIG" in capsys.readouterr().out


def test_a_phase_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """With the names of those that are."""
    with pytest.raises(SystemExit):
        main(["--only", "kills,earthquakes"])
    assert "kills, pauses, mysql" in capsys.readouterr().err
