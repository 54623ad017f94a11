"""A package index on this machine, and stand-ins for install tools, so that tests need no network."""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.services.builder.support import wheel

TOOL = """
import json, os, pathlib, sys

def main():
    argv = sys.argv[1:]
    print("tool", NAME, VERSION, json.dumps(argv), flush=True)
    for name in pathlib.Path(".").glob("*.lock"):
        if "stale" in name.read_text():
            sys.exit(SAYS)
    if argv[0] in ("install", "sync"):
        site = next(pathlib.Path(os.environ["VIRTUAL_ENV"]).glob("lib/*/site-packages"))
        info = site / "greet-1.0.dist-info"
        info.mkdir()
        (site / "greet.py").write_text(f"VERSION = 'by {NAME} {VERSION}'\\n")
        (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: greet\\nVersion: 1.0\\n")
        (info / "RECORD").write_text("greet.py,,\\n")
        (info / "direct_url.json").write_text(os.getcwd())
        script = pathlib.Path(os.environ["VIRTUAL_ENV"], "bin", "greet")
        script.write_text(f"#!{script.parent}/python\\nimport greet, sys\\nprint(greet.VERSION, sys.prefix)\\n")
        script.chmod(0o755)
"""


def tool_wheel(name: str, version: str, says: str) -> bytes:
    """A program that installs one package, and ends with an error where a lock file contains the word `stale`."""
    code = f"NAME, VERSION, SAYS = {name!r}, {version!r}, {says!r}\n{TOOL}"
    return wheel(name, version, {f"{name}_tool.py": code}, scripts={name: f"{name}_tool:main"})


@dataclass
class PackageIndex:
    """An index with the simple API (PEP 503)."""

    files: dict[str, bytes] = field(default_factory=dict)
    """Wheels by file name."""
    asked: list[str] = field(default_factory=list)
    """Paths of requests."""
    url: str = ""

    def add(self, name: str, version: str = "1.0", files: Mapping[str, str] | None = None, **scripts: str) -> None:
        """Publish a small package."""
        content = wheel(name, version, files, scripts=scripts or None)
        self.files[f"{name}-{version}-py3-none-any.whl"] = content

    def add_tool(self, name: str, version: str, says: str) -> None:
        """Publish a stand-in for an install tool."""
        self.files[f"{name}-{version}-py3-none-any.whl"] = tool_wheel(name, version, says)

    def answer(self, path: str) -> bytes | None:
        """The content at a path, or None."""
        self.asked.append(path)
        kind, _, name = path.strip("/").partition("/")
        if kind == "files":
            return self.files.get(name)
        found = [file for file in self.files if file.partition("-")[0].replace("_", "-") == name]
        links = [
            f'<a href="/files/{file}#sha256={hashlib.sha256(self.files[file]).hexdigest()}">{file}</a>'
            for file in found
        ]
        return ("<!DOCTYPE html><html><body>" + "\n".join(links) + "</body></html>").encode() if found else None


@contextmanager
def package_index() -> Iterator[PackageIndex]:
    """Serve an index until the block ends."""
    index = PackageIndex()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(whole=False)

        def do_GET(self) -> None:
            self._answer(whole=True)

        def _answer(self, *, whole: bool) -> None:
            content = index.answer(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Type", "text/html" if self.path.startswith("/simple") else "application/zip")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if whole:
                self.wfile.write(content or b"")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
