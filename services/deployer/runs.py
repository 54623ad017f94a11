"""One-off commands: `POST /apps/{app}/runs` starts a process in the environment of the current release.

The answer is a stream of JSON lines: `{"output": base64}` for each piece of output, at the end `{"exit_code": n}`. When
the caller closes the connection, or the service stops, the process ends with everything that it started; then the last
line is missing.
"""

import asyncio
import base64
import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated

import orjson
import structlog
from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, StrictStr

from ocistore.store import ImageStore
from seedwork.access import Caller
from seedwork.chassis.auth import require
from seedwork.chassis.streams import until
from seedwork.errors import Conflict, InvalidInput
from seedwork.unit_of_work import Database
from services.deployer import releases
from services.deployer.apps import App
from services.deployer.assembly import assemble
from services.deployer.ports import AddOns, Release, RunningCommand, Runtime
from services.deployer.requests import Requests
from services.deployer.vault import Vault

Operator = Annotated[Caller, Depends(require("deploy"))]

MAX_RUNS = 20
"""Commands at the same time. Each is a process of its own with the memory of the app."""
MAX_COMMAND_BYTES = 64 * 1024
"""Of all arguments together: half of what Linux takes for one argument."""
MAX_ARGUMENTS = 1000

log = structlog.get_logger(__name__)


class OneOff(BaseModel):
    """Which command is run."""

    command: list[StrictStr]
    """Program and arguments. No shell reads them."""


class Runs:
    """Starts one-off commands, and ends those whose caller is gone.

    Args:
        db: The service's database.
        images: Where images are read from.
        vault: Opens config vars.
        runtime: Runs the command.
        stopping: Ends all commands.
        provider: Of add-ons; None: the runtime has none.
    """

    def __init__(
        self,
        db: Database,
        images: ImageStore,
        vault: Vault,
        runtime: Runtime,
        *,
        stopping: asyncio.Event,
        provider: AddOns | None = None,
    ) -> None:
        self._db = db
        self._images = images
        self._vault = vault
        self._runtime = runtime
        self._stopping = stopping
        self._provider = provider
        self._running = 0
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self, app: App, argv: Sequence[str], caller: Caller) -> AsyncGenerator[bytes, None]:
        """Start the command; its output and its end as JSON lines.

        Raises:
            InvalidInput: It is no command.
            Conflict: The app has no current release, or too many commands run.
            CannotRun: The runtime cannot run one-off commands, or the program is not there.
        """
        _check(argv)
        if self._running >= MAX_RUNS:
            raise Conflict(
                "The command is not started",
                why=f"{MAX_RUNS} one-off commands run already",
                todo="Wait until one of them has ended",
            )
        self._running += 1
        try:
            release = await self._release(app)
            label = f"run.{1000 + secrets.randbelow(9000)}"
            command = await self._runtime.run_once(release, argv, label=label)
        except BaseException:
            self._running -= 1
            raise
        log.info("run.started", app=app.name, release=release.number, label=label, by=caller.name)
        return self._lines(command)

    async def close(self) -> None:
        """Wait until the commands whose caller is gone have ended."""
        while self._closing:
            await asyncio.gather(*self._closing)

    async def _release(self, app: App) -> Release:
        live = await self._db.read(lambda conn: releases.live(conn, app.app_id))
        if live is None:
            raise Conflict(
                f"{app.name} has no release that a command could run in",
                why="nothing was deployed yet",
                todo=f"Deploy it first: `knarr deploy DIR --app {app.name}`",
            )
        return await assemble(live, app, db=self._db, images=self._images, vault=self._vault, provider=self._provider)

    async def _lines(self, command: RunningCommand) -> AsyncGenerator[bytes, None]:
        try:
            async for piece in until(self._stopping, aiter(command)):
                yield orjson.dumps({"output": base64.b64encode(piece).decode()}) + b"\n"
            if command.exit_code is not None:
                yield orjson.dumps({"exit_code": command.exit_code}) + b"\n"
        finally:
            # A task of its own: this one is cancelled where the caller has closed the connection.
            closing = asyncio.create_task(self._close(command))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _close(self, command: RunningCommand) -> None:
        try:
            await command.close()
        finally:
            self._running -= 1


def router(requests: Requests, runs: Runs) -> APIRouter:
    """The route of one-off commands."""
    routes = APIRouter(tags=["apps"])

    @routes.post(
        "/apps/{app}/runs",
        summary="Run one command in the environment of the current release",
        response_class=StreamingResponse,
    )
    async def run(app: str, wanted: OneOff, caller: Operator) -> StreamingResponse:
        found = await requests.app(app, caller)
        lines = await runs.start(found, wanted.command, caller)
        return StreamingResponse(lines, media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})

    return routes


def _check(argv: Sequence[str]) -> None:
    why = ""
    if not argv or not argv[0]:
        why = "it has no program"
    elif len(argv) > MAX_ARGUMENTS or sum(len(each.encode(errors="replace")) for each in argv) > MAX_COMMAND_BYTES:
        why = f"it is longer than {MAX_ARGUMENTS} arguments or {MAX_COMMAND_BYTES // 1024} KiB"
    elif any("\0" in each for each in argv):
        why = "an argument holds a null character"
    if why:
        raise InvalidInput("The command cannot be run", why=why, todo="Write it as in `knarr run APP python -V`")
