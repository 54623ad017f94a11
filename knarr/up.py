"""`knarr up`: all six services in one process, each on its own port, sharing one in-process bus.

In: a home and a port base. Out: a platform that serves until it is told to stop. Guaranteed: one process per home,
every port is ours before anything starts, messages flow only when every subscription exists, a service that dies
takes the platform down with its reason. A kill at any moment loses nothing: the services keep their state in their
databases.
"""

import asyncio
import contextlib
import importlib
import ipaddress
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from rich.markup import escape

from knarr.activity import show_activity
from knarr.complete import refuse_incomplete
from knarr.docker_mode import choose
from knarr.home import Address, Home, HomeLock, port_of
from knarr.logs import log_to_file
from knarr.terminal import Terminal
from seedwork.adapters.in_process import InProcessBus
from seedwork.chassis.server import Server, listen
from seedwork.chassis.settings import SERVICE_PORTS, YAML, ServiceSettings, files_read, misconfigured
from seedwork.errors import KnarrError, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `knarr up` was asked for."""

    home: Home
    host: str
    port_base: int
    test_endpoints: bool | None = None
    """None: by KNARR_TEST_ENDPOINTS, else off."""
    log_file: Path | None = None
    """None: `<home>/knarr.log`."""
    activity: bool = True
    """Whether the terminal shows a line for each deployment; the demo shows its own."""
    runtime: str | None = None
    """`process` or `docker`; None: KNARR_RUNTIME, else what the home remembers."""


def serve(options: Options, terminal: Terminal, *, ready: Callable[[Address], None]) -> None:
    """Serve until SIGINT or SIGTERM; a second one is immediate.

    Args:
        options: Home and ports.
        terminal: Where the short view of what happens goes.
        ready: Called once every service is ready, on the event loop: what takes long belongs into a thread.

    Raises:
        HomeHeld: Another process has the home.
        PortTaken: Another program has a port.
        Misconfigured: The chosen runtime lacks something; the text has the command that helps.
        KnarrError: A service did not start, or died.
    """
    options.home.make()
    say_settings(options.home, terminal)
    lock = HomeLock(options.home)
    lock.acquire(host=options.host, port_base=options.port_base)
    try:
        with (
            bound_sockets(options) as sockets,
            log_to_file(
                options.log_file or options.home.log, terminal, home=options.home.path, of_sagas=options.activity
            ),
        ):
            mode = choose(options.home, options.runtime, port_base=options.port_base)
            for line in filter(None, (mode.says, mode.hint)):
                terminal.say(f"[quiet]{escape(line)}[/]")
            bus = InProcessBus()
            apps = create_apps(options, bus, mode.settings)  # before the loop: Ctrl-C ends a slow import at once
            asyncio.run(_serve(apps, bus, options, terminal, sockets, ready, mode.watch))
    finally:
        options.home.platform_file.unlink(missing_ok=True)
        lock.release()


def say_settings(home: Home, terminal: Terminal) -> None:
    """Name the files that settings come from, and one of the working directory that is not read."""
    files = [*map(str, files_read(home.path)), *(["the environment"] if _names_settings() else [])]
    terminal.say(f"[quiet]Settings: {escape(', '.join(files) or 'the defaults')}.[/]")
    here = Path.cwd() / YAML
    if here.is_file() and here not in files_read(home.path):
        where = shlex.quote(str(home.path / YAML))
        terminal.say(
            f"[quiet]{escape(str(here))} is not read. Settings belong in {escape(where)}, or set KNARR_CONFIG.[/]"
        )


def _names_settings() -> bool:
    return any(name.startswith("KNARR_") and name not in {"KNARR_HOME", "KNARR_CONFIG"} for name in os.environ)


async def _serve(  # noqa: PLR0917  private, and called once
    apps: Mapping[str, Any],
    bus: InProcessBus,
    options: Options,
    terminal: Terminal,
    sockets: Mapping[str, socket.socket],
    ready: Callable[[Address], None],
    watch: Callable[[], Coroutine[Any, Any, None]] | None,
) -> None:
    stop = _stop_on_signals(terminal)
    servers = {name: _Server(app) for name, app in apps.items()}
    tasks = {name: asyncio.create_task(server.run_on(sockets[name]), name=name) for name, server in servers.items()}
    watching = asyncio.create_task(watch()) if watch else None
    try:
        if await _all_started(servers, tasks, stop):
            if options.activity:
                await show_activity(bus, terminal)
            await bus.open()
            ready(_written_down(options))
            await _until_stopped(tasks, stop)
    finally:
        if watching:
            watching.cancel()
        for server in servers.values():
            server.should_exit = True
        await bus.close()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


def create_apps(options: Options, bus: InProcessBus, defaults: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """The six applications by name, with the settings that make them one platform.

    Args:
        options: Home and ports.
        bus: Between them.
        defaults: Settings that hold where the user made none.

    Raises:
        Misconfigured: A setting is wrong, or the home lost a database or a key; the text names it.
    """
    common = {
        "home": options.home.path,
        "host": options.host,
        "port_base": options.port_base,
        "token": SecretStr(options.home.keep_secret(options.home.token_file)),
        "service_token": SecretStr(options.home.keep_secret(options.home.service_token_file)),
    }
    if options.test_endpoints is not None:
        common["test_endpoints"] = options.test_endpoints
    settings = {name: _settings(name, options.home, common, defaults or {}) for name in SERVICE_PORTS}
    refuse_incomplete(options.home, settings)
    return {
        name: importlib.import_module(f"services.{name}.app").create_app(each, bus=bus)
        for name, each in settings.items()
    }


def settings_class(name: str) -> type[ServiceSettings]:
    """The one settings class that the service's `settings.py` defines."""
    module = importlib.import_module(f"services.{name}.settings")
    (found,) = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, ServiceSettings) and each.__module__ == module.__name__
    ]
    return found


