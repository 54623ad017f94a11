"""What an instance in a container finds in its environment, beside what its image says."""

from services.deployer.ports import Release


def environment(release: Release, label: str, *, port: int | None) -> dict[str, str]:
    """Config vars, who it is, and where it listens; the same names as a local process gets.

    Args:
        release: What it is of.
        label: `web.1`
        port: Where it is to listen; None: it is no web process.
    """
    return {
        **({"HOST": "0.0.0.0"} if port else {}),  # noqa: S104  all addresses of the container, which is alone in its network
        **release.env,
        **{volume.variable: volume.path for volume in release.volumes},
        **({"PORT": str(port)} if port else {}),
        "KNARR_APP": release.app,
        "KNARR_APP_ID": release.app_id,
        "KNARR_SAGA_ID": release.saga_id,
        "KNARR_RELEASE": str(release.number),
        **({"KNARR_COMMIT": release.commit} if release.commit else {}),
        "KNARR_INSTANCE": label,
    }
