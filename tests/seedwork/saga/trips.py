"""A saga that knarr does not have, as the tests of the rules use it: pack, sail, land; and a group that replaces."""

from collections.abc import Mapping
from typing import Any, ClassVar

from seedwork.lanes import Place
from seedwork.messages import Command, Event, FailureEvent, UndoneEvent
from seedwork.saga import Link, Retry, Saga, Step, VerbRefused, View


class TripRequested(Event):
    """Somebody wants to sail."""

    number: int = 1
    commit: str | None = None
    urgent: bool = False
    EXAMPLE: ClassVar[Mapping[str, Any]] = {"number": 1}


class Pack(Command):
    known: Mapping[str, str] = {}


class Packed(Event):
    crates: int = 0


class PackFailed(FailureEvent):
    superseded_by: str | None = None


class Unpack(Command):
    pass


class Unpacked(UndoneEvent):
    pass


class Sail(Command):
    crates: int


class Sailed(Event):
    pass


class SailFailed(FailureEvent):
    pass


class SailBack(Command):
    pass


class SailedBack(UndoneEvent):
    pass


class Land(Command):
    pass


class Landed(Event):
    pass


class LandFailed(FailureEvent):
    pass


class CastOff(Command):
    pass


class HasCastOff(UndoneEvent):
    pass


class TripEnded(Event):
    pass


class TripGivenUp(Event):
    reason: str


def _place(data: Mapping[str, Any]) -> Place:
    return Place(first=True) if data["urgent"] else Place(group="trip", order=data["number"])


def _compensation(view: View) -> Link:
    live = view.lane.live
    if live is None or live["saga_id"] != view.saga.id:
        raise VerbRefused(view.saga, "Somebody else has landed since")
    return Link(definition="trip", data={**view.saga.origin.data, "urgent": True}, trigger="rollback")


TRIP = Saga(
    name="trip",
    starts_on=TripRequested,
    steps=(
        Step(
            "pack",
            send=lambda view: Pack(known=view.known_commits),
            ok=Packed,
            failed=PackFailed,
            undo=lambda _: Unpack(),
            undone=Unpacked,
            timeout_s=60,
            retry=Retry(attempts=3, first_s=1.0),
            undo_retry=Retry(attempts=4, first_s=1.0),
        ),
        Step(
            "sail",
            send=lambda view: Sail(crates=view.result("pack", Packed).crates),
            ok=Sailed,
            failed=SailFailed,
            undo=lambda _: SailBack(),
            undone=SailedBack,
            timeout_s=600,
            retry=Retry(attempts=3, first_s=1.0),
            undo_retry=Retry(attempts=4, first_s=1.0),
            leaves=lambda view: (f"the ship of {view.saga.id}", "at sea"),
        ),
        Step(
            "land",
            send=lambda _: Land(),
            ok=Landed,
            failed=LandFailed,
            undo=lambda _: CastOff(),
            undone=HasCastOff,
            timeout_s=60,
            retry=Retry(attempts=3, first_s=1.0),
            undo_retry=Retry(attempts=4, first_s=1.0),
        ),
    ),
    succeeded=lambda _: TripEnded(),
    compensated=lambda view: TripGivenUp(reason=view.saga.reason or ""),
    place=_place,
    replaces_after="pack",
    gives_way_before="land",
    remember=lambda view: {"commit": view.saga.commit},
    compensation=_compensation,
)


class ErrandRequested(Event):
    """Replaces an older errand that waits, at once."""

    number: int = 1


class ErrandEnded(Event):
    pass


class Burn(Command):
    pass


class Burned(Event):
    pass


class BurnFailed(FailureEvent):
    pass


ERRAND = Saga(
    name="errand",
    starts_on=ErrandRequested,
    steps=(
        Step(
            "sail",
            send=lambda _: Sail(crates=0),
            ok=Sailed,
            failed=SailFailed,
            undo=lambda _: SailBack(),
            undone=SailedBack,
        ),
    ),
    succeeded=lambda _: ErrandEnded(),
    compensated=lambda view: TripGivenUp(reason=view.saga.reason or ""),
    place=lambda data: Place(group="errand", order=data["number"]),
)


class BurningRequested(Event):
    """What cannot be undone."""


BURN = Saga(
    name="burn",
    starts_on=BurningRequested,
    forward_only=True,
    steps=(
        Step("boats", send=lambda _: Burn(), ok=Burned, failed=BurnFailed, retry=Retry(attempts=2)),
        Step("bridges", send=lambda _: Land(), ok=Landed, failed=LandFailed, retry=Retry(attempts=2)),
    ),
    succeeded=lambda _: ErrandEnded(),
    compensated=lambda view: TripGivenUp(reason=view.saga.reason or ""),
)
