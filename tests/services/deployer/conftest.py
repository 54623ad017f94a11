"""A deployer's own world: its database, an image store in a folder, and apps small enough to start in a blink."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import orjson
import pytest

from ocistore.layout import OciLayout
from ocistore.store import (
    LABEL_BASE,
    LABEL_ENV,
    LABEL_FORMATION,
    LABEL_HEALTH_PATH,
    LABEL_PROCESSES,
    LABEL_RELEASE,
    Image,
    ImageStore,
)
from ocistore.testing import layer_file
from seedwork.messages import new_id
from seedwork.testing.servers import database
from seedwork.unit_of_work import Database
from services.deployer import models
from services.deployer.image import facts_of
from services.deployer.ports import Release

T = TypeVar("T")

PYTHON = sys.executable
PATIENCE_S = 60.0

WEB = """
import http.server, os, signal, sys
VERSION = {version!r}
class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/health":
            return self.answer(int(os.environ.get("HEALTH", "200")), b"")
        if self.path == "/env":
            return self.answer(200, "\\n".join(f"{{k}}={{v}}" for k, v in sorted(os.environ.items())).encode())
        if self.path == "/pid":
            return self.answer(200, str(os.getpid()).encode())
        if self.path == "/die":
            print("dying as asked", flush=True)
            os._exit(3)
        self.answer(200, VERSION.encode())
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
print("50 %\\r100 %\\tlistening\\r", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App).serve_forever()
"""


PRINTS = b"50 %\r100 %\tlistening\r\n"
"""What `WEB` prints when it begins."""


async def eventually(
    check: Callable[[], Awaitable[T]], *, until: Callable[[T], object] = bool, within_s: float = PATIENCE_S
) -> T:
    """Ask again until the answer is as it should be, for at most that long."""
    end = asyncio.get_running_loop().time() + within_s
    while not until(answer := await check()):
        assert asyncio.get_running_loop().time() < end, f"it did not become true; the last answer was {answer!r}"
        await asyncio.sleep(0.05)
    return answer


@dataclass
class Shelf:
    """Makes images as the builder does."""

    images: ImageStore
    folder: Path
    repository: str = "shop"
    app_id: str = field(default_factory=new_id)

    async def image(
        self,
        files: Mapping[str, str] | None = None,
        *,
        web: tuple[str, ...] | None = (PYTHON, "app.py"),
        version: str = "one",
        processes: Mapping[str, tuple[str, ...]] | None = None,
        release: tuple[str, ...] | None = None,
        formation: Mapping[str, int] | None = None,
        health_path: str | None = None,
        env: Mapping[str, object] | None = None,
        labels: Mapping[str, str] | None = None,
        links: Mapping[str, str] | None = None,
        variables: tuple[str, ...] = ("GREETING_FILE=/layers/words/hello.txt", "PYTHONPATH=/layers/words:/app:/usr/x"),
    ) -> Image:
        """An image with a dependency layer and an app layer."""
        commands = dict(processes or {}) | ({"web": web} if web else {})
        said = {
            LABEL_PROCESSES: orjson.dumps(commands).decode(),
            LABEL_BASE: "host",
            **({LABEL_RELEASE: orjson.dumps(release).decode()} if release else {}),
            **({LABEL_FORMATION: orjson.dumps(dict(formation)).decode()} if formation else {}),
            **({LABEL_HEALTH_PATH: health_path} if health_path else {}),
            **({LABEL_ENV: orjson.dumps(dict(env)).decode()} if env else {}),
            **(labels or {}),
        }
        app = files or {"app.py": WEB.format(version=version)}
        layers = [
            layer_file(self.folder, {"layers/words/hello.txt": "hello"}),
            *([layer_file(self.folder, {}, links=links)] if links else []),
            layer_file(self.folder, {f"app/{name}": text for name, text in app.items()}),
        ]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Labels": said, "Env": list(variables), "WorkingDir": "/app"},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
        return await self.images.put(
            self.repository, config=orjson.dumps(config, option=orjson.OPT_SORT_KEYS), layers=layers
        )

    def release(
        self,
        image: Image,
        *,
        number: int = 1,
        formation: Mapping[str, int] | None = None,
        env: Mapping[str, str] | None = None,
        saga_id: str | None = None,
    ) -> Release:
        """What a runtime is asked to run."""
        labels = image.config["config"]["Labels"]
        processes = {name: tuple(each) for name, each in orjson.loads(labels[LABEL_PROCESSES]).items()}
        return Release(
            app_id=self.app_id,
            app="shop",
            team="default",
            saga_id=saga_id or new_id(),
            number=number,
            image=image,
            processes=processes,
            formation=formation or {"web": 1},
            env=env or {},
            release_command=tuple(orjson.loads(labels[LABEL_RELEASE])) if LABEL_RELEASE in labels else None,
            health_path=labels.get(LABEL_HEALTH_PATH),
            checks=facts_of(image).checks,
            port=facts_of(image).port,
        )


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[OciLayout]:
    store = OciLayout(tmp_path / "images")
    yield store
    await store.close()


@pytest.fixture
def shelf(images: OciLayout, tmp_path: Path) -> Shelf:
    folder = tmp_path / "layers-made"
    folder.mkdir()
    return Shelf(images, folder)


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with database("sqlite", tmp_path, models.metadata) as found:
        yield found
