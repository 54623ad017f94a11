"""An engine for tests: canned answers by method and path, and a record of what was asked."""

import json
from collections.abc import Callable
from typing import Any

import httpx2

from dockerengine.client import EngineApi
from dockerengine.endpoint import Endpoint

Answer = httpx2.Response | Callable[[httpx2.Request], httpx2.Response]


class CannedEngine(httpx2.AsyncBaseTransport):
    """Answers `"GET system/df"` and so on; anything else is 404, as for a thing that is not there."""

    def __init__(self, answers: dict[str, Answer] | None = None) -> None:
        self.answers: dict[str, Answer] = dict(answers or {})
        self.asked: list[str] = []
        """Method and path of each request, in order."""
        self.requests: list[httpx2.Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """See `AsyncBaseTransport`."""
        await request.aread()
        name = f"{request.method} {request.url.path.lstrip('/')}"
        self.asked.append(name)
        self.requests.append(request)
        answer = self.answers.get(name)
        if answer is None:
            return httpx2.Response(404, json={"message": f"no {name}"})
        return answer(request) if callable(answer) else httpx2.Response(answer.status_code, content=answer.content)

    def api(self) -> EngineApi:
        """Return a client of this engine."""
        return EngineApi(Endpoint(url="unix:///var/run/docker.sock", source="a test"), transport=self)

    def body(self, name: str) -> Any:
        """Return the JSON of the last such request."""
        index = len(self.asked) - 1 - self.asked[::-1].index(name)
        return json.loads(self.requests[index].content)


def said(value: Any, status: int = 200) -> httpx2.Response:
    """Return an answer with that JSON."""
    return httpx2.Response(status, json=value)
