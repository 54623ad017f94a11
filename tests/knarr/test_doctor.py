"""`knarr doctor` where the platform runs in containers or on another machine, and the home here holds nothing of it."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from knarr.client import Platform
from knarr.doctor import Finding, examine
from knarr.home import Address, Home
from seedwork.chassis.settings import SERVICE_PORTS
from seedwork.testing.ports import block_of_ports

WELL: dict[str, Any] = {"items": [], "next_cursor": None, "checks": {"database": {"ok": True, "detail": ""}}}


class Ready(BaseHTTPRequestHandler):
    """A service that is well and lets everybody in."""

    answers: ClassVar[dict[str, Any]] = {}
    """By path; every other path answers that all is well."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.answers.get(self.path.partition("?")[0], WELL)).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
        """The test's output is no log."""


@contextmanager
def answering(services: Sequence[str]) -> Iterator[Platform]:
    with ExitStack() as stack:
        base = stack.enter_context(block_of_ports())
        for each in services:
            server = ThreadingHTTPServer(("127.0.0.1", base + 1 + SERVICE_PORTS.index(each)), Ready)
            stack.callback(server.server_close)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        platform = Platform(Address(host="127.0.0.1", port_base=base), "a token")
        stack.callback(platform.close)
        yield platform


@pytest.fixture(autouse=True)
def answers() -> Iterator[dict[str, Any]]:
    """What the services say, by path."""
    yield Ready.answers
    Ready.answers.clear()


def by_name(home: Path, services: Sequence[str]) -> dict[str, Finding]:
    with answering(services) as platform:
        return {each.name: each for each in examine(Home(home), platform)}


def test_a_platform_elsewhere_runs_and_needs_nothing_of_this_machine(tmp_path: Path) -> None:
    """It said "does not run" above six ready services, and complained of tools that nobody needs here."""
    found = by_name(tmp_path, SERVICE_PORTS)
    assert found["platform"].state == "ok"
    assert "elsewhere" in found["platform"].detail
    assert all(found[each].state == "ok" for each in (*SERVICE_PORTS, "token", "clock"))
    assert not {"uv", "node", "disk", "home"} & found.keys()
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_is_missing_there_is_wrong_and_not_started_here(tmp_path: Path) -> None:
    """`knarr up` would make a second platform."""
    found = by_name(tmp_path, [each for each in SERVICE_PORTS if each != "builder"])
    assert found["builder"].state == "wrong"
    assert "there" in found["builder"].fix
    assert found["source"].state == "ok"
    assert not any("knarr up" in each.fix for each in found.values())


def test_a_service_whose_jobs_all_fail_is_wrong(tmp_path: Path, answers: dict[str, Any]) -> None:
    """It was ready, and every deployment failed in it."""
    jobs = {"ok": False, "detail": "the last 3 attempts failed, the latest of FetchSource: no folder mirrors"}
    answers["/healthcheck"] = {"checks": {"database": {"ok": True, "detail": ""}, "jobs": jobs}}
    found = by_name(tmp_path, SERVICE_PORTS)
    assert (found["source"].state, found["source"].detail) == ("wrong", f"jobs: {jobs['detail']}")


def test_an_image_store_that_cannot_be_used_is_wrong_by_its_own_name(tmp_path: Path, answers: dict[str, Any]) -> None:
    """Every service was well, and each deployment failed."""
    fault = "The registry localhost:5000 failed the check of the image store: Connection refused"
    answers["/healthcheck"] = {"checks": {"image store": {"ok": False, "detail": fault}}}
    found = by_name(tmp_path, SERVICE_PORTS)
    assert found["image store"].state == "wrong"
    assert "cannot use it: The registry localhost:5000 failed" in found["image store"].detail
    assert "KNARR_IMAGE_STORE" in found["image store"].fix

    answers["/healthcheck"] = {"checks": {"image store": {"ok": True, "detail": ""}}}
    assert by_name(tmp_path, SERVICE_PORTS)["image store"].state == "ok"


@pytest.mark.parametrize(
    ("detail", "state"),
    [
        ("a cgroup for each instance; limited to 64 MiB of memory", "ok"),
        ("a cgroup for each instance; no limits are set", "ok"),
        ("a cgroup for each instance; no limits: the cgroup controllers memory are not available to knarr", "note"),
        ("a subreaper for each instance ends what it leaves; no cgroups: no cgroup v2 is mounted", "note"),
    ],
)
def test_how_instances_are_kept_apart_is_said(tmp_path: Path, answers: dict[str, Any], detail: str, state: str) -> None:
    """Only local processes have that check; what does not hold comes with the setting of the service."""
    assert "instances" not in by_name(tmp_path, SERVICE_PORTS)
    answers["/healthcheck"] = {"checks": {"instances": {"ok": True, "detail": detail}}}
    found = by_name(tmp_path, SERVICE_PORTS)["instances"]
    assert (found.state, found.detail) == (state, detail)
    assert ("Delegate=yes" in found.fix) == (state == "note")


def test_apps_in_trouble_failing_polls_and_waiting_sagas_are_wrong(tmp_path: Path, answers: dict[str, Any]) -> None:
    """Each with the command that shows more."""
    polling = {"failures": 2, "error": "the host does not answer"}
    apps = [{"name": "shop"}, {"name": "blog", "polling": polling}, {"name": "well"}]
    answers["/apps"] = {"items": apps, "next_cursor": None}
    answers["/sagas"] = {"items": [{"id": "s1"}], "next_cursor": None}
    instances = [{"restarts": 4, "next_start": None}]
    answers["/apps/shop"] = {"state": "crash_loop", "reason": "web.1 crashed 4 times", "instances": instances}
    answers["/apps/blog"] = {"state": "stopped"}
    answers["/apps/well"] = {"state": "live"}
    found = by_name(tmp_path, SERVICE_PORTS)
    assert (found["shop"].state, found["shop"].fix) == ("wrong", "Run `knarr logs shop`")
    assert found["shop"].detail == "crash loop: web.1 crashed 4 times: 4 restarts"
    assert found["blog"].detail == "polling failed 2 times: the host does not answer"
    assert (found["sagas"].detail, found["sagas"].fix) == (
        "1 needs a decision",
        "Run `knarr sagas list --needs-attention`",
    )
    assert not {"well", "apps"} & found.keys()


def test_nowhere_is_wrong_with_the_command_that_starts_it(tmp_path: Path) -> None:
    """And this machine is looked at, since it would run here."""
    found = by_name(tmp_path, [])
    assert (found["platform"].state, found["platform"].fix) == ("wrong", "Run `knarr up`")
    assert {found[each].state for each in SERVICE_PORTS} == {"note"}
    assert {"uv", "node", "disk", "home"} <= found.keys()
