"""What only local processes do: ports, environments, groups, crashes, leftovers."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import httpx2
import orjson
import psutil
import pytest

from ocistore.layout import OciLayout
from ocistore.store import LABEL_BASE, LABEL_CHECKS, LABEL_PORT
from seedwork.clock import SystemClock
from seedwork.errors import NotFound
from seedwork.testing.ports import block_of_ports
from services.deployer.adapters.process import leftovers
from services.deployer.adapters.process.folders import Folders
from services.deployer.adapters.process.runtime import Limits, ProcessRuntime
from services.deployer.adapters.router import Router
from services.deployer.errors import AppDoesNotStart, CannotRun, ReleaseCommandFailed
from services.deployer.ports import Instance, Needed, Release, Standing
from services.source.contract import HealthCheck
from tests.services.deployer.conftest import PYTHON, WEB, Shelf, eventually

LIMITS = Limits(start_timeout_s=20, grace_s=5, drain_s=5, settle_s=0.2, release_command_timeout_s=20)

DAEMON = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True,
                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
"""


SMALL_WEB = """
import http.server, os
class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status, text = answer(self)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
def serve():
    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App).serve_forever()
"""
STATUS_500 = SMALL_WEB + "answer = lambda request: (500, b'broken')\nserve()"
ONLY_ITS_HOST = (
    SMALL_WEB
    + "answer = lambda request: (200, b'known') if request.headers['Host'] == 'shop.example.com' else (400, b'no')\n"
    "serve()"
)
UNTIL_A_FILE_IS_THERE = (
    SMALL_WEB + "answer = lambda request: (503, b'no') if os.path.exists('busy') else (200, b'yes')\nserve()"
)

FORGETFUL_DAEMON = """
import subprocess, sys
started = subprocess.Popen(
    ["env", "-i", sys.executable, "-c", "import os, time; os.fork() and os._exit(0); os.setsid();"
     "open('daemon.pid.new', 'w').write(str(os.getpid())); os.rename('daemon.pid.new', 'daemon.pid'); time.sleep(600)"],
    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
started.wait()
import os, time
while not os.path.exists('daemon.pid'): time.sleep(0.01)
"""


class Bench:
    """A runtime on a home of its own, and what one asks it."""

    def __init__(self, home: Path, images: OciLayout, shelf: Shelf, limits: Limits, *, port_base: int) -> None:
        self.home = home
        self.port_base = port_base
        self.shelf = shelf
        self.images = images
        self.limits = limits
        self.runtime = self.made(limits)

    def made(self, limits: Limits, *, port_base: int | None = None) -> ProcessRuntime:
        router = Router(host="127.0.0.1", port_base=port_base or self.port_base, idle_s=30)
        return ProcessRuntime(self.home, images=self.images, router=router, clock=SystemClock(), limits=limits)

    async def up(self, release: Release) -> str:
        """Deployed with traffic; the app's address."""
        address = await self.runtime.expose(release.app_id, release.app, taken=frozenset())
        await self.runtime.prepare(release)
        await self.runtime.start(release)
        await self.runtime.observe(release, note=lambda _: None)
        await self.runtime.switch(release.app_id, release.saga_id, fence=release.number)
        return address.url

    async def fails(
        self, files: Mapping[str, str], *, health_path: str | None = None, env: Mapping[str, str] | None = None
    ) -> AppDoesNotStart:
        """How an app that does not come up is judged."""
        image = await self.shelf.image(files, health_path=health_path)
        release = self.shelf.release(image, env=env)
        await self.runtime.start(release)
        with pytest.raises(AppDoesNotStart) as caught:
            await self.runtime.observe(release, note=lambda _: None)
        await self.runtime.stop(release.app_id, release.saga_id)
        return caught.value

    async def instance(self) -> Instance:
        (instance,) = await self.runtime.instances(self.shelf.app_id)
        return instance

    def ours(self, **labels: str) -> list[psutil.Process]:
        """Who runs in the name of this home, read from outside."""
        return leftovers.marked(leftovers.home_id_of(self.home), labels)


@pytest.fixture
async def bench(tmp_path: Path, images: OciLayout, shelf: Shelf, ports: int) -> AsyncIterator[Bench]:
    home = tmp_path / "home"
    home.mkdir()
    bench = Bench(home, images, shelf, LIMITS, port_base=ports)
    await bench.runtime.recover([])
    yield bench
    await bench.runtime.close()
    assert bench.ours() == []


