"""What `builder` needs to know: how much a build may take, and where its images go."""

import os
from typing import Literal

from pydantic import Field

from ocistore import ImageStoreSettings
from seedwork.chassis.settings import CommaSeparated

MIB = 1024 * 1024


def quarter_of_memory() -> int:
    """Return a quarter of this machine's memory in bytes, at least 2 GiB."""
    return max(2048 * MIB, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)


class BuilderSettings(ImageStoreSettings):
    """The limits exist so that one app's build cannot take the machine from the others."""

    builder: Literal["layers", "buildx", "buildpacks"] = "layers"
    """For apps that choose none. `layers` writes images by itself; `buildx` builds Dockerfiles on a Docker engine or a
    BuildKit; `buildpacks` runs Cloud Native Buildpacks on a Docker engine, and buildx where there is a Dockerfile.
    """

    buildpacks_builder: str = "heroku/builder:24"
    """The builder image of Cloud Native Buildpacks: buildpacks, the lifecycle and the name of a run image."""

    buildpacks_run_image: str | None = None
    """The image that apps built by buildpacks stand on. None: the one that the builder image names."""

    build_slots: int = Field(default=2, ge=1, le=64)
    """Builds at a time. Two: one long build does not hold up the others, and a laptop stays usable."""

    build_timeout_s: float = Field(default=900.0, gt=0)
    """Seconds for one build, waiting for a slot not counted. A large native build takes minutes, 15 are a fault."""

    build_memory_bytes: int = Field(default_factory=quarter_of_memory, ge=64 * MIB)
    """Resident bytes of all processes of one build together. Default: a quarter of the machine's memory and at least
    2 GiB, so that two builds leave half of it; large front ends take 3 GiB. Each process may reserve four times as
    much. On a Docker engine that is the only bound; `buildx_cgroup_parent` sets another.
    """

    build_processes: int = Field(default=512, ge=8)
    """Processes of one build at a time; a parallel `make` or a bundler has some dozens."""

    build_file_bytes: int = Field(default=4096 * MIB, ge=MIB)
    """Size of any one file that a build writes; the largest wheels have about 3 GiB."""

    build_log_max_bytes: int = Field(default=16 * MIB, ge=1024)
    """Bytes kept of one build's log; what comes after is counted, not kept."""

    build_log_keep_days: float = Field(default=30.0, gt=0)
    """Days after its last line for which a log is kept: long enough to ask what a month's release was built with."""

    build_cache_bytes: int = Field(default=8192 * MIB, ge=0)
    """Bytes of dependency layers kept; the least recently used go first, never one used within the last hour.

    On a Docker engine: of its build cache, what other programs built there included.
    """

    fetch_toolchains: bool = True
    """Whether interpreters and tools that an app asks for and this machine does not have are fetched and kept."""

    python_mirror: str | None = None
    """`https://…` or `file://…` in place of the site from which uv fetches Python (UV_PYTHON_INSTALL_MIRROR)."""

    build_app_caches_bytes: int = Field(default=8192 * MIB, ge=0)
    """Bytes of build caches (`.next/cache`, npm, pip, Go) of all apps; the least recently built app's go first."""

    build_pass_env: CommaSeparated = ()
    """More names of environment variables that build tools get, such as those a private index needs. An app's own
    Dockerfile gets none of them: give it config vars with the scope `build`.
    """

    build_dockerfile_registries: CommaSeparated = ()
    """Hosts of registries whose logins of the platform an app's own Dockerfile may use in `FROM`, such as `docker.io`.
    Default: none, since a login that reads private images reads those of all apps.
    """

    buildx_network: Literal["default", "none"] = "default"
    """Network of build steps: `none` for installations whose builds need no network. Never the network of the host."""

    buildx_registry: str | None = None
    """`host[:port][/prefix]` under which the engine reaches the registry of `image_store`, where its view differs.

    An engine on this machine knows `localhost:5000`, one beside us in another container may know `registry:5000`.
    """

    buildx_builder: str | None = None
    """A builder of `docker buildx ls`. None: the engine's own, whose cache and images are on one disk."""

    buildkit_host: str | None = None
    """`tcp://host:port` of a BuildKit without a Docker engine; wins over `buildx_builder`."""

    buildx_cache: Literal["builder", "registry"] = "builder"
    """Where layers are kept between builds. `registry`: also in its repository `cache/<app_id>`, for builders that
    come and go; the Docker engine's own builder cannot do that.
    """

    buildx_cgroup_parent: str | None = None
    """The control group under which build steps run, to bound their memory and processors. Docker 23 and newer."""

    buildx_python_image: str = "python:{version}-slim"
    """The base image of Python apps and static sites, by minor version: the newest patch of it."""

    buildx_python_version: str = "3.11"
    """For apps that do not say which Python they want."""

    buildx_node_image: str = "node:{version}-slim"
    """The base image of Node apps, by major version."""

    buildx_node_versions: CommaSeparated = ("20", "22", "24")
    """Major versions to choose from: the first one that the app's `engines.node` allows."""

    buildx_compilers: CommaSeparated = (
        *(
            "build-essential",
            "pkg-config",
            "python3",
            "git",
            "libpq-dev",
            "default-libmysqlclient-dev",
            "libsqlite3-dev",
        ),
        *("libffi-dev", "libssl-dev", "libxml2-dev", "libxslt1-dev", "libjpeg-dev", "libfreetype-dev", "zlib1g-dev"),
        *("libcurl4-openssl-dev", "libldap2-dev", "libsasl2-dev", "libyaml-dev", "unixodbc-dev"),
    )
    """Debian packages that a build gets when one of the app's packages is compiled. Empty: such a build fails.

    The shared libraries that the compiled packages need are copied into the image.
    """

    buildx_go_image: str = "golang:{version}"
    """The image in which Go apps are built, by minor version. The app itself stands on `buildx_base_image`."""

    buildx_go_version: str = "1.24"
    """For apps whose go.mod does not say which Go they want."""

    buildx_base_image: str = "debian:bookworm-slim"
    """The base image of Go apps, and of apps that only have a Procfile."""

    buildx_pins: CommaSeparated = ()
    """Base images by digest, `python:3.11-slim@sha256:…`: so a build does not change because a tag moved."""
