"""What `builder` needs to know: how much a build may take, and where its images go."""

from typing import Literal

from pydantic import Field

from ocistore import ImageStoreSettings
from seedwork.chassis.settings import CommaSeparated

MIB = 1024 * 1024


class BuilderSettings(ImageStoreSettings):
    """The limits exist so that one app's build cannot take the machine from the others."""

    builder: Literal["layers", "buildx"] = "layers"
    """`layers` writes images by itself; `buildx` builds Dockerfiles on a Docker engine."""

    build_slots: int = Field(default=2, ge=1, le=64)
    """Builds at a time. Two: one long build does not hold up the others, and a laptop stays usable."""

    build_timeout_s: float = Field(default=900.0, gt=0)
    """Seconds for one build, waiting for a slot not counted. A large native build takes minutes, 15 are a fault."""

    build_memory_bytes: int = Field(default=2048 * MIB, ge=64 * MIB)
    """Resident bytes of all processes of one build together; two builds leave room on a laptop of 8 GiB."""

    build_processes: int = Field(default=512, ge=8)
    """Processes of one build at a time; a parallel `make` or a bundler has some dozens."""

    build_file_bytes: int = Field(default=4096 * MIB, ge=MIB)
    """Size of any one file that a build writes; the largest wheels have about 3 GiB."""

    build_log_max_bytes: int = Field(default=16 * MIB, ge=1024)
    """Bytes kept of one build's log; what comes after is counted, not kept."""

    build_log_keep_days: float = Field(default=30.0, gt=0)
    """Days after its last line for which a log is kept: long enough to ask what a month's release was built with."""

    build_cache_bytes: int = Field(default=8192 * MIB, ge=0)
    """Bytes of dependency layers kept; the least recently used go first, never one used within the last hour."""

    build_pass_env: CommaSeparated = ()
    """More names of environment variables that build tools get, such as those a private index needs."""
