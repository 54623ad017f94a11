"""What a Docker engine's refusals mean: the platform's faults are worth another attempt."""

import orjson
import pytest

from seedwork.errors import Conflict, FinalError, KnarrError, NotFound, StorageFull, Unavailable
from services.deployer.adapters.docker.engine import _fault


@pytest.mark.parametrize(
    ("status", "said", "error"),
    [
        (500, "write /var/lib/docker/x: no space left on device", StorageFull),
        (400, "mkdir /var/lib/docker/x: no space left on device", StorageFull),
        (500, "context deadline exceeded", Unavailable),
        (404, "No such container: x", NotFound),
        (409, "is already in use", Conflict),
        (400, "invalid reference format", FinalError),
    ],
)
def test_a_refusal_is_an_error_of_knarr_s_tree(status: int, said: str, error: type[KnarrError]) -> None:
    """A full disk is the platform's, whatever status comes with it."""
    assert type(_fault(status, orjson.dumps({"message": said}))) is error
