"""`GET /capabilities`: what the runtime provides, so that an app that needs more is refused before its build."""

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from seedwork.chassis.auth import require
from services.deployer.ports import Runtime


class Capabilities(BaseModel):
    """What apps can ask for here."""

    runtime: str
    """`process`, `docker`, `kubernetes`."""
    addons: list[str]
    """Kinds of add-ons that are provided."""


def router(runtime: Runtime) -> APIRouter:
    """The route of capabilities."""
    routes = APIRouter(tags=["apps"], dependencies=[Depends(require("read"))])

    @routes.get("/capabilities", summary="What the runtime provides to apps")
    async def capabilities() -> Capabilities:
        return Capabilities(runtime=runtime.name, addons=sorted(runtime.addons))

    return routes
