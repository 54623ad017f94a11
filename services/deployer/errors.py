"""`deployer`'s branch of the error tree: faults of an app are final and carry what it printed last.

FinalError
├── AppDoesNotStart         an instance exits, never answers, or listens elsewhere
├── FailsInUse              a release that has the traffic ends, or answers with errors, while it is observed
├── ReleaseCommandFailed    the `release:` command ended with an error
├── AddOnDoesNotStart       a database that the app asked for does not come up
├── CannotRun               the image needs something that this runtime does not have
├── Fenced                  a newer deployment has the traffic
├── NotWarm                 the observation that kept a release running has ended
└── Undone                  the release was undone while somebody still worked on it
RetryableError
├── NoCapacity              the platform has no room for an instance, or lost the machine that it ran on
└── PreviousDoesNotStart    an undo: what ran before does not come up, so ours keeps serving
"""

from seedwork.errors import FinalError, RetryableError


class AppDoesNotStart(FinalError):
    """An instance of the new release does not come up."""

    code = "start_failed"
    title = "The app does not start"


class FailsInUse(FinalError):
    """The new release has the traffic and does not stay up, or answers with errors."""

    code = "observe_failed"
    title = "The release does not stay up"


class ReleaseCommandFailed(FinalError):
    """The command that runs before traffic moves failed."""

    code = "release_command_failed"
    title = "The release command failed"


class AddOnDoesNotStart(FinalError):
    """A database or cache that the app asked for does not come up."""

    code = "addon_failed"
    title = "An add-on does not start"


class CannotRun(FinalError):
    """The image asks for what this runtime does not have."""

    code = "cannot_run"
    title = "Not possible with this runtime"


class Fenced(FinalError):
    """A newer deployment has taken the traffic: this one may not move it any more."""

    code = "fenced"
    http_status = 409
    title = "A newer deployment has the traffic"


class Undone(FinalError):
    """The release was undone; nobody may bring it back."""

    code = "undone"
    http_status = 409
    title = "The release was undone"


class NotWarm(FinalError):
    """The observation that kept a release warm has ended: it is not to run any more."""

    code = "not_warm"
    http_status = 409
    title = "The release is not kept warm"


class NoCapacity(RetryableError):
    """The platform has no room for an instance, or lost the machine that it ran on; the app is not at fault."""

    code = "no_capacity"
    title = "The platform has no room"


class PreviousDoesNotStart(RetryableError):
    """The release before this one does not come up; this one keeps serving."""

    code = "previous_does_not_start"
    title = "The release before does not start"
