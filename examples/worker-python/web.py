"""The web half: says who it is, and whether the platform made the secret that `app.json` asks for."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        secret = "made" if os.environ.get("SESSION_KEY") else "missing"
        body = f"Hello from {os.environ.get('KNARR_APP', 'worker-python')}; the session key is {secret}.\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer((os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8000"))), Handler).serve_forever()
