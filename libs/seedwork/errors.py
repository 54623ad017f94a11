"""Every error that knarr raises on purpose, as one tree.

The type says who has to act: a `RetryableError` may pass by itself, a `FinalError` will not. What a person reads is
three sentences: what happened, why, and what to do next.

KnarrError
├── RetryableError          worth another attempt: the saga's policy decides when
│   ├── Unavailable         another system did not answer
│   └── StorageFull         the disk has no room left
└── FinalError              the same request would fail again
    ├── InvalidInput        the caller's data is wrong
    ├── TooLarge            over a documented limit
    ├── Unauthenticated     no valid token or signature
    ├── NotAllowed          a valid token without the right
    ├── NotFound            no such thing
    ├── Conflict            not in this state
    ├── TimedOut            the work's own limit is over
    └── Misconfigured       a setting is missing or wrong
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar


class KnarrError(Exception):
    """What happened, why, and what to do next."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    extensions: Mapping[str, Any] = MappingProxyType({})
    """More members of the HTTP answer, such as a saga's state with its 409; a subclass or an instance sets it."""

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        todo: str = "",
        code: str | None = None,
        log_tail: tuple[str, ...] = (),
    ) -> None:
        """Keep the three sentences.

        Args:
            what: What happened, without a full stop at its end.
            why: The cause, as far as it is known.
            todo: What the reader can do next.
            code: A machine-readable name, in place of the class's own (`build_failed`, `superseded` …).
            log_tail: The last lines of a tool's output, oldest first; no secret may be in them.
        """
        self.what = what
        self.why = why
        self.todo = todo
        self.reason_code = code or self.code
        self.log_tail = log_tail
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The whole text on one line."""
        text = f"{self.what}: {self.why}" if self.why else self.what
        text = text if text.endswith((".", "!", "?")) else text + "."
        return f"{text} {self.todo}".strip()


class RetryableError(KnarrError):
    """Another attempt may succeed."""

    code = "unavailable"
    http_status = 503
    title = "Temporarily unavailable"


class Unavailable(RetryableError):
    """Another system did not answer, or answered that it cannot now."""


class StorageFull(RetryableError):
    """The disk has no room left; nothing half-written stays."""

    code = "storage_full"
    http_status = 507
    title = "No room left"


class FinalError(KnarrError):
    """The same request would fail again."""

    code = "failed"
    http_status = 422
    title = "Cannot be done"


class InvalidInput(FinalError):
    """The caller's data is wrong; the text names the field and what is allowed."""

    code = "invalid"
    http_status = 400
    title = "Invalid input"


class TooLarge(FinalError):
    """More than a documented limit."""

    code = "too_large"
    http_status = 413
    title = "Too large"


class Unauthenticated(FinalError):
    """No token or signature that is known here."""

    code = "unauthenticated"
    http_status = 401
    title = "Not authenticated"


class NotAllowed(FinalError):
    """A known caller without the right."""

    code = "not_allowed"
    http_status = 403
    title = "Not allowed"


class NotFound(FinalError):
    """No such thing."""

    code = "not_found"
    http_status = 404
    title = "Not found"


class Conflict(FinalError):
    """The thing is not in a state that allows this."""

    code = "conflict"
    http_status = 409
    title = "Not in this state"


class TimedOut(FinalError):
    """The work's own limit is over."""

    code = "timed_out"
    http_status = 504
    title = "Timed out"


class Misconfigured(FinalError):
    """A setting is missing or wrong; the text names it."""

    code = "misconfigured"
    http_status = 500
    title = "Misconfigured"
