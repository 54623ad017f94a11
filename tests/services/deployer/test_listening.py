"""Where a container listens instead of PORT: which port is adopted, and what is said otherwise."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.answering import Answering
from services.deployer.adapters.docker.engine import Container
from services.deployer.adapters.docker.listening import Elsewhere, Sockets, sockets
from services.deployer.checks import Patience

TABLES = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0BB8 00000000:0000 0A 00000000:00000001 00:00000000 00000000     0        0 4215172 2 0 100 0 0 10 0
   1: 0B00007F:8F3F 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4215174 1 0 100 0 0 10 0
   2: 0100007F:240D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4215173 1 0 100 0 0 10 0
   3: 0100007F:82E0 0100007F:0BB8 01 00000000:00000000 00:00000000 00000000     0        0 4215190 2 0 20 0 0 10 -1
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when
   0: 00000000000000000000000000000000:0FA0 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000
   1: 00000000000000000000000001000000:8A13 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000
"""


def test_listening_sockets_are_read_from_the_kernels_tables() -> None:
    """Connections are no listeners, the engine's own name server is not the app's, and loopback is not reachable."""
    assert sockets(TABLES) == Sockets(open=(3000, 4000), local=(9229, 35347))
    assert sockets("no table") == Sockets()


@pytest.mark.parametrize(
    ("elsewhere", "words"),
    [
        (Elsewhere(Sockets((3000, 9090)), (3000, 9090)), "web.1 listens on the ports 3000 and 9090 instead of PORT"),
        (Elsewhere(Sockets((5432,))), "web.1 listens on port 5432 instead of PORT (8000), and does not answer there"),
        (Elsewhere(Sockets((), (3000,))), "web.1 listens on port 3000, but only on the loopback address"),
        (Elsewhere(Sockets((), (8000,))), "web.1 listens on PORT (8000), but only on the loopback address"),
    ],
)
def test_an_instance_that_listens_elsewhere_is_told_apart(elsewhere: Elsewhere, words: str) -> None:
    """The message says where it listens, and what makes it reachable."""
    fault = elsewhere.fault("web.1", 8000)

    assert fault is not None
    assert fault[0].startswith(words)
    assert ("`port: 3000`" in fault[1]) is (len(elsewhere.answering) > 1)


# --- adopting ---------------------------------------------------------------------------------------------------------


@dataclass
class Proc:
    """The kernel's tables of one container, in place of an engine that reads them there."""

    ports: Sequence[int]

    async def output(self, container_id: str, argv: Sequence[str]) -> str:
        assert (container_id, argv[0]) == ("c1", "cat")
        return "".join(f"   0: 00000000:{port:04X} 00000000:0000 0A 0:0\n" for port in self.ports)


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.ms = 0

    def now_ms(self) -> int:
        return self.ms

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one HTTP request."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


@pytest.fixture
async def ports() -> AsyncIterator[list[int]]:
    """Ports of two servers that answer HTTP."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(await asyncio.start_server(answer, "127.0.0.1", 0)) for _ in "12"]
        yield [each.sockets[0].getsockname()[1] for each in servers]


def container(*, port: int, fixed: bool = False) -> Container:
    """A container that was started at 0 ms."""
    return Container(
        id="c1",
        name="web-1",
        labels={
            spec.APP_ID: "a",
            spec.PROCESS: "web.1",
            spec.SAGA: "s",
            spec.PORT: str(port),
            spec.FIXED_PORT: "1" * fixed,
        },
        status="running",
        exit_code=0,
        error="",
        out_of_memory=False,
        started_ms=1,
        finished_ms=0,
        restarts=0,
        image="i",
        image_id="i",
        addresses={"n": "127.0.0.1"},
        networks=frozenset({"n"}),
        restart_policy="no",
    )


async def asked(answering: Answering, clock: Hand, found: Container) -> str | None:
    """Ask once a second, for six seconds or until it passes."""
    fault: str | None = ""
    for _ in range(6):
        clock.ms += 1000
        if (fault := await answering.ask(found)) is None:
            return None
    return fault


def answering_of(engine: Proc, clock: Hand, changed: Callable[[str], None] = lambda _: None) -> Answering:
    return Answering(engine, clock, Patience(), changed=changed, failed=lambda _c, _f: None)  # type: ignore[arg-type]


async def test_the_only_port_that_answers_is_adopted(ports: list[int], unused_port: int) -> None:
    """The app ignores PORT: its requests go to where it listens, and that is said."""
    clock = Hand()
    answering, found = answering_of(Proc(ports[:1]), clock), container(port=unused_port)

    assert await asked(answering, clock, found) is None
    assert answering.adopted(found) == ports[0]
    backend = answering.backend(found)
    assert backend is not None
    assert backend.port == ports[0]
    await answering.close()


async def test_of_two_ports_that_answer_none_is_adopted(ports: list[int], unused_port: int) -> None:
    """Only the app knows which one has its pages."""
    clock = Hand()
    answering, found = answering_of(Proc(ports), clock), container(port=unused_port)

    assert await asked(answering, clock, found) == "it refuses connections"
    seen = answering.elsewhere(found)
    assert seen is not None
    assert set(seen.answering) == set(ports)
    await answering.close()


async def test_a_port_that_the_app_names_is_kept(ports: list[int], unused_port: int) -> None:
    """`port:` of .cupaas.yml is what the app wants, also where it does not listen there."""
    clock = Hand()
    answering, found = answering_of(Proc(ports[:1]), clock), container(port=unused_port, fixed=True)

    assert await asked(answering, clock, found) == "it refuses connections"
    assert answering.adopted(found) is None
    await answering.close()


async def test_an_app_that_opens_another_port_first_keeps_port(ports: list[int], unused_port: int) -> None:
    """A port for metrics is there a moment before that for pages."""
    clock, engine = Hand(), Proc(ports[:1])
    answering, found = answering_of(engine, clock), container(port=unused_port)
    clock.ms += 2000
    assert await answering.ask(found) == "it refuses connections"

    engine.ports = [*ports[:1], unused_port]
    assert await asked(answering, clock, found) == "it refuses connections"
    assert answering.adopted(found) is None
    await answering.close()


async def test_requests_go_to_port_once_it_answers(ports: list[int]) -> None:
    """The adopted port was opened long before it, for something else."""
    clock, moved = Hand(), asyncio.Event()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        answering = answering_of(Proc(ports[:1]), clock, lambda _: moved.set())
        found = container(port=port)
        answering.port_again_s = 0.01
        assert await asked(answering, clock, found) is None
        assert answering.adopted(found) == ports[0]

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        await moved.wait()
        assert answering.adopted(found) is None
        backend = answering.backend(found)
        assert backend is not None
        assert backend.port == port
        await answering.close()
