"""Serves the files below the working directory over HTTP at PORT: GET and HEAD, `index.html` for folders.

Runs inside the image of a static site, so it has only the standard library. Files in an image have no times of their
own, so nothing is said about times: a browser asks with the entity tag (the content's SHA-256) whether it still has
the newest. Hidden files (all that begin with a dot, except `.well-known`) and links that lead out of the folder do
not exist. `/about` is answered with `about.html`. A page that does not exist is answered with the file that
KNARR_STATIC_FALLBACK names and status 200 (single-page apps); everything else that does not exist with `404.html` and
404. A path whose last part has a dot is a file, not a page. SIGTERM: answers the open requests, then ends.
"""

import hashlib
import mimetypes
import os
import signal
import socketserver
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

FALLBACK = "KNARR_STATIC_FALLBACK"
"""Environment variable with the path of the file, below the folder, that answers for pages without a file."""
_PIECE_BYTES = 256 * 1024
_LAST_ANSWERS_S = 20.0
"""After SIGTERM; a little less than the 30 s after which platforms kill."""
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".webp": "image/webp"}
_NOT_SITE = frozenset({"Procfile", "app.json"})
"""At the top: they describe the app, they are not part of it."""


class Site:
    """The files of one folder, by URL path."""

    def __init__(self, root: Path, *, fallback: str | None = None) -> None:
        """Serve what is below `root`; `fallback` answers for pages that do not exist."""
        self.root = root.resolve()
        self._fallback = fallback
        self._tags: dict[tuple[str, int, int, int], str] = {}

    def find(self, url_path: str) -> Path | None:
        """The file or folder for a request's path; None: nothing that is to be seen."""
        parts = [part for part in urllib.parse.unquote(url_path).split("/") if part]
        if any("\0" in part or (part.startswith(".") and part != ".well-known") for part in parts):
            return None
        if len(parts) == 1 and parts[0] in _NOT_SITE:
            return None
        try:
            path = self.root.joinpath(*parts).resolve(strict=True)
        except (OSError, RuntimeError):
            return None  # not there, a loop of links, or a name that is too long
        return path if path.is_relative_to(self.root) else None

    def page(self, url_path: str) -> Path | None:
        """Return the file for a request's path, or None. A folder's file is its `index.html`."""
        found = self.find(url_path)
        if found is not None and found.is_dir():
            found = self.find(url_path + "/index.html")
        elif url_path.endswith("/"):
            found = None
        elif found is None and _is_page(url_path):
            found = self.find(url_path + ".html")
        return found if found is not None and found.is_file() else None

    def for_missing(self, url_path: str) -> tuple[Path | None, HTTPStatus]:
        """Return the file that answers for a path without a file, with the status."""
        if self._fallback and _is_page(url_path):
            found = self.find("/" + self._fallback)
            if found is not None and found.is_file():
                return found, HTTPStatus.OK
        found = self.find("/404.html")
        return found if found is not None and found.is_file() else None, HTTPStatus.NOT_FOUND

    def tag(self, path: Path) -> str:
        """The file's entity tag, computed once as long as it does not change."""
        status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns, status.st_ino)
        if key not in self._tags:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    digest.update(piece)
            self._tags[key] = f'"{digest.hexdigest()[:32]}"'
        return self._tags[key]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "knarr-static"
    sys_version = ""
    timeout = 30  # seconds that an idle connection is kept: a proxy reuses it within that
    site: ClassVar[Site]
    server: "Server"

    def do_GET(self) -> None:
        """Send the file."""
        with self.server.answering():
            self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Say what GET would send."""
        with self.server.answering():
            self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path, _, query = self.path.partition("?")
        folder = self.site.find(path)
        if folder is not None and folder.is_dir() and not path.endswith("/"):
            self._redirect(path + "/" + (f"?{query}" if query else ""))
            return
        found, status = self.site.page(path), HTTPStatus.OK
        if found is None:
            found, status = self.site.for_missing(path)
        if found is None:
            self._text(status, b"Not found\n", with_body=with_body)
        else:
            self._send(found, status, with_body=with_body)

    def _send(self, path: Path, status: HTTPStatus, *, with_body: bool) -> None:
        tag = self.site.tag(path)
        asked = [each.strip().removeprefix("W/") for each in self.headers.get("If-None-Match", "").split(",")]
        if status is HTTPStatus.OK and (tag in asked or asked == ["*"]):
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self.send_header("ETag", tag)
            self.end_headers()
            return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.send_response(status)
            self.send_header("Content-Type", content_type(path))
            self.send_header("Content-Length", str(size))
            self.send_header("ETag", tag)
            self.send_header("Cache-Control", "no-cache")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            while with_body and size and (piece := file.read(min(_PIECE_BYTES, size))):
                self.wfile.write(piece)
                size -= len(piece)

    def _redirect(self, target: str) -> None:
        self.send_response(HTTPStatus.MOVED_PERMANENTLY)
        self.send_header("Location", "/" + target.lstrip("/"))  # `//host` would lead elsewhere
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _text(self, status: HTTPStatus, text: bytes, *, with_body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if with_body:
            self.wfile.write(text)


def _is_page(url_path: str) -> bool:
    """Whether a path names a page, and no file with an ending; hidden names are neither."""
    parts = urllib.parse.unquote(url_path).strip("/").split("/")
    return "." not in parts[-1] and not any(part.startswith(".") or "\0" in part for part in parts if part)


def content_type(path: Path) -> str:
    """By the name's ending; text is UTF-8."""
    kind = _TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") or kind.endswith(("json", "xml")) else kind


class Server(ThreadingHTTPServer):
    """A thread a connection; those that are idle do not hold up the end."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], site: Site) -> None:
        """Listen at once."""
        self._answering = 0
        self._changed = threading.Condition()
        super().__init__(address, type("SiteHandler", (Handler,), {"site": site}))

    def server_bind(self) -> None:
        """Without asking the name service for our own name, as the standard library does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request for as long as it is being answered."""
        with self._changed:
            self._answering += 1
        try:
            yield
        finally:
            with self._changed:
                self._answering -= 1
                self._changed.notify_all()

    def wait_for_answers(self, timeout_s: float) -> bool:
        """Until nothing is being answered; false if it took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._answering == 0, timeout_s)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no fault of ours."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def main() -> None:
    """Serve until SIGTERM."""
    address = (os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8000")))
    with Server(address, Site(Path.cwd(), fallback=os.environ.get(FALLBACK))) as server:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        server.serve_forever(poll_interval=0.1)
        server.wait_for_answers(_LAST_ANSWERS_S)


if __name__ == "__main__":
    main()
