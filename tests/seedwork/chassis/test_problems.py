from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import structlog
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import StreamingResponse

from seedwork.chassis import problems
from seedwork.chassis.service import Service
from seedwork.errors import Conflict, FinalError, KnarrError, NotFound, StorageFull, TimedOut, Unavailable
from seedwork.testing.http import running
from tests.seedwork.chassis.conftest import TOKEN


class Thing(BaseModel):
    name: str
    sizes: list[int] = []


class SagaEnded(Conflict):
    """A conflict that tells more."""

    def __init__(self, state: str) -> None:
        super().__init__("The saga has ended", todo="Start another one.")
        self.extensions = {"state": state}


def _routes(app: FastAPI, error: Exception | None = None) -> None:
    @app.post("/things")
    async def make(thing: Thing) -> Thing:
        return thing

    @app.get("/fail")
    async def fail() -> None:
        if error:
            raise error


async def _get(service: Service, path: str) -> httpx2.Response:
    async with running(service.app, token=TOKEN) as client:
        return await client.get(path)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotFound("No app 'shop'", todo="See `knarr apps`."), 404, "not_found"),
        (Unavailable("The store is away"), 503, "unavailable"),
        (StorageFull("The disk is full"), 507, "storage_full"),
        (TimedOut("Too slow"), 504, "timed_out"),
        (FinalError("It cannot be built", code="build_failed", log_tail=("a", "b")), 422, "build_failed"),
    ],
)
async def test_our_own_errors_tell_what_they_know(service: Service, error: KnarrError, status: int, code: str) -> None:
    """The type gives status and code, the error its sentences."""
    _routes(service.app, error)
    response = await _get(service, "/fail")
    body = response.json()
    assert response.headers["Content-Type"] == problems.MEDIA_TYPE
    assert (response.status_code, body["status"], body["code"]) == (status, status, code)
    assert body["detail"] == error.message
    assert body["type"] == f"urn:knarr:problem:{code}"
    assert body.get("log_tail", []) == list(error.log_tail)
    assert ("Retry-After" in response.headers) == (status in {503, 507})


async def test_an_error_can_carry_more_members(service: Service) -> None:
    """RFC 9457, section 3.2: a 409 tells the state."""
    _routes(service.app, SagaEnded("SUCCEEDED"))
    assert (await _get(service, "/fail")).json()["state"] == "SUCCEEDED"


async def test_wrong_input_names_each_field_and_what_is_allowed(service: Service) -> None:
    """All of them at once, so that nobody mends one to meet the next."""
    _routes(service.app)
    async with running(service.app) as client:
        response = await client.post("/things", json={"sizes": [1, "x"]})
        assert response.status_code == 400
        assert [each["field"] for each in response.json()["errors"]] == ["body.name", "body.sizes[1]"]
        assert "body.name: Field required" in response.json()["detail"]
        broken = await client.post("/things", content=b"{", headers={"Content-Type": "application/json"})
        assert (broken.status_code, broken.json()["code"]) == (400, "invalid")


async def test_wrong_input_is_not_repeated_back(service: Service) -> None:
    """What was sent may be a secret."""
    _routes(service.app)
    async with running(service.app) as client:
        response = await client.post("/things", json={"name": {"password": "hunter2"}})
        assert response.status_code == 400
        assert "hunter2" not in response.text


async def test_paths_and_methods_that_do_not_exist_are_problems_too(service: Service) -> None:
    """And say what there is."""
    _routes(service.app)
    async with running(service.app) as client:
        missing = await client.get("/nothing")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        assert "/nothing" in missing.json()["detail"]
        wrong = await client.delete("/things")
        assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
        assert "POST" in wrong.json()["detail"]


async def test_a_fault_tells_the_client_nothing_and_the_log_everything(service: Service) -> None:
    """No stack trace, no text of the exception in the answer; both in the log."""
    _routes(service.app, ZeroDivisionError("the secret ingredient"))
    with structlog.testing.capture_logs() as lines:
        response = await _get(service, "/fail")
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "ingredient" not in response.text
    logged = [line for line in lines if line["event"] == "unexpected error in a request"]
    assert len(logged) == 1
    assert logged[0]["exc_info"]
    assert logged[0]["path"] == "/fail"


async def test_an_answer_that_breaks_in_the_middle_is_cut(service: Service) -> None:
    """Nobody may take a part for the whole."""

    @service.app.get("/half")
    async def half() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"half"
            raise ZeroDivisionError

        return StreamingResponse(chunks())

    async with running(service.app) as client:
        with pytest.raises(ZeroDivisionError):
            await client.get("/half")


async def test_the_interface_documents_its_problems(service: Service) -> None:
    """The schema names the problem for every route, not a shape that we never send."""
    _routes(service.app)
    document: dict[str, Any] = (await _get(service, "/openapi.json")).json()
    responses = document["paths"]["/things"]["post"]["responses"]
    assert set(responses) == {"200", "default"}
    assert responses["default"]["content"][problems.MEDIA_TYPE]["schema"]["$ref"].endswith("/Problem")
