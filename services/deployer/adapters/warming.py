"""A release that stays warm while the one after it is observed is started again after a restart of ours."""

from collections.abc import Awaitable, Callable

import structlog

from seedwork.clock import Clock
from seedwork.errors import KnarrError
from services.deployer.errors import NotWarm
from services.deployer.ports import Release, Warm

log = structlog.get_logger(__name__)

_FIRST_AGAIN_S = 1.0
_LONGEST_AGAIN_S = 60.0


async def bring_up(
    warm: Warm,
    *,
    start: Callable[[Release], Awaitable[None]],
    stop: Callable[[], Awaitable[object]],
    clock: Clock,
) -> None:
    """Start it, however long that takes; stop it where the observation has ended meanwhile.

    Args:
        warm: The release.
        start: Starts its instances; those that run already stay.
        stop: Removes everything of it.
        clock: For waiting between attempts.
    """
    wait_s = _FIRST_AGAIN_S
    while True:
        try:
            await start(await warm.load())
            await warm.load()  # whoever ends the observation stops what it finds: nothing may begin after that
        except NotWarm:
            await stop()
        except (KnarrError, OSError) as error:
            log.warning("warm.start_failed", saga_id=warm.saga_id, why=str(error))
            await clock.sleep(wait_s)
            wait_s = min(_LONGEST_AGAIN_S, wait_s * 2)
            continue
        return
