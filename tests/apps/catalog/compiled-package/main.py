import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from native import version


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = ("libpq is here" if version() > 100000 else "no libpq").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
