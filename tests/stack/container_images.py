"""Images for tests of container runtimes: complete ones, made of a public base image in the registry."""

import os
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from ocistore.distribution import DistributionStore
from ocistore.opening import open_store
from ocistore.store import LABEL_FORMATION, LABEL_HEALTH_PATH, LABEL_PROCESSES, LABEL_RELEASE, Image, LayerFile
from ocistore.testing import LAYER_GZIP, layer_file
from seedwork.messages import new_id
from services.deployer.image import facts_of
from services.deployer.ports import Release
from tests.services.deployer.conftest import WEB

BASE = "python:3.11-slim"
PREFIX = "knarr-test-runtimes"
PYTHON = "python3"
OPEN_WEB = WEB.replace('("127.0.0.1", int', '("0.0.0.0", int')
"""The small app of the process runtime's tests, listening to everybody in its container."""

WRITES = """
import http.server, os
def tried(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.strerror
    return "written"
class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = "\\n".join(map(tried, ("/app/file", "/tmp/file"))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), App).serve_forever()
"""
"""An app that answers which of `/app/file` and `/tmp/file` it could write."""
READ_ONLY = "Read-only file system\nwritten"
"""What it answers where its files are read-only."""

_lock = threading.Lock()
_base_digest = ""


def registry() -> str:
    """Its `host:port`."""
    return os.environ["REGISTRY"]


def open_images() -> DistributionStore:
    """The store in which these tests keep their images; the base image is shared, so it has no part of its own."""
    store = open_store(f"http://{registry()}/{PREFIX}")
    assert isinstance(store, DistributionStore)
    return store


def _push_base() -> str:
    """Bring the base image from the engine into the registry, once a process; its digest there."""
    global _base_digest  # noqa: PLW0603  pushed once
    with _lock:
        if not _base_digest:
            name = f"{registry()}/{PREFIX}/python"
            for command in (["tag", BASE, f"{name}:3.11"], ["push", "--quiet", f"{name}:3.11"]):
                subprocess.run(["docker", *command], check=True, capture_output=True, timeout=900)
            form = "{{range .RepoDigests}}{{println .}}{{end}}"
            told = subprocess.run(
                ["docker", "image", "inspect", "--format", form, f"{name}:3.11"],
                check=True,
                capture_output=True,
                text=True,
                timeout=300,
            )
            _base_digest = next(
                line.partition("@")[2] for line in told.stdout.split() if line.startswith(f"{name}@sha256:")
            )
    return _base_digest


@dataclass
class ContainerShelf:
    """Makes images as the builder `buildx` does: base image, app, labels."""

    images: DistributionStore
    folder: Path
    app_id: str = field(default_factory=new_id)
    app: str = "shop"

    @property
    def repository(self) -> str:
        """Of the app."""
        return f"t{self.app_id.replace('-', '')}/shop"

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
        labels: Mapping[str, str] | None = None,
        user: str = "10001:10001",
        exposed: str | None = None,
    ) -> Image:
        """An image with Python and this app."""
        base = await self.images.get("python", _push_base())
        commands = dict(processes or {}) | ({"web": web} if web else {})
        said = {
            LABEL_PROCESSES: orjson.dumps(commands).decode(),
            **({LABEL_RELEASE: orjson.dumps(release).decode()} if release else {}),
            **({LABEL_FORMATION: orjson.dumps(dict(formation)).decode()} if formation else {}),
            **({LABEL_HEALTH_PATH: health_path} if health_path else {}),
            **(labels or {}),
        }
        app = layer_file(
            self.folder,
            {f"app/{name}": text for name, text in (files or {"app.py": OPEN_WEB.format(version=version)}).items()},
        )
        layers = [*_layers_of(base), app]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Labels": said,
                "Env": [*base.config["config"]["Env"], "GREETING=hello"],
                "WorkingDir": "/app",
                "User": user,
                **({"ExposedPorts": {exposed: {}}} if exposed else {}),
            },
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
        app_id: str | None = None,
    ) -> Release:
        """What a runtime is asked to run."""
        labels = image.config["config"]["Labels"]
        processes = {name: tuple(each) for name, each in orjson.loads(labels[LABEL_PROCESSES]).items()}
        return Release(
            app_id=app_id or self.app_id,
            app=self.app,
            team="default",
            saga_id=saga_id or new_id(),
            number=number,
            image=image,
            processes=processes,
            formation=formation if formation is not None else {"web": 1},
            env=env or {},
            release_command=tuple(orjson.loads(labels[LABEL_RELEASE])) if LABEL_RELEASE in labels else None,
            health_path=labels.get(LABEL_HEALTH_PATH),
            checks=facts_of(image).checks,
            port=facts_of(image).port,
        )


def _layers_of(image: Image) -> list[LayerFile]:
    return [
        LayerFile(
            descriptor=type(each)(media_type=LAYER_GZIP, digest=each.digest, size_bytes=each.size_bytes),
            diff_id=diff_id,
            from_repository=image.repository,
        )
        for each, diff_id in zip(image.layers, image.config["rootfs"]["diff_ids"], strict=True)
    ]
