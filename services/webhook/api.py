"""The intake over HTTP: the webhook, apps, deployments that people ask for, deliveries."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seedwork.chassis.auth import require
from seedwork.chassis.body import DEFAULT_LIMIT_BYTES, read_limited, stream_limited
from seedwork.chassis.paging import Page, PagingQuery, page_of
from seedwork.errors import InvalidInput
from seedwork.messages import rfc3339_ms
from services.webhook import github, rules
from services.webhook.apps import Apps
from services.webhook.apps_api import Deployer, Reader, SagaStarted, add_apps
from services.webhook.bodies import Bodies
from services.webhook.intake import Intake
from services.webhook.judging import Arrival
from services.webhook.redelivery import Deliveries, Delivery
from services.webhook.requests import Asker, Requested, Requests

_ARCHIVES = ("application/gzip", "application/x-gzip", "application/x-tar+gzip")


class DeploymentWanted(BaseModel):
    """What to deploy; nothing: the tip of the app's ref."""

    model_config = ConfigDict(extra="forbid")

    commit: str | None = Field(default=None, description="40 hex digits.")
    ref: str | None = Field(
        default=None, description="A branch or a tag, `main`, `v1.2` or `refs/tags/v1.2`: its tip now."
    )
    force: bool = Field(default=False, description="Also when it is older than what is live.")


class Limits(BaseModel):
    """How much of an app's source is taken."""

    upload_max_bytes: int
    """The largest archive, compressed (`KNARR_UPLOAD_MAX_BYTES`)."""
    source_max_bytes: int
    """All files together, uncompressed (`KNARR_SOURCE_MAX_BYTES`)."""
    source_max_entries: int
    """Files, folders and links (`KNARR_SOURCE_MAX_ENTRIES`)."""


class DeploymentStarted(SagaStarted):
    """A deployment has begun."""

    commit: str | None
    source_digest: str | None


class Received(BaseModel):
    """What became of a webhook."""

    message: Literal["ok"] = "ok"
    status: Literal["accepted", "ignored", "duplicate", "held"]
    deployments: list[str]
    reason: str | None = None


class DeliveryShown(BaseModel):
    """What arrived and what became of it."""

    id: str
    provider_id: str | None
    event: str
    repository: str | None
    ref: str | None
    received_at: str
    status: Literal["accepted", "ignored", "duplicate", "held"]
    reason: str | None
    deployments: list[str]


class Redelivered(SagaStarted):
    """New deployments have begun; `id` is the first one's."""

    deployments: list[str]


def router(
    *,
    intake: Intake,
    apps: Apps,
    requests: Requests,
    deliveries: Deliveries,
    coordinator_url: str,
    limits: Limits,
) -> APIRouter:
    """All routes of the intake.

    Args:
        intake: Takes webhooks.
        apps: Keeps apps.
        requests: Takes requests of people.
        deliveries: Shows and repeats deliveries.
        coordinator_url: Where sagas are looked at.
        limits: How much of an app's source is taken.
    """
    routes = APIRouter()

    def location(saga_id: str) -> str:
        return f"{coordinator_url}/sagas/{saga_id}"

    _add_webhook(routes, intake)
    add_apps(routes, apps, location)
    _add_deployments(routes, requests, location, limits.upload_max_bytes)

    @routes.get("/limits", tags=["deployments"], dependencies=[Depends(require("read"))])
    async def get_limits() -> Limits:
        """How much of an app's source is taken: a client ends before it packs more."""
        return limits

    _add_deliveries(routes, deliveries, location)
    return routes


def _add_webhook(routes: APIRouter, intake: Intake) -> None:
    bodies = Bodies(limit_bytes=github.MAX_BODY_BYTES)

    @routes.post("/github-webhook", status_code=202, tags=["webhook"], openapi_extra=_body("application/json"))
    async def github_webhook(request: Request) -> Received:
        """A webhook of GitHub, signed with an app's secret (`X-Hub-Signature-256`)."""
        headers = {name: request.headers[name][:500] for name in github.KEPT_HEADERS if name in request.headers}
        async with bodies.read(request) as body:
            answer = await intake.receive(Arrival(headers, body), request.is_disconnected)
        return Received(status=answer.status, deployments=list(answer.deployments), reason=answer.reason)


