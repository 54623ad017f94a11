import os
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

REDIS = urlsplit(os.environ["REDIS_URL"])


def ask(*commands):
    with socket.create_connection((REDIS.hostname, REDIS.port)) as connection:
        file = connection.makefile("rwb")
        for command in (f"AUTH {REDIS.password}", *commands):
            file.write(command.encode() + b"\r\n")
            file.flush()
            answer = file.readline()
        return answer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"redis counts " + ask("INCR visits")
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
