"""One saga per app at a time: who holds the lane, who waits behind, who goes next and who replaces whom. Pure values.

A lane's methods take a saga in or let it go and give back the lane as it is to be; the caller writes it under a version
check and tells those whom it concerns (`LaneGranted`, `Superseded`). The fence grows with every grant and never
shrinks: what carries a lower one was sent before somebody else had the lane.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

KEPT = 20
"""How many releases a lane remembers: more than anybody rolls back, less than a page."""


class Place(Struct, frozen=True, kw_only=True):
    """How a saga queues: made by its definition from the data that it starts with."""

    group: str | None = None
    """Of those that wait under one name only the newest counts; None: it replaces nobody and nobody replaces it."""
    order: int = 0
    """What is newer within the group; equal ones by their saga's id, which grows with time."""
    first: bool = False
    """Goes before everything else that waits, and asks a running saga to give way."""


class Waiting(Struct, frozen=True, kw_only=True):
    """A saga that waits for the lane."""

    saga_id: str
    place: Place
    commit: str | None = None

    @property
    def age(self) -> tuple[int, str]:
        """Newer is greater."""
        return self.place.order, self.saga_id

    def to_record(self) -> list[Any]:
        """JSON values."""
        return [self.saga_id, self.place.group, self.place.order, self.place.first, self.commit]

    @classmethod
    def from_record(cls, record: list[Any]) -> "Waiting":
        """From JSON values."""
        saga_id, group, order, first, commit = record
        return cls(saga_id=saga_id, place=Place(group=group, order=order, first=first), commit=commit)


class Lane(Struct, frozen=True, kw_only=True):
    """An app's lane as one value."""

    app_id: str
    holder: str | None = None
    """The saga that has it."""
    fence: int = 0
    """Of the latest grant."""
    waiting: tuple[Waiting, ...] = ()
    """In the order in which they would be granted, but for `next_up`."""
    kept: tuple[Mapping[str, Any], ...] = ()
    """What sagas that succeeded left here, newest first; the first one is live. Keys: `saga_id`, `commit`, `number`
    and whatever their definition's `remember` adds."""

    @property
    def live(self) -> Mapping[str, Any] | None:
        """What the last saga that succeeded here left."""
        return self.kept[0] if self.kept else None

    def is_waiting(self, saga_id: str) -> bool:
        """Whether that saga waits here."""
        return any(each.saga_id == saga_id for each in self.waiting)

    def known_commits(self, but: str) -> dict[str, str]:
        """Commit by saga: what is live and what waits, without the saga `but`."""
        known = {each.saga_id: each.commit for each in self.waiting if each.commit and each.saga_id != but}
        if self.live and self.live.get("commit") and self.live["saga_id"] != but:
            known[self.live["saga_id"]] = self.live["commit"]
        return known

    def taken_by(self, saga_id: str) -> "Lane":
        """Granted to that saga, under a new fence."""
        rest = tuple(each for each in self.waiting if each.saga_id != saga_id)
        return replace(self, holder=saga_id, fence=self.fence + 1, waiting=rest)

    def joined_by(self, new: Waiting, *, replaces: bool) -> tuple["Lane", tuple[str, ...]]:
        """With one more that waits, and those that it `replaces` (the older ones of its group), in whose place it goes.

        One that goes first stands before all that do not.
        """
        older = {each.saga_id for each in self.in_group(new.place.group) if replaces and each.age < new.age}
        at = next((i for i, each in enumerate(self.waiting) if each.saga_id in older), len(self.waiting))
        if new.place.first:
            at = sum(each.place.first for each in self.waiting)
        before, after = self.waiting[:at], self.waiting[at:]
        rest = tuple(each for each in (*before, new, *after) if each.saga_id not in older)
        return replace(self, waiting=rest), tuple(sorted(older))

    def left_by(self, saga_id: str) -> tuple["Lane", str | None]:
        """Without that saga, and the one that was granted the lane through it."""
        if self.holder != saga_id:
            return replace(self, waiting=tuple(each for each in self.waiting if each.saga_id != saga_id)), None
        following = self.next_up()
        if following is None:
            return replace(self, holder=None), None
        return self.taken_by(following.saga_id), following.saga_id

    def next_up(self) -> Waiting | None:
        """First come, first served; but the newest of the first one's group goes in its place."""
        if not self.waiting:
            return None
        head = self.waiting[0]
        return max(self.in_group(head.place.group), key=lambda each: each.age, default=head)

    def in_group(self, group: str | None) -> list[Waiting]:
        """Those of a group that wait."""
        return [each for each in self.waiting if group is not None and each.place.group == group]

    def stood_back_from(self, me: Waiting) -> tuple["Lane", str | None]:
        """With the lane in the hands of one that goes first, and the holder `me` next; unchanged if there is none."""
        ahead = [each for each in self.waiting if each.place.first]
        if not ahead or me.place.first:
            return self, None
        rest = tuple(each for each in self.waiting if not each.place.first)
        granted = replace(self, waiting=(*ahead, me, *rest)).taken_by(ahead[0].saga_id)
        return granted, ahead[0].saga_id

    def without_older_than(self, me: Waiting) -> tuple["Lane", tuple[str, ...]]:
        """Without those of `me`'s group that wait and are older, and who they were."""
        older = {each.saga_id for each in self.in_group(me.place.group) if each.age < me.age}
        if not older:
            return self, ()
        rest = tuple(each for each in self.waiting if each.saga_id not in older)
        return replace(self, waiting=rest), tuple(sorted(older))

    def seen_by(self, me: Waiting) -> "Lane":
        """Only what may decide about this saga: small, however many wait, since it stands in every log entry."""
        shown = {each.saga_id for each in (*self.waiting[:1], me)}
        shown |= {each.saga_id for each in self.waiting if each.place.first}
        group = self.in_group(me.place.group)
        if group:
            shown.add(max(group, key=lambda each: each.age).saga_id)
        return replace(self, kept=(), waiting=tuple(each for each in self.waiting if each.saga_id in shown))

    def with_live(self, entry: Mapping[str, Any]) -> "Lane":
        """Remember what is live now."""
        return replace(self, kept=(entry, *self.kept)[:KEPT])

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "app_id": self.app_id,
            "holder": self.holder,
            "fence": self.fence,
            "waiting": [each.to_record() for each in self.waiting],
            "kept": list(self.kept),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Lane":
        """From JSON values."""
        return cls(
            app_id=record["app_id"],
            holder=record["holder"],
            fence=record["fence"],
            waiting=tuple(Waiting.from_record(each) for each in record["waiting"]),
            kept=tuple(record["kept"]),
        )