def _add_deployments(
    routes: APIRouter, requests: Requests, location: Callable[[str], str], upload_max_bytes: int
) -> None:
    @routes.post(
        "/apps/{app}/deployments",
        status_code=202,
        tags=["deployments"],
        openapi_extra=_body("application/gzip", model=DeploymentWanted),
    )
    async def deploy(
        app: str,
        request: Request,
        caller: Deployer,
        response: Response,
        idempotency_key: Annotated[str | None, Header(description="A repeat answers the first one.")] = None,
    ) -> DeploymentStarted:
        """Deploy a commit, the tip of a ref, or an uploaded `.tar.gz`."""
        key = None if idempotency_key is None else rules.idempotency_key(idempotency_key)
        asker = Asker(app=app, caller=caller, idempotency_key=key)
        requested = await _request(request, asker, requests, upload_max_bytes)
        response.headers["Location"] = location(requested.saga_id)
        return DeploymentStarted(
            id=requested.saga_id,
            saga_id=requested.saga_id,
            commit=requested.commit,
            source_digest=requested.source_digest,
        )


def _add_deliveries(routes: APIRouter, deliveries: Deliveries, location: Callable[[str], str]) -> None:
    @routes.get("/deliveries", tags=["deliveries"])
    async def list_deliveries(caller: Reader, paging: PagingQuery) -> Page[DeliveryShown]:
        """What arrived, the newest first."""
        found = await deliveries.page(paging, caller.access)
        return page_of(found, paging, key=lambda each: {"id": each.row.delivery_id}, show=_delivery)

    @routes.get("/deliveries/{delivery_id}", tags=["deliveries"])
    async def get_delivery(delivery_id: str, caller: Reader) -> DeliveryShown:
        """One delivery."""
        return _delivery(await deliveries.get(delivery_id, caller.access))

    @routes.post("/deliveries/{delivery_id}/redeliver", status_code=202, tags=["deliveries"])
    async def redeliver(delivery_id: str, caller: Deployer, response: Response) -> Redelivered:
        """Deploy what it asked for once more: new deployments, linked to the earlier ones."""
        started = await deliveries.redeliver(delivery_id, caller)
        response.headers["Location"] = location(started[0])
        return Redelivered(id=started[0], saga_id=started[0], deployments=list(started))


async def _request(request: Request, asker: Asker, requests: Requests, upload_max_bytes: int) -> Requested:
    """One route, two kinds of body."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type in _ARCHIVES:
        return await requests.upload(asker, stream_limited(request, upload_max_bytes))
    body = await read_limited(request, DEFAULT_LIMIT_BYTES)
    if body and content_type != "application/json":
        raise InvalidInput(
            f"The content type {content_type[:60]!r} is not known here",
            todo="Send application/json, or a .tar.gz as application/gzip.",
        )
    try:
        wanted = DeploymentWanted.model_validate_json(body or b"{}")
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'body'}: {each['msg']}" for each in error.errors())
        raise InvalidInput(
            "The body cannot be read", why=wrong, todo="Send an object with `commit` or with `ref`, or an empty one."
        ) from error
    return await requests.deploy(asker, commit=wanted.commit, ref=wanted.ref, force=wanted.force)


def _delivery(delivery: Delivery) -> DeliveryShown:
    row = delivery.row
    return DeliveryShown(
        id=row.delivery_id,
        provider_id=row.provider_id,
        event=row.event,
        repository=row.repository,
        ref=row.ref,
        received_at=rfc3339_ms(row.received_ms),
        status=row.status,
        reason=row.reason,
        deployments=list(delivery.deployments),
    )


def _body(content_type: str, model: type[BaseModel] | None = None) -> dict[str, Any]:
    """The OpenAPI description of a body that the route reads by itself."""
    content: dict[str, Any] = {content_type: {"schema": {"type": "string", "format": "binary"}}}
    if content_type == "application/json":
        content = {content_type: {"schema": {"type": "object"}}}
    if model is not None:
        content["application/json"] = {"schema": model.model_json_schema()}
    return {"requestBody": {"content": content, "required": model is None}}