def _settings(name: str, home: Home, common: Mapping[str, Any], defaults: Mapping[str, Any]) -> ServiceSettings:
    try:
        settings = settings_class(name)(**common)
    except ValidationError as error:
        raise misconfigured(error) from error
    known = type(settings).model_fields.keys() - settings.model_fields_set
    settings = settings.model_copy(update={key: value for key, value in defaults.items() if key in known})
    allowed = getattr(settings, "source_allow", None)
    if allowed is not None and home.demo.is_dir():  # the repositories that `make run` has made live there
        settings = settings.model_copy(update={"source_allow": (*allowed, f"{home.demo.as_uri()}/")})
    return settings


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(Server):
    """One of several in a process: the process has the signals, and a failed start is an exception."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    async def run_on(self, listening: socket.socket) -> None:
        try:
            await self.serve(sockets=[listening])
        except SystemExit as error:  # uvicorn's way to say that the lifespan failed
            raise self.service.start_error or Unavailable(
                "A service did not start", why="its start-up failed; the log file has the traceback"
            ) from error


@contextlib.contextmanager
def bound_sockets(options: Options) -> Iterator[Mapping[str, socket.socket]]:
    """A listening socket for each service, all or none.

    Raises:
        PortTaken: Says which service wanted it, who has it, and what to do.
        NotAllowed: The port may not be used by this user.
        Misconfigured: The host is no address of this machine.
    """
    with contextlib.ExitStack() as stack:
        sockets = {}
        for name in SERVICE_PORTS:
            sockets[name] = stack.enter_context(listen(name, options.host, port_of(name, options.port_base)))
        yield sockets


def _stop_on_signals(terminal: Terminal) -> asyncio.Event:
    stop = asyncio.Event()

    def asked() -> None:
        if stop.is_set():
            os._exit(130)  # the second time: now; the next start takes up what was left
        terminal.say("\n[quiet]Stopping; press Ctrl-C once more to stop at once.[/]")
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked)
    return stop


async def _all_started(
    servers: Mapping[str, _Server], tasks: Mapping[str, asyncio.Task[None]], stop: asyncio.Event
) -> bool:
    """True when all serve; false when a stop was asked for before.

    Raises:
        KnarrError: One did not start.
    """
    while not stop.is_set():
        _raise_if_one_did_not_start(tasks)
        if all(server.started for server in servers.values()):
            return True
        await asyncio.sleep(0.01)
    return False


async def _until_stopped(tasks: Mapping[str, asyncio.Task[None]], stop: asyncio.Event) -> None:
    asked = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({asked, *tasks.values()}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            _raise_if_one_died(tasks)
    finally:
        asked.cancel()


def _raise_if_one_did_not_start(tasks: Mapping[str, asyncio.Task[None]]) -> None:
    """Raise the service's own error, which names the setting or the file."""
    for task in tasks.values():
        error = task.exception() if task.done() and not task.cancelled() else None
        if isinstance(error, KnarrError):
            raise error
    _raise_if_one_died(tasks)


def _raise_if_one_died(tasks: Mapping[str, asyncio.Task[None]]) -> None:
    for name, task in tasks.items():
        if task.done():
            error = None if task.cancelled() else task.exception()
            why = error.why if isinstance(error, KnarrError) else repr(error) if error else "it ended by itself"
            raise Unavailable(
                f"The service {name} does not run any more, so knarr stops",
                why=why,
                todo="The log file has the details; `knarr up` takes up everything where it was.",
            ) from error


def _written_down(options: Options) -> Address:
    address = Address(host=_reachable(options.host), port_base=options.port_base, pid=os.getpid())
    text = f'{{"pid": {address.pid}, "host": "{address.host}", "port_base": {address.port_base}}}\n'
    options.home.write(options.home.platform_file, text)
    return address


def _reachable(host: str) -> str:
    """Where this machine's own command line finds it."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  what we listen on


def next_steps(home: Home, lines: Sequence[tuple[str, str]]) -> str:
    """Commands and what they do, one a line; where the home is not the one that they would find, first that."""
    if Home.find().path != home.path:
        lines = [(f"export KNARR_HOME={shlex.quote(str(home.path))}", "this platform, and no other"), *lines]
    width = max(len(command) for command, _ in lines)
    return "\n".join(f"  [name]{command:<{width}}[/]   [quiet]{what}[/]" for command, what in lines)


def program() -> str:
    """How the reader calls knarr from where they are: `knarr`, or the path to it."""
    beside = Path(sys.prefix) / "bin" / "knarr"
    if any(Path(folder) == beside.parent for folder in os.environ.get("PATH", "").split(os.pathsep)):
        return "knarr"
    with contextlib.suppress(ValueError):
        return str(beside.relative_to(Path.cwd()))
    return str(beside) if beside.exists() else "knarr"
