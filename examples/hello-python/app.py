"""A small web app: answers with a page, `/json` with the same facts, `/health` with "ok"."""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from markupsafe import escape

FACTS = {
    "greeting": os.environ.get("GREETING", "Hello from knarr"),
    "app": os.environ.get("KNARR_APP", "hello-python"),
    "release": os.environ.get("KNARR_RELEASE", ""),
    "commit": os.environ.get("KNARR_COMMIT", "")[:12],
}

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{app}</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 16px/1.6 system-ui, sans-serif; display: grid; place-content: center; min-height: 100vh; margin: 0;
          background: light-dark(#f6f4ef, #16191d); color: light-dark(#1d2733, #e8e6e1); }}
  h1 {{ font-weight: 600; letter-spacing: -.02em; margin: 0 0 .5rem; }}
  dl {{ display: grid; grid-template-columns: auto 1fr; gap: .1rem 1rem; margin: 0; opacity: .75; }}
  dd {{ margin: 0; font-family: ui-monospace, monospace; }}
</style>
<main>
  <h1>{greeting}</h1>
  <dl><dt>app</dt><dd>{app}</dd>{release}{commit}</dl>
</main>
</html>
"""


def page() -> bytes:
    """The facts as a page; release and commit only where the platform gave them."""
    rows = {
        name: f"<dt>{name}</dt><dd>{escape(FACTS[name])}</dd>" if FACTS[name] else "" for name in ("release", "commit")
    }
    return PAGE.format(greeting=escape(FACTS["greeting"]), app=escape(FACTS["app"]), **rows).encode()


class Handler(BaseHTTPRequestHandler):
    """Three paths, nothing to configure."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, b"ok\n", "text/plain; charset=utf-8")
        elif self.path == "/json":
            self.answer(200, json.dumps(FACTS).encode() + b"\n", "application/json")
        elif self.path == "/":
            self.answer(200, page(), "text/html; charset=utf-8")
        else:
            self.answer(404, b"There is no such page.\n", "text/plain; charset=utf-8")

    def answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, text: str, *args: object) -> None:
        print(f"{self.address_string()} {text % args}", flush=True)


def main() -> None:
    port = int(os.environ.get("PORT", "8000"))
    server = ThreadingHTTPServer((os.environ.get("HOST", "127.0.0.1"), port), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"{FACTS['app']} listens on port {port}", flush=True)
    server.serve_forever()
    print("stopped", flush=True)


if __name__ == "__main__":
    sys.exit(main())
