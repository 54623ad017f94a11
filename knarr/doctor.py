"""What knarr needs, looked at one by one; whatever is wrong comes with what to do about it."""

import os
import platform as python_platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Literal

import httpx2

from knarr.client import Platform
from knarr.home import Home, holder
from knarr.status import FAULTS, crashes_of, polling_of, state_of, words_of
from knarr.terminal import size
from seedwork.chassis.service_ports import SERVICE_PORTS
from seedwork.errors import KnarrError, NotFound

ENOUGH_DISK_BYTES = 2_000_000_000
"""A build with a large dependency tree fits."""
ENOUGH_FILES = 1024
"""Six services, their databases, and some hundred connections."""
CLOCK_SLACK_S = 5
MOST_APPS = 1000
"""Apps that are looked at."""
STORE = "image store"
"""The name of the check that builder, registry and deployer make of it."""
Checks = Mapping[str, Mapping[str, Any]]
"""`ok` and `detail` of a service's health check, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "note", "wrong"]
    """`note`: works, with something missing; `wrong`: does not work."""
    detail: str
    fix: str = ""

    def as_dict(self) -> dict[str, str]:
        """For programs."""
        return asdict(self)


def examine(home: Home, platform: Platform) -> Iterator[Finding]:
    """This machine, where the platform is here or nowhere; whether it runs; each service; who we are to it."""
    with ThreadPoolExecutor(len(SERVICE_PORTS)) as asking:
        looked_at = list(asking.map(partial(_service, platform), SERVICE_PORTS))
    services = [finding for finding, _ in looked_at]
    here, answered = holder(home), any(each.state != "note" for each in services)
    yield _python()
    if here or not answered:
        yield from _this_machine(home)
    yield _running(home, here, answered=answered)
    for each in services:
        silent = each.state == "note" and (here or answered)
        yield (replace(each, state="wrong", fix="The platform runs without it: start it there.") if silent else each)
    checks = {each.name: found for each, found in looked_at}
    yield from _image_store(checks)
    yield from _isolation(checks.get("deployer", {}))
    if any(each.state != "note" for each in services):
        token = _token(platform, home)
        yield token
        yield _clock(platform)
        if token.state == "ok":
            yield from _apps(platform)


def _this_machine(home: Home) -> Iterator[Finding]:
    """What a platform needs where it runs, cheapest first."""
    yield _tool("git", ["git", "--version"], wrong="Install git: knarr fetches repositories with it.")
    yield _tool(
        "uv", [_beside("uv"), "--version"], wrong="make install, or pip install uv: builds of Python apps use it."
    )
    yield _tool("node", ["node", "--version"], note="Install Node.js to build Node apps; other apps do not need it.")
    yield _tool("npm", ["npm", "--version"], note="Install npm to build Node apps with dependencies.")
    yield _open_files()
    yield _writable(home)
    yield _disk(home)


def _python() -> Finding:
    """Installing knarr already asks for 3.11."""
    return Finding(name="python", state="ok", detail=f"{python_platform.python_version()}, {sys.executable}")


def _beside(name: str) -> str:
    """A tool of this virtual environment, else the one on PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), name)  # noqa: PTH118, PTH120  a venv's python is a link: never resolve it
    return beside if os.access(beside, os.X_OK) else name


