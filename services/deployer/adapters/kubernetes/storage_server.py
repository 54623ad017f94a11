"""The program of a storage pod: it serves one export or one import of the volume that it mounts, and ends.

It runs in the pod by its source alone (`python -c`), so it imports nothing but the standard library of Python 3.9 and
later. A request needs the token of the pod's environment.

GET gives the content as a tar archive: files, folders and links, without owners. A connection that breaks before the
last chunk is an archive that is cut off. PUT replaces the content. The archive is unpacked beside the old content, so
that on an error nothing has changed; the deployer has checked its names and links before.
"""

import hmac
import http.server
import os
import shutil
import sys
import tarfile
import threading
from typing import Any, BinaryIO, Optional, cast

PORT = 8080
_IDLE_S = 120.0
"""After which a pod that nobody asks ends."""
_SOCKET_S = 300.0
_PIECE_BYTES = 256 * 1024
_NEW, _OLD = ".knarr-new", ".knarr-old"
_NOT_CONTENT = {_NEW, _OLD, "lost+found"}


def portable(info: tarfile.TarInfo) -> Optional[tarfile.TarInfo]:  # noqa: UP045  Python 3.9
    """Leave sockets and devices out, and owners."""
    if not (info.isfile() or info.isdir() or info.issym()):
        return None
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def content_of(root: str) -> "list[str]":
    """Names in the volume's folder, without those of the file system and of an import that was cut off."""
    return sorted(set(os.listdir(root)) - _NOT_CONTENT)  # noqa: PTH208  its names, not paths


def pack(root: str, out: Any) -> None:
    """Write the content as a tar archive."""
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name in content_of(root):
            archive.add(os.path.join(root, name), arcname=name, filter=portable)  # noqa: PTH118  Python 3.9


def replace(root: str, archive: Any) -> None:
    """Replace the content by that of the archive; on an error the content before stays."""
    new, old = os.path.join(root, _NEW), os.path.join(root, _OLD)  # noqa: PTH118  Python 3.9
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    os.mkdir(new, 0o700)  # noqa: PTH102  Python 3.9
    try:
        with tarfile.open(fileobj=archive, mode="r|") as tar:
            tar.extractall(new)  # noqa: S202  the deployer has read it to its end, and checked every name and link
        os.mkdir(old, 0o700)  # noqa: PTH102  Python 3.9
        for name in content_of(root):
            os.rename(os.path.join(root, name), os.path.join(old, name))  # noqa: PTH104, PTH118  Python 3.9
        for name in os.listdir(new):  # noqa: PTH208  its names, not paths
            os.rename(os.path.join(new, name), os.path.join(root, name))  # noqa: PTH104, PTH118  Python 3.9
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


class _Chunks:
    """A file that writes HTTP chunks."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def write(self, data: bytes) -> int:
        if data:
            self._out.write(b"%x\r\n%s\r\n" % (len(data), data))
        return len(data)


class _Body:
    """A file that ends where the request's body does.

    Raises:
        EOFError: The connection ended before.
    """

    def __init__(self, source: BinaryIO, size: int) -> None:
        self._source = source
        self._left = size

    def read(self, size: int) -> bytes:
        wanted = min(size, self._left)
        data = self._source.read(wanted)
        if len(data) < wanted:
            raise EOFError
        self._left -= len(data)
        return data


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests that have the token."""

    protocol_version = "HTTP/1.1"
    timeout = _SOCKET_S
    root = "/volume"
    token = ""
    begun = threading.Event()
    ended = threading.Event()

    def do_GET(self) -> None:
        """Send the content."""
        if not self._is_allowed():
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/x-tar")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        try:
            pack(self.root, _Chunks(cast("BinaryIO", self.wfile)))
            self.wfile.write(b"0\r\n\r\n")
        finally:
            self.ended.set()

    def do_PUT(self) -> None:
        """Take other content."""
        if not self._is_allowed():
            return
        self.close_connection = True
        said, status = b"", 204
        try:
            replace(self.root, _Body(cast("BinaryIO", self.rfile), int(self.headers["Content-Length"])))
        except (OSError, EOFError, tarfile.TarError) as error:
            said, status = f"{type(error).__name__}: {error}".encode()[:500], 507
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)
        finally:
            self.ended.set()

    def log_message(self, *_: object) -> None:
        """Print nothing: the log of the pod is nobody's."""

    def _is_allowed(self) -> bool:
        given = self.headers.get("X-Knarr-Token", "")
        if not hmac.compare_digest(given.encode(), self.token.encode()) or self.begun.is_set():
            self.send_error(403)
            return False
        self.begun.set()
        return True


def main() -> None:
    """Serve one request, or end after a while without one."""
    Handler.token = os.environ.pop("TOKEN")
    server = http.server.ThreadingHTTPServer(("", PORT), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if not Handler.begun.wait(_IDLE_S):
        sys.exit("nobody asked")
    Handler.ended.wait()
    server.shutdown()


if __name__ == "__main__":
    main()
