"""How a service is: for a supervisor that restarts it, a balancer that sends it work, and a person who looks.

`/livez` answers as long as the event loop turns. `/readyz` says whether work should be sent here: started, the database
answers, every background task runs; otherwise 503 with the reasons. `/healthcheck` is the same in detail.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.chassis.supervisor import Supervisor
from seedwork.clock import Clock
from seedwork.errors import KnarrError
from seedwork.unit_of_work import Database

_DATABASE_ANSWERS_S = 2.0
"""A database that takes longer for `SELECT 1` is of no use to a request."""
_NEED_ANSWERS_S = 3.0
"""Time for one probe of another server, in seconds: shorter than the patience of those who read `/healthcheck`."""
_PROBED_AGAIN_MS = 5_000
"""`/healthcheck` is open to everybody: however often it is read, another server is asked no more often than this."""

Probe = Callable[[], Awaitable[str | None]]
"""Looks at something that a service needs, and may say how it is; raises `KnarrError` where that cannot be used."""


class Live(BaseModel):
    """The event loop turns."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Whether work should be sent here; `reasons` says why not."""

    status: Literal["ready", "not ready"]
    reasons: list[str]


class Check(BaseModel):
    """One thing that a service needs."""

    ok: bool
    detail: str = ""


class Healthcheck(BaseModel):
    """Everything at a glance, for people."""

    status: Literal["ok", "degraded"]
    service: str
    version: str
    uptime_s: int
    checks: dict[str, Check]


class Health:
    """Looks at what a service needs."""

    def __init__(
        self,
        *,
        service: str,
        version: str,
        db: Database,
        supervisor: Supervisor,
        clock: Clock,
        started: Callable[[], bool],
        jobs: Callable[[], str],
        needs: Mapping[str, Probe],
    ) -> None:
        self._service = service
        self._version = version
        self._db = db
        self._supervisor = supervisor
        self._clock = clock
        self._started = started
        self._jobs = jobs
        self._needs = needs
        self._probed: dict[str, tuple[int, Check]] = {}
        self._probing = asyncio.Lock()
        self._since_ms = clock.now_ms()

    async def checks(self) -> Mapping[str, Check]:
        """Each need by its name."""
        started = self._started()
        found = {"started": Check(ok=started, detail="" if started else "starting or stopping")}
        if started:
            found["database"] = await self._database()
        down = self._supervisor.down()
        for task, crashes in self._supervisor.crashes().items():
            reason = down.get(task, "")
            detail = f"crashed {crashes} times since the start; {reason}".rstrip("; ") if crashes else ""
            found[f"task {task}"] = Check(ok=not reason, detail=detail)
        return found

    async def ready(self) -> Ready:
        """Whether every need is met."""
        reasons = [f"{name}: {check.detail}" for name, check in (await self.checks()).items() if not check.ok]
        return Ready(status="not ready" if reasons else "ready", reasons=reasons)

    async def healthcheck(self) -> Healthcheck:
        """The details, and whether jobs fail: other replicas would fail at them too, so that readiness stays.

        The same holds of other servers that the service needs.
        """
        checks = dict(await self.checks())
        async with self._probing:
            for name, probe in self._needs.items():
                checks[name] = await self._probe(name, probe)
        trouble = self._jobs()
        checks["jobs"] = Check(ok=not trouble, detail=trouble)
        return Healthcheck(
            status="ok" if all(check.ok for check in checks.values()) else "degraded",
            service=self._service,
            version=self._version,
            uptime_s=(self._clock.now_ms() - self._since_ms) // 1000,
            checks=checks,
        )

    async def _probe(self, name: str, probe: Probe) -> Check:
        now_ms = self._clock.now_ms()
        probed_ms, known = self._probed.get(name, (0, None))
        if known is not None and 0 <= now_ms - probed_ms < _PROBED_AGAIN_MS:
            return known
        try:
            async with asyncio.timeout(_NEED_ANSWERS_S):
                found = Check(ok=True, detail=await probe() or "")
        except TimeoutError:
            found = Check(ok=False, detail=f"no answer within {_NEED_ANSWERS_S:g} s")
        except KnarrError as error:
            found = Check(ok=False, detail=error.message)
        self._probed[name] = (self._clock.now_ms(), found)
        return found

    async def _database(self) -> Check:
        async def ask(conn: AsyncConnection) -> None:
            await conn.execute(text("SELECT 1"))

        try:
            async with asyncio.timeout(_DATABASE_ANSWERS_S):
                await self._db.read(ask)
        except TimeoutError:
            return Check(ok=False, detail=f"no answer within {_DATABASE_ANSWERS_S:g} s")
        except KnarrError as error:
            return Check(ok=False, detail=error.message)
        return Check(ok=True)


def router(health: Health) -> APIRouter:
    """`GET /livez`, `/readyz`, `/healthcheck`: open, without a token."""
    routes = APIRouter(tags=["operation"])

    @routes.get("/livez", summary="Does the event loop turn?")
    async def livez() -> Live:
        return Live()

    @routes.get("/readyz", summary="Should work be sent here?", responses={503: {"model": Ready}})
    async def readyz(response: Response) -> Ready:
        ready = await health.ready()
        response.status_code = 503 if ready.reasons else 200
        return ready

    @routes.get("/healthcheck", summary="How is it, in detail?")
    async def healthcheck() -> Healthcheck:
        return await health.healthcheck()

    return routes
