"""Build-time variables of apps, from the `deployer` service over HTTP."""

from collections.abc import Callable, Mapping

import httpx2
from pydantic import TypeAdapter, ValidationError

from seedwork.chassis.http import raise_for_problem
from seedwork.errors import Unavailable

_VARIABLES = TypeAdapter(dict[str, str])


class HttpBuildVariables:
    """`BuildVariables` behind `GET /apps/{app}/config` of the deployer.

    Args:
        client: Makes a client whose base URL is the deployer, with the service token.
    """

    def __init__(self, client: Callable[[], httpx2.AsyncClient]) -> None:
        self._client = client

    async def of(self, app_id: str) -> Mapping[str, str]:
        """See `BuildVariables.of`."""
        async with self._client() as client:
            response = await client.get(f"/apps/{app_id}/config", params={"reveal": 1, "scope": "build"})
        if response.status_code == httpx2.codes.NOT_FOUND:
            return {}  # the deployer hears of a new app by a message, which may come after its first push
        raise_for_problem(response)
        try:
            return _VARIABLES.validate_json(response.content)
        except ValidationError:
            raise Unavailable("The deployer's answer holds no config vars", why="it is not what knarr sends") from None