def _tool(name: str, call: list[str], *, wrong: str = "", note: str = "") -> Finding:
    try:
        answer = subprocess.run(call, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        detail = "not found" if isinstance(error, FileNotFoundError) else str(error)
        return Finding(name=name, state="wrong" if wrong else "note", detail=detail, fix=wrong or note)
    said = (answer.stdout or answer.stderr).strip().partition("\n")[0]
    if answer.returncode != 0:
        return Finding(name=name, state="wrong" if wrong else "note", detail=said, fix=wrong or note)
    return Finding(name=name, state="ok", detail=said)


def _open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < ENOUGH_FILES:
        return Finding(
            name="open files",
            state="note",
            detail=f"at most {soft}",
            fix=f"ulimit -n {ENOUGH_FILES * 4} before `knarr up`.",
        )
    return Finding(
        name="open files", state="ok", detail="no limit" if soft == resource.RLIM_INFINITY else f"at most {soft}"
    )


def _writable(home: Home) -> Finding:
    try:
        home.make()
        probe = home.path / f".doctor.{os.getpid()}"
        home.write(probe, "")
        probe.unlink()
    except KnarrError as error:
        return Finding(
            name="home", state="wrong", detail=error.message, fix=error.todo or "Choose another with --home."
        )
    return Finding(name="home", state="ok", detail=str(home.path))


def _disk(home: Home) -> Finding:
    where = home.path if home.path.is_dir() else home.path.parent
    try:
        free = shutil.disk_usage(where).free
    except OSError as error:
        return Finding(name="disk", state="wrong", detail=str(error.strerror), fix="Choose another home with --home.")
    if free < ENOUGH_DISK_BYTES:
        return Finding(name="disk", state="note", detail=f"{size(free)} free", fix="Make room: builds need about 2 GB.")
    return Finding(name="disk", state="ok", detail=f"{size(free)} free")


def _running(home: Home, here: Mapping[str, object] | None, *, answered: bool) -> Finding:
    """Here, in containers or on another machine, or nowhere."""
    if here:
        return Finding(name="platform", state="ok", detail=f"process {here.get('pid')} since {here.get('started_at')}")
    if answered:
        return Finding(name="platform", state="ok", detail=f"runs elsewhere, not from {home.path}")
    return Finding(name="platform", state="wrong", detail="does not run", fix="Run `knarr up`")


def _image_store(checks: Mapping[str, Checks]) -> Iterator[Finding]:
    """Whether the services that need the image store can use it: each has settings of its own."""
    probed = {service: found[STORE] for service, found in checks.items() if STORE in found}
    faults: dict[str, list[str]] = {}
    for service, each in probed.items():
        if not each["ok"]:
            faults.setdefault(str(each["detail"]), []).append(service)
    for detail, services in faults.items():
        yield Finding(
            name=STORE,
            state="wrong",
            detail=f"{' and '.join(services)} cannot use it: {detail}",
            fix="Deployments fail until it can be used. The settings are KNARR_IMAGE_STORE and KNARR_REGISTRY_…",
        )
    if probed and not faults:
        yield Finding(name=STORE, state="ok", detail=f"can be used by {', '.join(probed)}")


def _isolation(checks: Checks) -> Iterator[Finding]:
    """How the deployer ends what an instance leaves behind; only local processes have that check."""
    found = checks.get("instances")
    if found is None:
        return
    detail = str(found["detail"])
    fix = "To limit apps, run knarr as a service with `Delegate=yes`, on a machine with cgroup v2."
    complete = "no cgroups" not in detail and "not available" not in detail
    yield Finding(name="instances", state="ok" if complete else "note", detail=detail, fix="" if complete else fix)


def _service(platform: Platform, service: str) -> tuple[Finding, Checks]:
    """What its health check says, which includes jobs that all fail; and all its checks."""
    url = platform.url(service, "/healthcheck")
    try:
        answer = httpx2.get(url, timeout=5, trust_env=False)
    except httpx2.ConnectError:
        nothing = f"nothing listens at {platform.url(service)}"
        return Finding(name=service, state="note", detail=nothing, fix="Run `knarr up`"), {}
    except httpx2.HTTPError as error:
        silent = f"{type(error).__name__} at {url}"
        fix = "Read the log of the platform, then start knarr again."
        return Finding(name=service, state="wrong", detail=silent, fix=fix), {}
    try:
        checks: Checks = {
            name: {"ok": each["ok"], "detail": each["detail"]} for name, each in answer.json()["checks"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        checks = {"answer": {"ok": False, "detail": f"status {answer.status_code}, and not as knarr answers"}}
    wrong = {name: each for name, each in checks.items() if not each["ok"] and name != STORE}
    if not wrong:
        return Finding(name=service, state="ok", detail=f"well at {platform.url(service)}"), checks
    faults = "; ".join(f"{name}: {each['detail'] or 'not well'}" for name, each in wrong.items())
    fix = "The log of the platform has the details."
    return Finding(name=service, state="wrong", detail=faults, fix=fix), checks


def _token(platform: Platform, home: Home) -> Finding:
    try:
        platform.get("webhook", "/apps", limit=1)
    except KnarrError as error:
        return Finding(
            name="token",
            state="wrong",
            detail=error.message,
            fix=f"Use the token in {home.token_file}, or set KNARR_TOKEN.",
        )
    return Finding(name="token", state="ok", detail="is accepted")


def _clock(platform: Platform) -> Finding:
    """The platform's clock against this machine's: they differ where the platform is elsewhere."""
    try:
        said = httpx2.get(platform.url("webhook", "/livez"), timeout=5, trust_env=False).headers.get("date")
    except httpx2.HTTPError as error:
        return Finding(name="clock", state="note", detail=str(error))
    apart = abs(parsedate_to_datetime(said).timestamp() - time.time()) if said else 0.0
    if apart > CLOCK_SLACK_S:
        return Finding(
            name="clock", state="note", detail=f"{apart:.0f} s apart", fix="Let both machines keep time (NTP)."
        )
    return Finding(name="clock", state="ok", detail="agrees")


def _apps(platform: Platform) -> Iterator[Finding]:
    """Apps that are not as they should be, deployments that need a decision; one line where all is well."""
    try:
        apps = platform.pages("webhook", "/apps", limit=MOST_APPS)
        waiting = platform.pages("saga_coordinator", "/sagas", limit=MOST_APPS, needs="attention")
        with ThreadPoolExecutor(len(SERVICE_PORTS)) as asking:
            found = list(asking.map(partial(_app, platform), apps))
    except KnarrError as error:
        yield Finding(name="apps", state="wrong", detail=error.message, fix=error.todo)
        return
    wrong = [each for faults in found for each in faults]
    yield from wrong
    if waiting:
        yield Finding(
            name="sagas",
            state="wrong",
            detail=f"{len(waiting)} need{'s' if len(waiting) == 1 else ''} a decision",
            fix="Run `knarr sagas list --needs-attention`",
        )
    if not wrong:
        yield Finding(name="apps", state="ok", detail=f"{len(apps)}, none in trouble")


def _app(platform: Platform, known: Mapping[str, Any]) -> list[Finding]:
    """What is wrong with one app."""
    name = known["name"]
    try:
        running = platform.get("deployer", f"/apps/{name}")
    except NotFound:  # it was never deployed
        running = {}
    found = []
    if state_of(running) in FAULTS:
        crashes = crashes_of(running)
        detail = ": ".join(part for part in (words_of(running), running.get("reason") or "", crashes or "") if part)
        found.append(Finding(name=name, state="wrong", detail=detail, fix=f"Run `knarr logs {name}`"))
    if polling := polling_of(known):
        todo = f"Run `knarr apps show {name}`, and check its clone URL and its access"
        found.append(Finding(name=name, state="wrong", detail=f"polling {polling}", fix=todo))
    return found
