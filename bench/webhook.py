"""The webhook under 200 requests a second: each a signed push of its own, stored before it is answered.

The service runs in a process of its own, as in production. Requests are sent when their time has come, whether or not
earlier ones were answered, and a request's time runs from that moment: what waits for others is counted.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2
import orjson
import psutil
from pydantic import SecretStr

from bench.figures import Figure, folder, percentile
from bench.orchestra import quiet
from bench.platform import environment, free_ports, until
from knarr.push import headers_of
from seedwork.adapters.in_process import InProcessBus
from seedwork.chassis.server import Server, listen
from services.webhook.app import create_app
from services.webhook.settings import WebhookSettings

RATE = 200
APPS = 40
CONNECTIONS = 16
SECRET = "a secret of the measurements"  # noqa: S105  of apps that live for a minute
TOKEN = "bench"  # noqa: S105  likewise


def serve(home: Path, port_base: int) -> None:
    """The service, until the process is ended; its messages leave, and nobody takes them."""
    quiet()
    settings = WebhookSettings(home=home, token=SecretStr(TOKEN), port_base=port_base, poll_s=0)
    bus = InProcessBus()
    app = create_app(settings, bus=bus)
    app.state.service.on_start(bus.open)
    Server(app).run(sockets=[listen("webhook", "127.0.0.1", settings.port("webhook"))])


class Sender:
    """Keeps a few connections open, as a proxy before the service does, and knows each answer's time.

    Args:
        ports: Where its replicas listen; each gets as many connections.
    """

    def __init__(self, *ports: int) -> None:
        self._ports = ports
        self._free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.taken_ms: list[float] = []

    async def open(self) -> None:
        """Connect."""
        for number in range(CONNECTIONS):
            port = self._ports[number % len(self._ports)]
            self._free.put_nowait(await asyncio.open_connection("127.0.0.1", port))

    async def close(self) -> None:
        """Disconnect."""
        while not self._free.empty():
            _, writer = self._free.get_nowait()
            writer.close()
            await writer.wait_closed()

    async def send(self, request: bytes, since: float) -> None:
        """Send it, and read the answer.

        Raises:
            RuntimeError: It was not accepted.
        """
        reader, writer = await self._free.get()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        body = await reader.readexactly(int(fields[b"content-length"]))
        self.taken_ms.append((time.perf_counter() - since) * 1000)
        self._free.put_nowait((reader, writer))
        if orjson.loads(body).get("status") != "accepted":
            raise RuntimeError(body.decode())


def push(number: int, port: int) -> bytes:
    """A push of some 8 KB, about what GitHub sends, as it goes over the wire."""
    name = f"bench/shop{number % APPS}"
    commit = f"{number:040x}"
    author = {"name": "Bench", "email": "bench@knarr.invalid", "username": "bench"}
    change = {
        "id": commit, "tree_id": commit, "message": f"change {number}", "timestamp": "2026-01-01T00:00:00Z",
        "author": author, "committer": author, "added": [], "removed": [], "modified": ["app.py"], "url": "https://x.invalid",
    }  # fmt: skip
    payload = {
        "ref": "refs/heads/main", "before": f"{number + 2**100:040x}", "after": commit,
        "created": False, "deleted": False, "forced": False, "head_commit": change, "commits": [change],
        "repository": {"full_name": name, "clone_url": f"https://github.com/{name}.git", "description": "x" * 7000},
        "pusher": author, "sender": {"login": "bench"},
    }  # fmt: skip
    body = orjson.dumps(payload)
    headers = headers_of(body, event="push", secret=SECRET, delivery_id=f"00000000-0000-4000-8000-{number:012x}")
    lines = [
        "POST /github-webhook HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def traffic(sender: Sender, requests: Sequence[bytes]) -> None:
    """One every 5 ms."""
    began = time.perf_counter()
    sending = []
    for number, request in enumerate(requests):
        due = began + number / RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        sending.append(asyncio.create_task(sender.send(request, due)))
    await asyncio.gather(*sending)


async def measure(runs: int, seconds: int) -> None:
    """Some seconds of traffic, several times."""
    halves, tails, costs = [], [], []
    with folder() as home:
        base = free_ports(7)
        port = base + 1
        process = psutil.Popen(
            [sys.executable, "-m", "bench.webhook", "--serve", str(home), str(base)], env=environment()
        )
        try:
            until("the service is ready", lambda: is_ready(port), every_s=0.05)
            make_apps(port)
            sender = Sender(port)
            await sender.open()
            count = RATE * seconds
            await traffic(sender, [push(number, port) for number in range(1, RATE)])
            for run in range(1, runs + 1):
                requests = [push(number, port) for number in range(run * count, (run + 1) * count)]
                sender.taken_ms.clear()
                before = sum(process.cpu_times()[:2])
                await traffic(sender, requests)
                costs.append((sum(process.cpu_times()[:2]) - before) * 1000 / count)
                halves.append(percentile(sender.taken_ms, 0.5))
                tails.append(percentile(sender.taken_ms, 0.99))
            await sender.close()
        finally:
            process.kill()
            process.wait()
    group = f"Webhook: {RATE} pushes/s, stored"
    Figure(group=group, name="p50", values=halves, unit="ms").tell()
    Figure(group=group, name="p99", values=tails, unit="ms", target="<= 10").tell()
    Figure(group=group, name="CPU", values=costs, unit="ms/push").tell()


def is_ready(port: int) -> bool:
    """Whether it serves."""
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def make_apps(port: int, token: str = TOKEN) -> None:
    """The apps that are pushed to."""
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False) as client:
        for number in range(APPS):
            body = {"name": f"shop{number}", "repository": f"bench/shop{number}", "webhook_secret": SECRET}
            client.post("/apps", json=body).raise_for_status()


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--serve", nargs=2, metavar=("HOME", "PORT_BASE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(Path(given.serve[0]), int(given.serve[1]))
    else:
        asyncio.run(measure(given.runs, given.seconds))


if __name__ == "__main__":
    main()
