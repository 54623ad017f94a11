"""What `registry` refuses, in sentences; the types are the kernel's.

FinalError
├── NotFound        not_staged, not_published
├── InvalidInput    no_repository
└── FinalError      undone
RetryableError
└── Unavailable     busy
"""

from seedwork.errors import FinalError, InvalidInput, NotFound, Unavailable


def not_staged(staged: str, digest: str, error: NotFound) -> NotFound:
    """The image to be published is not where the builder put it, or is damaged."""
    return NotFound(
        f"The staged image {staged}@{digest} cannot be published",
        why=error.message,
        todo="Deploy the commit again: it is then built anew.",
    )


def not_published(app: str, digest: str, why: str) -> NotFound:
    """Somebody wants to go back to an image that is not kept."""
    return NotFound(
        f"The image {app}@{digest} is not published any more",
        why=why,
        todo="Deploy its commit again; KNARR_REGISTRY_KEEP says how many releases are kept.",
    )


def no_repository(team: str, app: str, why: str) -> InvalidInput:
    """There cannot be a repository for this app."""
    return InvalidInput(
        f"Images of the app {app!r} of the team {team!r} cannot be stored",
        why=why,
        todo="Use names of lower-case letters, digits and '-', and no team called 'staging'.",
    )


def undone(saga_id: str) -> FinalError:
    """The saga's undo came first."""
    return FinalError(f"Saga {saga_id} was undone before it took its reference", why="nothing was done", code="undone")


def busy(repository: str, wait_s: float) -> Unavailable:
    """Another replica works on the repository for too long."""
    return Unavailable(
        f"The repository {repository} is being changed by another process",
        why=f"for more than {wait_s:g} s",
        todo="It is tried again; if it stays so, look at the logs of the other replicas.",
    )
