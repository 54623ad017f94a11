"""What the platform provides, from the `deployer` service over HTTP."""

from collections.abc import Callable

import httpx2
import structlog
from pydantic import BaseModel, ValidationError

from seedwork.chassis.http import raise_for_problem
from seedwork.errors import KnarrError
from services.source.plan.addons import Provided

_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


class _Answer(BaseModel):
    runtime: str
    addons: frozenset[str]


class HttpAddOnKinds:
    """`AddOnKinds` behind `GET /capabilities` of the deployer.

    The deployer refuses such an app as well, after the build. So a deployer that does not answer holds no deployment up
    here.

    Args:
        client: Makes a client whose base URL is the deployer, with the service token.
    """

    def __init__(self, client: Callable[[], httpx2.AsyncClient]) -> None:
        self._client = client

    async def provided(self) -> Provided | None:
        """See `AddOnKinds.provided`."""
        try:
            async with self._client() as client:
                response = await client.get("/capabilities", timeout=_TIMEOUT_S)
            raise_for_problem(response)
            answer = _Answer.model_validate_json(response.content)
        except (KnarrError, httpx2.HTTPError, ValidationError) as error:
            log.warning("addons.unknown", error=type(error).__name__)
            return None
        return Provided(answer.runtime, answer.addons)
