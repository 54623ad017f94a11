"""What `source` needs to know: whom it talks to, how much it takes, how long it keeps things."""

from typing import Literal

from pydantic import Field, SecretStr

from seedwork.archives import ArchiveLimits
from seedwork.chassis.settings import CommaSeparated, ServiceSettings

MIB = 1024 * 1024


class SourceSettings(ServiceSettings):
    """The limits exist so that one repository cannot take the disk or the time from the others."""

    source_allow: CommaSeparated = ("https://github.com/",)
    """URL prefixes of the repositories that knarr may talk to; `webhook` has the same setting."""

    source_credentials: SecretStr | None = None
    """`prefix=token` pairs with commas between them, `https://github.com/acme/=TOKEN`, for private repositories.

    The longest prefix that holds the clone URL counts. A token may also be `user:password`.
    """

    builder: Literal["layers", "buildx", "buildpacks"] = "layers"
    """Builder of the platform; `builder` has the same setting. It decides which apps are refused before the build."""

    source_slots: int = Field(default=4, ge=1)
    """Fetches at the same time: each is one git process and one pass over the archive."""

    source_fetch_timeout_s: float = Field(default=480.0, gt=0)
    """Seconds for one `git fetch`: the first one of a repository of 1 GB takes minutes on a home connection."""

    source_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds for the whole step: the fetch, and two minutes for packing."""

    source_max_bytes: int = Field(default=1024 * MIB, gt=0)
    """Bytes of an app's source, uncompressed; twice as much is needed on disk while it is packed."""

    source_max_entries: int = Field(default=100_000, gt=0)
    """Files, folders and links of an app's source; a committed `node_modules` has about 60,000."""

    source_max_depth: int = Field(default=64, gt=0)
    """Levels of folders; the deepest trees in use have about 30."""

    source_max_path_bytes: int = Field(default=1024, gt=0, le=3072)
    """Bytes of one path inside the app; the system allows 4096 with everything in front of it."""

    upload_max_bytes: int = Field(default=200 * 1000 * 1000, gt=0)
    """The largest archive that may be uploaded, compressed; `webhook` has the same setting."""

    upload_keep_days: float = Field(default=7.0, gt=0)
    """Days for which an upload is kept after it came: so long can a failed deployment of it be tried again."""

    mirror_keep_days: float = Field(default=30.0, gt=0)
    """Days after its last use for which a repository's mirror is kept; without it, everything is fetched anew."""

    source_sweep_s: float = Field(default=3600.0, gt=0)
    """Seconds between two looks for what may go; archives go at once when their deployment has succeeded."""

    def archive_limits(self) -> ArchiveLimits:
        """How much of a repository or an upload is taken."""
        return ArchiveLimits(
            max_bytes=self.source_max_bytes,
            max_entries=self.source_max_entries,
            max_depth=self.source_max_depth,
            max_path_bytes=self.source_max_path_bytes,
            max_seconds=self.source_timeout_s,
            settings="KNARR_SOURCE_",
        )
