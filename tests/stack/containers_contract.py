"""What every runtime of containers keeps beside `RuntimeContract`: images with their own system, config, verdicts."""

import asyncio
from typing import Any, ClassVar, Protocol

import httpx2

from ocistore.distribution import DistributionStore
from ocistore.store import LABEL_CHECKS, Image
from seedwork.errors import KnarrError
from seedwork.messages import new_id
from services.deployer.ports import Release
from tests.services.deployer.conftest import PATIENCE_S
from tests.services.deployer.test_runtime_contract import RuntimeContract
from tests.stack.container_images import OPEN_WEB, PYTHON, ContainerShelf


class ContainerBench(Protocol):
    """A runtime's tests have one."""

    images: DistributionStore
    shelf: ContainerShelf

    async def up(self, runtime: Any, release: Release) -> str:
        """Deployed with traffic; the app's address."""

    async def fails(self, release: Release, *, start_timeout_s: float = ...) -> KnarrError:
        """What is said of a release that does not come up; nothing of it stays."""

    async def instance_of(self, release: Release) -> str:
        """What its only instance is called."""


class ContainersContract(RuntimeContract):
    """Inherit it and give a `bench`, and what `RuntimeContract` wants."""

    REFUSES: ClassVar[str]
    """What is said where nobody listens."""

    async def test_instances_get_their_config_and_know_who_they_are(
        self, bench: ContainerBench, runtime: Any, sound: Image
    ) -> None:
        """Config vars over the image's own variables, PORT, and the names of the release."""
        release = bench.shelf.release(sound, env={"COLOUR": "blue", "LINES": "one\ntwo"})
        text = (await get(await bench.up(runtime, release) + "env")).text

        assert "COLOUR=blue" in text
        assert "LINES=one\ntwo" in text
        assert "GREETING=hello" in text
        assert "PORT=8080" in text
        assert f"KNARR_SAGA_ID={release.saga_id}" in text
        assert f"KNARR_INSTANCE={await bench.instance_of(release)}" in text

    async def test_an_app_that_never_answers_is_a_verdict(self, bench: ContainerBench) -> None:
        """The text says what its port does; what the app printed stands beside it."""
        image = await bench.shelf.image({"app.py": "import time; print('thinking', flush=True); time.sleep(600)"})
        fault = await bench.fails(bench.shelf.release(image), start_timeout_s=4)
        assert self.REFUSES in fault.message
        assert fault.log_tail == ("thinking",)

    async def test_an_unhealthy_app_is_a_verdict(self, bench: ContainerBench) -> None:
        """The text says what its health path answers; no secret is in the lines."""
        image = await bench.shelf.image(health_path="/health")
        release = bench.shelf.release(image, env={"HEALTH": "503", "KEY": "s3cret-of-the-app"})
        fault = await bench.fails(release, start_timeout_s=4)
        assert "GET /health answered 503" in fault.message

    async def test_of_an_app_that_prints_faster_than_it_is_read_the_last_lines_are_read_and_no_more(
        self, bench: ContainerBench
    ) -> None:
        """The answer of the engine or the cluster has no end then; here those that stand beside a verdict."""
        image = await bench.shelf.image({"app.py": "while True: print('x' * 100)"})
        async with asyncio.timeout(300):  # and not for ever
            fault = await bench.fails(bench.shelf.release(image), start_timeout_s=4)
        assert fault.log_tail == ("x" * 100,) * 50

    async def test_lines_in_errors_hold_no_config_values(self, bench: ContainerBench) -> None:
        """What an app prints of its config is blotted out."""
        image = await bench.shelf.image({"app.py": "import os, sys; sys.exit('key is ' + os.environ['KEY'])"})
        fault = await bench.fails(bench.shelf.release(image, env={"KEY": "s3cret-of-the-app"}))
        assert fault.log_tail == ("key is ********",)
        assert "s3cret" not in fault.message

    async def test_a_check_sends_the_headers_that_the_app_asks_for(self, bench: ContainerBench, runtime: Any) -> None:
        """Host among them, without which many frameworks answer 400."""
        check = '{"web": [{"path": "/health", "headers": {"Host": "shop.example.com"}}]}'
        app = OPEN_WEB.format(version="one").replace(
            'int(os.environ.get("HEALTH", "200"))',
            '200 if self.headers["Host"] == "shop.example.com" else 400',
        )
        image = await bench.shelf.image({"app.py": app}, labels={LABEL_CHECKS: check})
        url = await bench.up(runtime, bench.shelf.release(image))
        assert (await get(url + "health")).status_code == 400

    async def test_a_check_that_fails_is_a_verdict(self, bench: ContainerBench) -> None:
        """Each key of a check counts: the app answers `GET /` with 200, and is not declared live."""

        async def said(check: str) -> str:
            image = await bench.shelf.image(labels={LABEL_CHECKS: '{"web": [' + check + "]}"})
            release = bench.shelf.release(image, env={"HEALTH": "503"}, app_id=new_id())
            return (await bench.fails(release, start_timeout_s=4)).message

        command, content, port, readiness = await asyncio.gather(
            said('{"command": ["/bin/false"]}'),
            said('{"path": "/", "content": "ready"}'),
            said('{"listening": true, "port": 9999}'),
            said('{"type": "readiness", "path": "/health", "wait_s": 1}'),
        )
        assert "/bin/false" in command
        assert "'ready'" in content
        assert "9999" in port
        assert "GET /health answered 503" in readiness

    async def test_an_answer_counts_and_an_open_port_does_not(self, bench: ContainerBench) -> None:
        """Without a check of its own: gunicorn's master opens the port before its workers have imported the app."""
        mute = (
            "import os, socket\ns = socket.create_server(('0.0.0.0', int(os.environ['PORT'])))\n"
            "while True: s.accept()[0].close()"
        )
        fault = await bench.fails(bench.shelf.release(await bench.shelf.image({"app.py": mute})), start_timeout_s=3)
        assert "GET /" in fault.message

    async def test_any_status_is_an_answer(self, bench: ContainerBench, runtime: Any) -> None:
        """An app without a page at `/` runs."""
        app = OPEN_WEB.format(version="one").replace("self.answer(200, VERSION", "self.answer(404, VERSION")
        url = await bench.up(runtime, bench.shelf.release(await bench.shelf.image({"app.py": app})))
        assert (await get(url)).status_code == 404

    async def test_a_one_off_process_runs_in_the_environment_of_the_release(
        self, bench: ContainerBench, runtime: Any, sound: Image
    ) -> None:
        """Its output and its exit status come back, and nothing of it stays."""
        release = bench.shelf.release(sound, env={"COLOUR": "blue"})
        await bench.up(runtime, release)
        code = (
            "import os, sys; print(os.environ['COLOUR'], os.environ['KNARR_INSTANCE']); sys.stderr.write('err\\n');"
            " sys.exit(7)"
        )
        command = await runtime.run_once(release, (PYTHON, "-c", code), label="run.1")
        async with asyncio.timeout(PATIENCE_S):
            output = b"".join([piece async for piece in command])
        assert sorted(output.split(b"\n")) == [b"", b"blue run.1", b"err"]
        assert command.exit_code == 7
        # and it ends when its reader closes it: a connection that was lost leaves no process behind
        command = await runtime.run_once(
            release, (PYTHON, "-uc", "import time; print('begun'); time.sleep(600)"), label="run.1"
        )
        async with asyncio.timeout(PATIENCE_S):
            text = b""
            async for piece in command:
                text += piece
                if b"begun" in text:
                    break
            await command.close()
        assert command.exit_code == 137
        found = await runtime.stop(release.app_id, release.saga_id)
        assert not any("one-off" in each for each in found)

    async def test_a_one_off_process_that_a_crash_of_ours_left_goes_with_its_release(
        self, bench: ContainerBench, runtime: Any, sound: Image
    ) -> None:
        """`stop` finds it by its label."""
        release = bench.shelf.release(sound)
        await bench.up(runtime, release)
        command = await runtime.run_once(release, (PYTHON, "-c", "import time; time.sleep(600)"), label="run.1")
        found = await runtime.stop(release.app_id, release.saga_id)
        assert any("one-off" in each for each in found)
        async with asyncio.timeout(PATIENCE_S):
            assert [piece async for piece in command] == []
        assert command.exit_code is not None
        assert command.exit_code > 128


async def get(url: str) -> httpx2.Response:
    """Asked without a proxy."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        return await client.get(url)
