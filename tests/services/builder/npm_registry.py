"""A package registry for npm, pnpm and Yarn in memory: packuments and tarballs of small packages."""

import base64
import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import orjson

Files = Mapping[str, str]


@dataclass
class NpmRegistry:
    """Serves packages at `url`; `asked` has the paths of all requests."""

    url: str = ""
    packages: dict[str, dict[str, bytes]] = field(default_factory=dict)
    manifests: dict[tuple[str, str], dict[str, object]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, name: str, version: str, files: Files | None = None, **manifest: object) -> bytes:
        """Add a package; its tarball. Files that begin with `#!` are executable."""
        record = {"name": name, "version": version, "main": "index.js", **manifest}
        content = {"package.json": orjson.dumps(record).decode(), **(files or {"index.js": ""})}
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path, text in content.items():
                entry = tarfile.TarInfo(f"package/{path}")
                entry.size, entry.mode = len(text.encode()), 0o755 if text.startswith("#!") else 0o644
                tar.addfile(entry, io.BytesIO(text.encode()))
        tarball = gzip.compress(buffer.getvalue(), mtime=0)
        self.packages.setdefault(name, {})[version] = tarball
        self.manifests[name, version] = record
        return tarball

    def integrity(self, name: str, version: str) -> str:
        """The integrity of a tarball, as lock files have it."""
        return "sha512-" + base64.b64encode(hashlib.sha512(self.packages[name][version]).digest()).decode()

    def answer(self, path: str) -> bytes | None:
        """The body for a path; None: not found."""
        self.asked.append(path)
        name, slash, file = unquote(path).strip("/").partition("/-/")
        if name not in self.packages:
            return None
        if slash:
            version = file.removesuffix(".tgz").rpartition(name.rpartition("/")[2] + "-")[2]
            return self.packages[name].get(version)
        versions = {
            version: {
                **self.manifests[name, version],
                "dist": {
                    "tarball": f"{self.url}/{name}/-/{name.rpartition('/')[2]}-{version}.tgz",
                    "integrity": self.integrity(name, version),
                },
            }
            for version in self.packages[name]
        }
        return orjson.dumps({"name": name, "versions": versions, "dist-tags": {"latest": list(versions)[-1]}})


@contextmanager
def npm_registry() -> Iterator[NpmRegistry]:
    """A registry that answers on a port of this machine."""
    registry = NpmRegistry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = registry.answer(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"{}")))
            self.end_headers()
            self.wfile.write(body or b"{}")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        registry.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()
