"""What `knarr` says to the shell, as DESIGN §6 lists it."""

from enum import IntEnum

from seedwork.errors import KnarrError, NotAllowed, NotFound, Unauthenticated


class Exit(IntEnum):
    """Documented in `knarr --help`; scripts rely on them."""

    DONE = 0
    FAULT = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    UNDONE = 5
    NEEDS_A_PERSON = 6
    STILL_RUNNING = 7
    DETACHED = 130


EXIT_CODES_HELP = """\
0    done
1    anything else went wrong: the text on standard error says what
2    wrong usage
3    not found
4    not allowed: the token is missing, unknown, or lacks the right
5    the deployment was undone, whatever the reason
6    it needs a person: `knarr sagas list --needs-attention`
7    timed out here, and still running there
130  detached (Ctrl-C): what was started goes on"""


_BY_CODE = {"usage": Exit.USAGE, "still_running": Exit.STILL_RUNNING, "detached": Exit.DETACHED}


def exit_code(error: KnarrError) -> Exit:
    """The code for an error that a service or the command line itself raised."""
    if isinstance(error, NotFound):
        return Exit.NOT_FOUND
    if isinstance(error, NotAllowed | Unauthenticated):
        return Exit.NOT_ALLOWED
    return _BY_CODE.get(error.reason_code, Exit.FAULT)
