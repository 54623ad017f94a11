"""Changed copies of frozen dataclasses: a quicker `dataclasses.replace`, for what is copied at each message."""

from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeVar

T = TypeVar("T")


def changed(value: T, **changes: Any) -> T:
    """A copy with other values; for dataclasses with at least two fields, all of them in the constructor.

    Raises:
        TypeError: No such field.
    """
    names, values = _SHAPES.get(type(value)) or _shape(type(value))
    record = dict(zip(names, values(value), strict=True))
    record.update(changes)
    return type(value)(**record)


_SHAPES: dict[type[Any], tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]] = {}


def _shape(kind: type[Any]) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    names = tuple(each.name for each in fields(kind))
    return _SHAPES.setdefault(kind, (names, attrgetter(*names)))