async def get(url: str) -> httpx2.Response:
    async with httpx2.AsyncClient() as client:
        return await client.get(url)


# ── what instances get ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_instances_get_their_config_and_nothing_of_ours(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Config vars, PORT and labels; no variable of the platform, whose secrets are in its environment."""
    monkeypatch.setenv("KNARR_SERVICE_TOKEN", "platform-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "operator-secret")
    release = bench.shelf.release(await bench.shelf.image(), env={"COLOUR": "blue"})
    url = await bench.up(release)

    text = (await get(url + "env")).text
    env = dict(line.partition("=")[::2] for line in text.splitlines())
    root = bench.home / "releases" / release.saga_id
    assert env["COLOUR"] == "blue"
    assert env["KNARR_SAGA_ID"] == release.saga_id
    assert (env["KNARR_APP"], env["KNARR_RELEASE"], env["KNARR_INSTANCE"]) == ("shop", "1", "web.1")
    assert env["HOME"] == str(root / "app")
    assert env["GREETING_FILE"] == f"{root}/layers/words/hello.txt"
    assert env["PYTHONPATH"] == f"{root}/layers/words:{root}/app:/usr/x"
    assert "KNARR_SERVICE_TOKEN" not in env
    assert "secret" not in text


@pytest.mark.parametrize(
    ("variables", "path"),
    [(("PATH=/layers/words/bin:/usr/bin:/bin",), "{root}/layers/words/bin:/usr/bin:/bin"), ((), os.defpath)],
)
async def test_programs_of_the_platform_are_not_on_an_apps_path(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, variables: tuple[str, ...], path: str
) -> None:
    """PATH is the image's own, also where the platform's virtual environment is activated."""
    monkeypatch.setenv("PATH", f"/opt/platform/bin:{os.environ['PATH']}")
    release = bench.shelf.release(await bench.shelf.image(variables=variables))
    url = await bench.up(release)

    env = dict(line.partition("=")[::2] for line in (await get(url + "env")).text.splitlines())

    assert env["PATH"] == path.format(root=bench.home / "releases" / release.saga_id)


async def test_dependency_layers_are_unpacked_once_and_are_read_only(bench: Bench) -> None:
    """Two releases of one lock file share its folder; the app's own files are each release's own."""
    one = bench.shelf.release(await bench.shelf.image(version="one"))
    two = bench.shelf.release(await bench.shelf.image(version="two"), number=2)
    await bench.runtime.prepare(one)
    await bench.runtime.prepare(two)

    folders = [bench.home / "releases" / each.saga_id for each in (one, two)]
    words = {(folder / "layers" / "words").resolve() for folder in folders}
    assert len(words) == 1
    assert (words.pop() / "hello.txt").stat().st_mode & 0o222 == 0
    assert len({(folder / "app" / "app.py").read_text() for folder in folders}) == 2
    assert not list((bench.home / "unpacking").iterdir())


async def test_an_image_with_an_operating_system_is_refused(bench: Bench) -> None:
    """The text names the runtime that can run it."""
    release = bench.shelf.release(await bench.shelf.image(labels={LABEL_BASE: "debian"}))
    with pytest.raises(CannotRun, match="docker"):
        await bench.runtime.prepare(release)


async def test_an_image_that_is_not_there_leaves_nothing(bench: Bench) -> None:
    """A failed preparation has no folder."""
    image = await bench.shelf.image()
    release = bench.shelf.release(image)
    await bench.shelf.images.remove(image.repository, image.digest)
    with pytest.raises(NotFound):
        await bench.runtime.prepare(release)
    assert await bench.runtime.stop(release.app_id, release.saga_id) == []


async def test_a_sweep_removes_what_nobody_needs_and_keeps_the_rest(bench: Bench) -> None:
    """Folders of forgotten sagas and layers of forgotten images; what the database names stays, unpacked as it is."""
    kept = bench.shelf.release(await bench.shelf.image(version="one"))
    await bench.runtime.prepare(kept)
    (layer,) = (bench.home / "layers").iterdir()
    forgotten = bench.home / "releases" / "0192f0c1-dead"
    old = bench.home / "layers" / ("0" * 64)
    for folder in (forgotten, old):
        (folder / "layers" / "x").mkdir(parents=True)
        (folder / "layers").chmod(0o555)

    async def needed() -> Needed:
        return Needed(sagas={kept.saga_id}, layers={f"sha256:{layer.name}"})

    await bench.runtime.sweep(needed)
    assert [each.name for each in (bench.home / "releases").iterdir()] == [kept.saga_id]
    assert list((bench.home / "layers").iterdir()) == [layer]
    assert not list((bench.home / "unpacking").iterdir())


# ── apps that do not come up ─────────────────────────────────────────────────────────────────────────────────────────


async def test_an_app_that_exits_is_named_with_its_status_and_last_lines(bench: Bench) -> None:
    """Status, process and output; config values are blotted out of what leaves the machine."""
    error = await bench.fails(
        {"app.py": "import os, sys; print('connecting with', os.environ['DB_PASSWORD']); sys.exit(3)"},
        env={"DB_PASSWORD": "hunter2hunter2"},
    )
    assert error.what == "web.1 exited with status 3 before it answered"
    assert error.log_tail == ("connecting with ********",)


async def test_a_program_that_does_not_exist_is_named(bench: Bench) -> None:
    """The text says what was looked for."""
    release = bench.shelf.release(await bench.shelf.image(web=("no-such-server", "--fast")))
    await bench.runtime.start(release)
    with pytest.raises(AppDoesNotStart) as caught:
        await bench.runtime.observe(release, note=lambda _: None)
    assert "cannot start 'no-such-server'" in caught.value.log_tail[-1]


async def test_a_variable_that_cannot_be_is_a_verdict_not_a_silence(bench: Bench) -> None:
    """Whatever an image declares, `observe` ends."""
    release = bench.shelf.release(await bench.shelf.image(), env={"A=B": "x"})
    await bench.runtime.start(release)
    with pytest.raises(AppDoesNotStart, match="could not be started"):
        await bench.runtime.observe(release, note=lambda _: None)


async def test_an_app_that_never_listens_is_given_up(tmp_path: Path, images: OciLayout, shelf: Shelf) -> None:
    """After its time, with the setting that gives more of it."""
    async with patient_for(0.5, tmp_path, images, shelf) as bench:
        error = await bench.fails({"app.py": "import time; print('thinking', flush=True); time.sleep(600)"})
    assert "web.1 listens on no port" in error.what
    assert "KNARR_START_TIMEOUT_S" in error.todo
    assert error.log_tail == ("thinking",)


async def test_an_app_on_the_wrong_port_is_told_which_one(tmp_path: Path, images: OciLayout, shelf: Shelf) -> None:
    """`listens on port N instead of PORT`: the commonest mistake, told long before its time is over."""
    port = free_port()
    code = f"import http.server as h; h.HTTPServer(('127.0.0.1', {port}), h.BaseHTTPRequestHandler).serve_forever()"
    async with patient_for(3600, tmp_path, images, shelf, wrong_port_s=1) as bench:
        error = await bench.fails({"app.py": code})
    assert error.what.startswith(f"web.1 listens on port {port} instead of PORT (")
    assert "KNARR_WRONG_PORT_S" in error.todo


async def test_an_app_may_open_another_port_first(tmp_path: Path, images: OciLayout, shelf: Shelf) -> None:
    """For metrics, say; what it does meanwhile can be read, and PORT counts when it comes."""
    code = (
        "import os, socket, time\n"
        "metrics = socket.create_server(('127.0.0.1', 0))\n"
        "while not os.path.exists('seen'): time.sleep(0.02)\n" + WEB.format(version="late")
    )
    async with patient_for(60, tmp_path, images, shelf, wrong_port_s=30) as bench:
        release = shelf.release(await shelf.image({"app.py": code}))
        await bench.runtime.start(release)
        await eventually(bench.instance, until=lambda instance: "instead of PORT" in instance.note)
        (bench.home / "releases" / release.saga_id / "app" / "seen").touch()
        await bench.runtime.observe(release, note=lambda _: None)
        assert (await bench.instance()).state == "up"


async def test_an_unhealthy_app_is_told_what_its_health_path_answered(
    tmp_path: Path, images: OciLayout, shelf: Shelf
) -> None:
    """A listening port is not enough where a health path is declared."""
    async with patient_for(1.5, tmp_path, images, shelf) as bench:
        error = await bench.fails({"app.py": WEB.format(version="x")}, health_path="/health", env={"HEALTH": "500"})
    assert error.what == "web.1 listens on PORT, but GET /health answered 500"


async def test_a_worker_that_dies_at_once_fails_the_release(tmp_path: Path, images: OciLayout, shelf: Shelf) -> None:
    """Processes without a port must live for a moment."""
    async with patient_for(30, tmp_path, images, shelf, settle_s=20) as bench:
        image = await shelf.image(processes={"worker": (PYTHON, "-c", "raise SystemExit('no queue')")})
        release = shelf.release(image, formation={"web": 1, "worker": 1})
        await bench.runtime.start(release)
        with pytest.raises(AppDoesNotStart, match=r"worker\.1 exited with status 1 at once"):
            await bench.runtime.observe(release, note=lambda _: None)


async def test_a_release_command_runs_in_the_app_and_its_output_is_in_the_log(bench: Bench) -> None:
    """It sees the app's files and config, and the log says when it ran."""
    code = "import os, sys; print('migrating', os.environ['DB'], os.path.exists('app.py'))"
    release = bench.shelf.release(await bench.shelf.image(release=(PYTHON, "-c", code)), env={"DB": "carts"})
    await bench.runtime.run_release_command(release)

    log = b"".join([piece async for piece in bench.runtime.logs(release.app_id, lines=100, follow=False)]).decode()
    assert "release.1 | migrating carts True" in log
    assert "the release command ended with status 0" in log


async def test_a_release_command_that_hangs_is_ended(tmp_path: Path, images: OciLayout, shelf: Shelf) -> None:
    """With all that it started."""
    async with patient_for(5, tmp_path, images, shelf, release_command_s=0.5) as bench:
        release = shelf.release(await shelf.image(release=("/bin/sh", "-c", "sleep 600 & sleep 600")))
        with pytest.raises(ReleaseCommandFailed, match="longer than"):
            await bench.runtime.run_release_command(release)
        assert bench.ours() == []


async def test_an_open_port_is_not_an_answer(tmp_path: Path, images: OciLayout, shelf: Shelf) -> None:
    """Gunicorn's master opens the port before its workers import the app; only an HTTP answer counts."""
    code = "import os, socket, time; s = socket.create_server(('', int(os.environ['PORT']))); time.sleep(600)"
    async with patient_for(1, tmp_path, images, shelf) as bench:
        error = await bench.fails({"app.py": code})
    assert error.what == "web.1 listens on PORT, but GET / was not answered in time"
    assert '"listening": true' in error.todo


async def test_an_app_that_speaks_no_http_can_ask_for_a_tcp_check(bench: Bench) -> None:
    """`"listening": true` in `healthchecks`."""
    code = "import os, socket, time; s = socket.create_server(('', int(os.environ['PORT']))); time.sleep(600)"
    labels = checked(web=[HealthCheck(listening=True)])
    await bench.up(bench.shelf.release(await bench.shelf.image({"app.py": code}, labels=labels)))
    assert (await bench.instance()).state == "up"


async def test_an_app_that_answers_every_path_with_an_error_is_up(bench: Bench) -> None:
    """Without a declared path any status is an answer."""
    release = bench.shelf.release(await bench.shelf.image({"app.py": STATUS_500}))
    await bench.up(release)
    assert (await bench.instance()).state == "up"


async def test_a_check_sends_the_headers_that_the_app_asks_for(bench: Bench) -> None:
    """Frameworks refuse requests for hosts that they do not know."""
    labels = checked(web=[HealthCheck(path="/", headers={"Host": "shop.example.com"}, content="known")])
    release = bench.shelf.release(await bench.shelf.image({"app.py": ONLY_ITS_HOST}, labels=labels))
    await bench.up(release)


async def test_a_missing_text_fails_a_check(tmp_path: Path, images: OciLayout, shelf: Shelf) -> None:
    """`content` must be in the answer."""
    labels = checked(web=[HealthCheck(path="/", content="ready", attempts=1, wait_s=0.5, timeout_s=2)])
    async with patient_for(20, tmp_path, images, shelf) as bench:
        release = shelf.release(await shelf.image(labels=labels))
        await bench.runtime.start(release)
        with pytest.raises(AppDoesNotStart, match="does not contain 'ready'"):
            await bench.runtime.observe(release, note=lambda _: None)


async def test_a_command_check_runs_in_the_environment_of_the_instance(bench: Bench) -> None:
    """For processes without a port too; its exit status decides."""
    code = "import os, sys; sys.exit(0 if os.environ['QUEUE'] == 'mail' and os.path.exists('app.py') else 1)"
    image = await bench.shelf.image(
        processes={"worker": ("sleep", "600")},
        labels=checked(worker=[HealthCheck(command=(PYTHON, "-c", code))]),
    )
    await bench.up(bench.shelf.release(image, formation={"web": 1, "worker": 1}, env={"QUEUE": "mail"}))


async def test_a_command_check_that_fails_names_the_command(bench: Bench) -> None:
    """`/bin/false` never passes; its attempts are the app's own."""
    check = HealthCheck(command=("/bin/false",), attempts=2, wait_s=0.2, timeout_s=30)
    image = await bench.shelf.image(processes={"worker": ("sleep", "600")}, labels=checked(worker=[check]))
    release = bench.shelf.release(image, formation={"web": 1, "worker": 1})
    await bench.runtime.start(release)
    with pytest.raises(AppDoesNotStart, match=r"worker\.1: the command `/bin/false` ended with status 1"):
        await bench.runtime.observe(release, note=lambda _: None)


async def test_an_answer_of_another_program_does_not_count(bench: Bench) -> None:
    """Whoever has the port is named."""
    other = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    labels = {**checked(web=[HealthCheck(listening=True)]), LABEL_PORT: str(port)}
    release = bench.shelf.release(await bench.shelf.image({"app.py": "import time; time.sleep(600)"}, labels=labels))
    async with other:
        await bench.runtime.start(release)
        with pytest.raises(AppDoesNotStart) as caught:
            await bench.runtime.observe(release, note=lambda _: None)
    assert caught.value.what.startswith(f"web.1 does not listen on port {port}: ")
    assert f"(process {os.getpid()}) does" in caught.value.what


async def test_a_failed_liveness_check_restarts_the_instance(bench: Bench) -> None:
    """It counts as a crash, and the text says which check failed."""
    check = HealthCheck(type="liveness", path="/missing", attempts=2, wait_s=0.2, timeout_s=5)
    release = bench.shelf.release(await bench.shelf.image({"app.py": STATUS_500}, labels=checked(web=[check])))
    await bench.up(release)
    crashed = await eventually(bench.instance, until=lambda found: found.restarts > 0)
    assert "web.1 failed its liveness check 2 times: GET /missing answered 500" in crashed.note
    assert crashed.next_start_ms is not None


async def test_an_instance_that_is_not_ready_gets_no_requests(bench: Bench) -> None:
    """A readiness check is repeated; the instance comes back without a restart."""
    check = HealthCheck(type="readiness", path="/", attempts=1, wait_s=0.2)
    code = UNTIL_A_FILE_IS_THERE
    release = bench.shelf.release(await bench.shelf.image({"app.py": code}, labels=checked(web=[check])))
    url = await bench.up(release)
    mark = bench.home / "releases" / release.saga_id / "app" / "busy"
    mark.touch()
    unready = await eventually(bench.instance, until=lambda found: found.state == "starting")
    assert (unready.note, (await get(url)).status_code) == ("not ready: GET / answered 503", 503)
    mark.unlink()
    back = await eventually(bench.instance, until=lambda found: found.state == "up")
    assert (back.restarts, (await get(url)).status_code) == (0, 200)


# ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_crash_is_visible_and_the_app_comes_back(bench: Bench) -> None:
    """Another process answers, the restart is counted, and the log says why."""
    url = await bench.up(bench.shelf.release(await bench.shelf.image()))
    first = (await get(url + "pid")).text
    assert (await get(url + "die")).status_code == 502

    crashed = await eventually(bench.instance, until=lambda found: found.state == "crashed")
    assert "web.1 exited with status 3; it starts again in 0.5 s" in crashed.note
    back = await eventually(bench.instance, until=lambda found: found.state == "up")
    assert back.restarts == 1
    assert (await get(url + "pid")).text != first
    log = b"".join([piece async for piece in bench.runtime.logs(bench.shelf.app_id, lines=100, follow=False)])
    assert b"dying as asked" in log
    assert b"starts again" in log


async def test_several_web_instances_take_turns(bench: Bench) -> None:
    """Each on a port of its own; both answer."""
    url = await bench.up(bench.shelf.release(await bench.shelf.image(), formation={"web": 2}))
    assert len({(await get(url + "pid")).text for _ in range(4)}) == 2


async def test_an_app_that_ignores_sigterm_is_killed_with_its_children(
    tmp_path: Path, images: OciLayout, shelf: Shelf
) -> None:
    """After the grace; nothing of its group stays."""
    code = (
        "import signal, subprocess; signal.signal(signal.SIGTERM, signal.SIG_IGN); subprocess.Popen(['sleep', '600'])\n"
    )
    async with patient_for(20, tmp_path, images, shelf, grace_s=0.3) as bench:
        files = {"app.py": code + WEB.format(version="x").replace("signal.signal(signal.SIGTERM", "(lambda *_: 0)(0")}
        release = shelf.release(await shelf.image(files))
        await bench.up(release)
        assert "sleep" in {each.name() for each in bench.ours()}
        await bench.runtime.stop(release.app_id, release.saga_id)
        assert bench.ours() == []


async def test_a_stop_ends_processes_that_left_their_group(bench: Bench) -> None:
    """A daemon in a session of its own ends with the instance that started it."""
    release = bench.shelf.release(await bench.shelf.image({"app.py": DAEMON + WEB.format(version="x")}))
    await bench.up(release)
    await bench.runtime.stop(release.app_id, release.saga_id)

    assert bench.ours(KNARR_SAGA_ID=release.saga_id) == []
    assert not (bench.home / "releases" / release.saga_id).exists()
    assert not list((bench.home / "run").iterdir())


async def test_a_crash_ends_what_the_instance_had_started_before_the_next_start(bench: Bench) -> None:
    """Also what left its session and wrote over its environment; else each crash would leave a copy behind."""
    code = FORGETFUL_DAEMON + WEB.format(version="x")
    release = bench.shelf.release(await bench.shelf.image({"app.py": code}))
    url = await bench.up(release)
    daemon = psutil.Process(int((bench.home / "releases" / release.saga_id / "app" / "daemon.pid").read_text()))
    await get(url + "die")

    await eventually(bench.instance, until=lambda found: found.restarts == 1)
    assert not leftovers.is_alive(daemon)
    await eventually(bench.instance, until=lambda found: found.state == "up")


async def test_an_app_whose_main_process_leaves_a_daemon_does_not_come_up(bench: Bench) -> None:
    """The daemon would answer; it is ended with the process that was started."""
    code = "import os\nif os.fork(): os._exit(0)\nos.setsid()\n" + WEB.format(version="daemon")
    error = await bench.fails({"app.py": code})
    assert "exited with status 0 before it answered" in error.what


async def test_requests_under_way_end_on_the_old_instances(bench: Bench) -> None:
    """Traffic moves at once for new requests; a slow one gets its whole answer before its instance is stopped."""
    slow = WEB.format(version="old").replace(
        "self.answer(200, VERSION", "import time; time.sleep(1); self.answer(200, VERSION"
    )
    old = bench.shelf.release(await bench.shelf.image({"app.py": slow}))
    new = bench.shelf.release(await bench.shelf.image(version="new"), number=2)
    url = await bench.up(old)
    under_way = asyncio.create_task(get(url))
    await eventually(lambda: busy(bench, old))
    await bench.up(new)
    stopping = asyncio.create_task(bench.runtime.stop(old.app_id, old.saga_id))

    assert (await get(url)).text == "new"
    assert (await under_way).text == "old"
    await stopping


async def test_requests_are_counted_by_release(bench: Bench) -> None:
    """Answers of 500 and above are errors; the release before has counts of its own."""
    broken = bench.shelf.release(await bench.shelf.image({"app.py": STATUS_500}))
    url = await bench.up(broken)
    for _ in range(3):
        await get(url)
    good = bench.shelf.release(await bench.shelf.image(version="good"), number=2)
    await bench.up(good)
    await get(url)

    first = await bench.runtime.traffic(broken.app_id, broken.saga_id)
    second = await bench.runtime.traffic(good.app_id, good.saga_id)
    assert first is not None
    assert second is not None
    assert (first.requests, first.errors, second.requests, second.errors) == (3, 3, 1, 0)


async def test_requests_that_are_cut_are_named(bench: Bench) -> None:
    """In the answer, in the app's log and in the counts of the release."""
    slow = WEB.format(version="old").replace(
        "self.answer(200, VERSION", "import time; time.sleep(600); self.answer(200, VERSION"
    )
    labels = checked(web=[HealthCheck(listening=True)])
    old = bench.shelf.release(await bench.shelf.image({"app.py": slow}, labels=labels))
    bench.runtime._limits = replace(LIMITS, drain_s=0.2, grace_s=0.2)
    url = await bench.up(old)
    under_way = asyncio.create_task(get(url))
    await eventually(lambda: busy(bench, old))
    await bench.up(bench.shelf.release(await bench.shelf.image(version="new"), number=2))
    await bench.runtime.stop(old.app_id, old.saga_id)

    answer = await under_way
    assert answer.status_code == 502
    assert "The platform stopped its instance" in answer.text
    traffic = await bench.runtime.traffic(old.app_id, old.saga_id)
    assert traffic is not None
    assert (traffic.cut_requests, traffic.errors) == (1, 0)
    log = b"".join([piece async for piece in bench.runtime.logs(old.app_id, lines=100, follow=False)]).decode()
    assert "1 requests were cut after 0.2 s (KNARR_DRAIN_S)" in log


async def busy(bench: Bench, release: Release) -> int:
    unit = bench.runtime._units[release.saga_id]
    return sum(each.backend.requests for each in unit.instances if each.backend)


# ── recovery ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_recovery_ends_what_an_earlier_run_left(bench: Bench) -> None:
    """By its mark in the environment, whatever its parent is."""
    left = sleeper({leftovers.MARK: leftovers.home_id_of(bench.home)})
    other = sleeper({leftovers.MARK: "another-home"})
    try:
        await bench.made(LIMITS, port_base=bench.port_base + 25).recover([])
        assert left.wait() == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for each in (left, other):
            each.kill()
            each.wait()


async def test_recovery_finds_processes_that_wrote_over_their_environment(bench: Bench) -> None:
    """By the record of their birth; a process that only has the same id is left alone."""
    unmarked, stranger = sleeper({}), sleeper({})
    records = leftovers.Records(bench.home / "run")
    records.add("ours", unmarked.pid)
    (bench.home / "run" / "reused").write_text(f'{{"pid": {stranger.pid}, "born": 1000.0}}')
    try:
        await bench.made(LIMITS, port_base=bench.port_base + 25).recover([])
        assert unmarked.wait() == -signal.SIGKILL
        assert stranger.poll() is None
    finally:
        for each in (unmarked, stranger):
            each.kill()
            each.wait()


async def test_a_port_that_is_taken_after_a_restart_is_said_and_tried_again(bench: Bench) -> None:
    """The app does not silently move; its trouble names the port."""
    release = bench.shelf.release(await bench.shelf.image())

    async def load() -> Release:
        return release

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        await bench.runtime.recover(
            [Standing(app_id=release.app_id, app="shop", port=port, fence=1, saga_id=release.saga_id, load=load)]
        )
        assert f"Port {port} of the app shop cannot be opened" in await bench.runtime.trouble(release.app_id)


async def test_an_app_answers_503_while_it_starts(bench: Bench) -> None:
    """The port is open at once, and says to come back."""
    slow = "import time; time.sleep(1.5)\n" + WEB.format(version="awake")
    release = bench.shelf.release(await bench.shelf.image({"app.py": slow}))

    async def load() -> Release:
        return release

    port = free_port()
    await bench.runtime.recover(
        [Standing(app_id=release.app_id, app="shop", port=port, fence=1, saga_id=release.saga_id, load=load)]
    )
    first = await get(f"http://127.0.0.1:{port}/")
    assert (first.status_code, first.headers["retry-after"]) == (503, "1")
    assert "It is starting" in first.text
    last = await eventually(lambda: get(f"http://127.0.0.1:{port}/"), until=lambda answer: answer.status_code == 200)
    assert last.text == "awake"


def checked(**processes: list[HealthCheck]) -> dict[str, str]:
    """The label of an image with these health checks."""
    shown = {name: [each.model_dump(mode="json") for each in checks] for name, checks in processes.items()}
    return {LABEL_CHECKS: orjson.dumps(shown).decode()}


# ── helpers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class patient_for:  # noqa: N801  reads as a phrase
    """A bench whose runtime has other limits."""

    def __init__(
        self,
        start_s: float,
        tmp_path: Path,
        images: OciLayout,
        shelf: Shelf,
        *,
        grace_s: float = 5,
        release_command_s: float = 20,
        settle_s: float = 0.2,
        wrong_port_s: float = 20,
    ) -> None:
        limits = replace(
            LIMITS,
            start_timeout_s=start_s,
            wrong_port_s=wrong_port_s,
            grace_s=grace_s,
            release_command_timeout_s=release_command_s,
            settle_s=settle_s,
        )
        (tmp_path / "home").mkdir()
        self._ports = contextlib.ExitStack()
        port_base = self._ports.enter_context(block_of_ports())
        self._bench = Bench(tmp_path / "home", images, shelf, limits, port_base=port_base)

    async def __aenter__(self) -> Bench:
        await self._bench.runtime.recover([])
        return self._bench

    async def __aexit__(self, *_: object) -> None:
        await self._bench.runtime.close()
        self._ports.close()
        assert self._bench.ours() == []


def sleeper(env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """A process that is nobody's instance."""
    return subprocess.Popen(["sleep", "600"], env=dict(env), start_new_session=True)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# ── one-off commands ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_one_off_command_has_the_environment_of_the_release_and_its_bytes_and_status_are_kept(
    bench: Bench,
) -> None:
    """Nothing of it is in the app's log; a signal that ended it is 128 and its number."""
    release = bench.shelf.release(await bench.shelf.image(), env={"COLOUR": "blue"})
    code = "import os, sys; sys.stdout.buffer.write(os.environ['COLOUR'].encode() + b'\\r\\xff'); sys.exit(42)"
    command = await bench.runtime.run_once(release, (PYTHON, "-c", code), label="run.1")
    assert b"".join([piece async for piece in command]) == b"blue\r\xff"
    assert command.exit_code == 42
    await command.close()
    killed = await bench.runtime.run_once(release, (PYTHON, "-c", "import os; os.kill(os.getpid(), 9)"), label="run.2")
    assert [piece async for piece in killed] == []
    assert killed.exit_code == 137
    await killed.close()
    assert b"blue" not in b"".join(
        [piece async for piece in bench.runtime.logs(release.app_id, lines=100, follow=False)]
    )
    assert bench.ours() == []


async def test_a_program_that_is_not_there_ends_with_127(bench: Bench) -> None:
    """As a shell has it."""
    release = bench.shelf.release(await bench.shelf.image())
    command = await bench.runtime.run_once(release, ("no-such-program",), label="run.1")
    assert b"no-such-program" in b"".join([piece async for piece in command])
    assert command.exit_code == 127
    await command.close()


async def test_closing_a_one_off_command_ends_everything_that_it_started(bench: Bench) -> None:
    """Also what has left its process group; the app goes on."""
    release = bench.shelf.release(await bench.shelf.image())
    await bench.up(release)
    before = {each.pid for each in bench.ours()}
    code = FORGETFUL_DAEMON + "print('ready', flush=True)\ntime.sleep(600)"
    command = await bench.runtime.run_once(release, (PYTHON, "-c", code), label="run.1")
    async with asyncio.timeout(30):
        async for piece in command:
            if b"ready" in piece:
                break
    await command.close()
    assert {each.pid for each in bench.ours()} == before


async def test_a_one_off_command_ends_with_the_platform(bench: Bench) -> None:
    """Nobody would read it any more."""
    release = bench.shelf.release(await bench.shelf.image())
    await bench.runtime.run_once(release, (PYTHON, "-c", "import time; time.sleep(600)"), label="run.1")
    await bench.runtime.close()
    assert bench.ours() == []


async def test_packages_that_link_into_the_app_are_unpacked_for_each_release(
    shelf: Shelf, images: OciLayout, tmp_path: Path
) -> None:
    """A workspace's package is the app's own code: a layer that is shared by releases cannot lead to it."""
    folders = Folders(tmp_path / "deployer", images)
    links = {"layers/node/node_modules/greeting": "../../../app/lib"}
    for text in ("first", "second"):
        release = shelf.release(await shelf.image({"lib/index.js": text}, links=links))
        root = await folders.prepare(release)
        assert (root.path / "layers/node/node_modules/greeting/index.js").read_text() == text
        assert (root.path / "layers/words").is_symlink()
        assert await folders.remove(release.saga_id)
