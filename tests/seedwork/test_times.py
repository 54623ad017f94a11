"""Times as clients see them."""

from datetime import UTC, datetime

import pytest

from seedwork.messages import rfc3339, rfc3339_ms


@pytest.mark.parametrize("at_ms", [0, 999, 1000, 1_795_230_691_314, 1_795_230_691_005])
def test_milliseconds_become_rfc_3339_in_utc(at_ms: int) -> None:
    """As the same moment does; every millisecond has three digits."""
    seconds, ms = divmod(at_ms, 1000)
    at = datetime.fromtimestamp(seconds, tz=UTC).replace(microsecond=ms * 1000)
    assert rfc3339_ms(at_ms) == rfc3339(at)
    assert rfc3339_ms(at_ms).endswith(f".{ms:03d}Z")
