"""What `registry` needs to know: where images are, and how many are published at once.

How many releases of an app keep their image is `KNARR_REGISTRY_KEEP`, a setting of `deployer`: it owns the releases and
says `ReleaseRetired` for those that fall out; here an image goes when nobody holds it any more.
"""

from pydantic import Field

from ocistore import ImageStoreSettings


class RegistrySettings(ImageStoreSettings):
    """Publishing moves no bytes, so the limits are those of patience with a slow disk."""

    publish_slots: int = Field(default=4, ge=1, le=64)
    """Images published at a time. Four: each waits for a few fsyncs, more would only share the same disk."""

    publish_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds for one publication, waiting for a slot not counted. On a laptop it takes milliseconds."""

    registry_image: str = "registry:2"
    """The image of the registry that `knarr up --runtime docker` starts; a Docker distribution 2.x."""

    registry_port: int | None = Field(default=None, ge=1, le=65_535)
    """The port on 127.0.0.1 of that registry. Default: the port base plus 90, or the next free one; then it stays."""

    registry_container: str | None = None
    """The container of that registry, named by `knarr up`. None: the registry is run elsewhere, and cleans up there."""

    registry_garbage_bytes: int = Field(default=1024 * 1024 * 1024, ge=0)
    """Bytes that no image needs, above which the schedule runs that registry's garbage collection: it stops the
    registry for some seconds, so it should be worth it.
    """

    reconcile_s: float = Field(default=3600.0, gt=0)
    """Seconds between two comparisons of what is stored with what is held: an hour bounds what a crash can leave."""
