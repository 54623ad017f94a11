"""What an instance in a container is told of itself."""

from services.deployer.ports import Release


def identity(release: Release, label: str) -> dict[str, str]:
    """Who it is; the same names as a local process gets.

    Args:
        release: What it is of.
        label: `web.1`
    """
    return {
        "KNARR_APP": release.app,
        "KNARR_APP_ID": release.app_id,
        "KNARR_SAGA_ID": release.saga_id,
        "KNARR_RELEASE": str(release.number),
        **({"KNARR_COMMIT": release.commit} if release.commit else {}),
        "KNARR_INSTANCE": label,
    }
