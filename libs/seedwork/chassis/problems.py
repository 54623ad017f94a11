"""Errors as RFC 9457 problem details: `{type, title, status, detail, code, …}`, whatever went wrong.

A `KnarrError` says its own three sentences. Wrong input says which field and what is allowed. An exception that nobody
foresaw becomes a 500 that tells the client nothing about the inside (`asgi.Boundary` logs it with its traceback).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from seedwork.errors import KnarrError, RetryableError, StorageFull, TooLarge, Unauthenticated

MEDIA_TYPE = "application/problem+json"

_TITLES = {404: ("not_found", "Not found"), 405: ("method_not_allowed", "Method not allowed")}


class Problem(BaseModel):
    """An error, RFC 9457. `code` is for programs, `detail` for people."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str


class FieldError(BaseModel):
    """One wrong field: where it is and what is allowed."""

    field: str
    message: str


RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "model": Problem,
        "description": "What happened, why, and what to do next (RFC 9457).",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}
"""For a FastAPI app or route: every answer that is no success."""


def problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    extensions: Mapping[str, Any] | None = None,
) -> Response:
    """The answer for one error."""
    body = {
        **(extensions or {}),
        "type": f"urn:knarr:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
    }
    try:
        content = orjson.dumps(body)
    except TypeError:  # a lone surrogate, or a number beyond 64 bits, that a client sent
        content = json.dumps(body, default=str).encode()
    return Response(content, status_code=status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def of(error: KnarrError) -> Response:
    """The answer for one of our own errors."""
    headers = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, TooLarge):
        headers["Connection"] = "close"  # the rest of the body is not read
    if isinstance(error, RetryableError):
        headers["Retry-After"] = "1"
    sentences = {"what": error.what, "why": error.why, "todo": error.todo}  # for whoever shows them one by one
    extensions = {**{name: text for name, text in sentences.items() if text}, **error.extensions}
    if error.log_tail:
        extensions["log_tail"] = list(error.log_tail)
    return problem(
        error.http_status, error.reason_code, error.title, error.message, headers=headers, extensions=extensions
    )


def no_room() -> Response:
    """The answer when a disk is full."""
    return of(StorageFull("The disk has no room left", todo="Make room under the platform's home folder."))


def unexpected() -> Response:
    """The answer when nobody knows: nothing about the inside."""
    return problem(
        500,
        "internal",
        "Internal error",
        "Something went wrong inside knarr. The service's log says what; look for this time and path there.",
    )


def install(app: FastAPI) -> None:
    """Answer every error of this app as a problem."""
    app.add_exception_handler(KnarrError, _known)
    app.add_exception_handler(RequestValidationError, _wrong_input)
    app.add_exception_handler(HTTPException, _http)


async def _known(_request: Request, error: Exception) -> Response:
    assert isinstance(error, KnarrError)  # noqa: S101  registered for this type
    return of(error)


async def _wrong_input(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  registered for this type
    errors = [FieldError(field=_field(each["loc"]), message=str(each["msg"])) for each in error.errors()]
    detail = "; ".join(f"{each.field}: {each.message}" for each in errors)
    return problem(
        400,
        "invalid",
        "Invalid input",
        f"{detail}. See /docs for what is allowed.",
        extensions={"errors": [each.model_dump() for each in errors]},
    )


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  registered for this type
    if isinstance(error.__cause__, KnarrError):  # FastAPI wraps what reading the body raised
        return of(error.__cause__)
    code, title = _TITLES.get(error.status_code, ("http", "Not possible"))
    detail = str(error.detail)
    if error.status_code == 404:
        detail = f"There is nothing at {request.url.path}. See /docs for what there is."
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{request.method} is not possible at {request.url.path}; possible: {allowed or 'see /docs'}."
    return problem(error.status_code, code, title, detail, headers=error.headers)


def _field(location: Sequence[int | str]) -> str:
    """`("body", "steps", 0, "name")` as `body.steps[0].name`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".") or "body"
