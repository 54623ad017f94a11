"""What the coordinator needs to know: how long to wait for a person, and how much to do at a time."""

from pydantic import Field

from seedwork.chassis.settings import ServiceSettings


class CoordinatorSettings(ServiceSettings):
    """All are for operators; everything else stands in the definitions."""

    saga_hold_s: int = Field(default=3600, ge=0)
    """Seconds for which a saga waits for a person after the last attempt of a step, before its undo begins; 0: not at
    all. An hour, so that somebody can look and press `retry` before anything is taken away. It ends early when another
    saga of the same app waits. Sagas keep the value with which they began."""

    saga_batch: int = Field(default=256, ge=1, le=256)
    """Inputs (messages, timers) that are decided in one transaction; 256 is a whole batch of the bus. Fewer cost more
    commits and round trips to the database (32: about half as much again per step); more than one coordinator on one
    database may be better off with 32, since a conflict makes a batch be decided again."""

    saga_keep_days: float = Field(default=365.0, ge=0)
    """Days for which an ended saga is kept with its log; 0: for ever. Those whose release an app can still go back to
    are kept for longer. A year answers "who deployed this, and what was before"; a saga takes some 25 KB, so a hundred
    deployments a day come to 1 GB."""
