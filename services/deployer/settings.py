"""What `deployer` needs to know: how long apps may take to start and stop, and where they are reached."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from ocistore import ImageStoreSettings, is_registry
from seedwork.chassis.settings import Networks
from seedwork.errors import Misconfigured

MIB = 1024 * 1024


class DeployerSettings(ImageStoreSettings):
    """Times are limits of patience: every one of them ends with an answer that says what was waited for."""

    runtime: Literal["process", "docker", "kubernetes", "memory"] = "process"
    """What runs the apps.

    `process`: local processes. `docker`: containers of one engine. Both behind a stable port per app.
    `kubernetes`: a namespace per app. `memory`: nothing runs; for trying the service out.
    """

    installation: str | None = Field(default=None, pattern=r"^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$")
    """Under which name the things of this platform are known, where several share an engine or a cluster.

    Default on Docker: made from the home's id; in a cluster, where replicas have no home in common, `knarr`.
    """

    runtime_registry: str | None = None
    """`host[:port][/prefix]` under which the engine or the cluster's nodes pull from the registry of `image_store`,
    where their view differs from ours.
    """

    addon_images: dict[str, str] = {}  # noqa: RUF012  pydantic copies it
    """Other images for kinds of add-ons, as JSON. Default: `mongo:6.0.2`, `mysql:9`, `postgres:15`, `redis:7`; an app
    that asks for a version gets that tag.
    """

    addon_memory_mb: int = Field(default=1024, ge=64)
    """MiB of memory of an add-on: MySQL takes 500 when it does nothing."""

    addon_cpus: float = Field(default=1.0, gt=0)
    """Processors of an add-on."""

    addon_storage_gb: int = Field(default=5, ge=1)
    """GiB of an add-on's volume in a cluster; a Docker engine does not limit its volumes."""

    addon_storage_class: str | None = None
    """Of these volumes. None: the cluster's default."""

    addon_start_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds until an add-on must take connections, without its image's pull: MySQL's first start takes a minute."""

    docker_host: str | None = None
    """The Docker engine, such as `unix:///var/run/docker.sock`. Default: as the `docker` command finds it."""

    app_memory_mb: int = Field(default=512, ge=16)
    """MiB of memory that an instance in a container may use before it is ended: Heroku's smallest has as much.

    A local process is limited only where this is set, and where knarr has cgroups with the controller `memory`.
    """

    app_cpus: float = Field(default=1.0, gt=0)
    """Processors that an instance in a container may use at most: one busy app leaves the others theirs."""

    app_processes: int = Field(default=512, ge=16)
    """Processes and threads of an instance in a container, so that a fork bomb ends in its own app.

    A local process is limited only where this is set, and where knarr has cgroups with the controller `pids`.
    """

    app_read_only: bool = False
    """Whether the files of an instance in a container are read-only, except `/tmp` and its volumes. Many apps write
    beside their code, so that is for installations whose apps do not.
    """

    app_tmp_mb: int = Field(default=256, ge=1)
    """MiB of `/tmp` of an instance whose other files are read-only."""

    app_host: str = "127.0.0.1"
    """The address on which apps are reached. Loopback by default, like the services themselves."""

    app_port_base: int = Field(default=8800, ge=1024, le=65_000)
    """Apps get the first free port from here on, and keep it. Above the services' ports 8700 to 8706."""

    kubeconfig: Path | None = None
    """A file with the cluster's address and credentials. Default: KUBECONFIG, else the service account of our pod,
    else `~/.kube/config`.
    """

    kubernetes_domain: str | None = None
    """Each app gets an Ingress `<app>.<domain>`. None: a port of the nodes, under `app_host`, which must be one."""

    kubernetes_ingress_class: str | None = None
    """Which controller serves the Ingresses. None: the cluster's default one."""

    kubernetes_tls_secret: str | None = None
    """In each app's namespace, for its Ingress; empty: TLS with the controller's own certificate. None: no TLS."""

    kubernetes_node_port_base: int = Field(default=30_000, ge=1024, le=32_767)
    """Apps get the first free port of the nodes from here on; clusters hand out 30000 to 32767."""

    kubernetes_quota_cpus: float = Field(default=16.0, gt=0)
    """Limits of processors of all pods of an app together: during a deployment two releases run."""

    kubernetes_quota_memory_mb: int = Field(default=16 * 1024, ge=64)
    """Limits of memory of all pods of an app together, in MiB."""

    kubernetes_quota_pods: int = Field(default=100, ge=2)
    """Pods of an app."""

    kubernetes_request_cpus: float = Field(default=0.05, gt=0)
    """Processors that the scheduler keeps for an instance; idle web apps, which most are, use less."""

    kubernetes_request_memory_mb: int = Field(default=64, ge=1)
    """MiB of memory that the scheduler keeps for an instance."""

    kubernetes_run_as_user: int = Field(default=10_001, ge=1)
    """Who an image of root, or of a user without a number, runs as: the cluster lets nobody run as root."""

    kubernetes_volume_owner_image: str | None = None
    """Image with `chown`, for storage classes that ignore `fsGroup` (host paths): an init container runs it as root."""

    kubernetes_service_account: str | None = Field(default=None, pattern=r"^[a-z0-9-]{1,63}/[a-z0-9.-]{1,253}$")
    """`namespace/name` of the deployer's service account. With it the rights in the namespaces of apps come from a
    RoleBinding that the deployer makes in each. None: its credentials have these rights in all namespaces.
    """

    kubernetes_app_role: str = "knarr-app"
    """The ClusterRole that is bound to `kubernetes_service_account` in the namespaces of apps."""

    storage_image: str = "python:3.11-slim"
    """Image with `python3` (3.9 or later) of the pods that export and import volumes on Kubernetes."""

    kubernetes_egress_except: Networks = (
        "10.0.0.0/8",
        "100.64.0.0/10",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
    )
    """Networks that apps must not reach: the cluster's own (some clouds take 100.64.0.0/10 for pods or nodes), and
    where clouds answer with credentials.
    """

    kubernetes_dns_networks: Networks = ("169.254.20.10/32",)
    """Networks in CIDR form of DNS servers that apps may ask beside the pods labelled `k8s-app: kube-dns`. Default: the
    address of NodeLocal DNSCache.
    """

    start_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds until a new instance must answer. Heroku's boot limit is 60; slow frameworks take 20 to 40."""

    start_timeout_max_s: float = Field(default=600.0, gt=0)
    """Longest start time in seconds that an app may ask for with its health checks."""

    observe_s: float = Field(default=10.0, ge=0, le=3600)
    """Seconds for which a release is observed after the traffic has moved, while the one before keeps running; 0: off.
    Most faults that a start does not show come within seconds: a missing table, a worker that ends.
    """

    observe_errors: int = Field(default=5, ge=1)
    """Answers with a status of 500 or above that fail a release in that time, if they are a tenth of its answers and
    the release before had none.
    """

    reconcile_s: float = Field(default=3.0, gt=0)
    """Interval in seconds at which what runs is compared with what should."""

    wrong_port_s: float = Field(default=20.0, ge=0)
    """Seconds after which a new instance that listens, but not on PORT, is given up: no need to wait for the rest of
    `start_timeout_s`. Some open a port for metrics first; 20 s is long for what comes between.
    """

    app_stop_grace_s: float | None = Field(default=None, ge=0)
    """Seconds between SIGTERM and SIGKILL for an app. Default: half of `stop_grace_s`, so that apps stop before us."""

    drain_s: float = Field(default=10.0, ge=0)
    """Seconds that requests under way get to finish on the old instances, before those are told to stop."""

    release_command_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds for the `release:` command: a database migration of minutes is normal, of hours is not."""

    worker_settle_s: float = Field(default=1.0, ge=0)
    """Seconds that a process without a port must stay alive to count as started: a wrong import fails well before."""

    request_idle_s: float = Field(default=300.0, gt=0)
    """Seconds without a byte in either direction after which a request through the router is given up."""

    app_max_connections: int = Field(default=1_000, ge=1)
    """Connections of clients to one app at the same time, web sockets too.

    Over it the connection that has waited longest for a request is closed; if all are busy, the new one gets 503.
    """

    apps_max_connections: int = Field(default=5_000, ge=1)
    """Connections of clients to all apps, likewise; never more than a quarter of the open files.

    Each takes two files, and the other half is for the platform's own services, databases, builds and images.
    """

    max_instances: int = Field(default=20, ge=1)
    """Instances of one process type at most: a typing error must not take the machine."""

    app_log_max_bytes: int = Field(default=16 * MIB, ge=64 * 1024)
    """Bytes kept of one app's output on disk, in two files; the oldest goes first."""

    registry_keep: int = Field(default=10, ge=1)
    """Releases per app that can be rolled back to, beside the live one; older ones let go of their image."""

    config_key: SecretStr | None = None
    """The key (Fernet: 32 bytes, url-safe base64) of the config vars. Default: `<home>/deployer/config.key`."""

    def pull_registry(self) -> str:
        """`host[:port][/prefix]` from which an engine or a cluster pulls.

        Raises:
            Misconfigured: Images are kept in a folder.
        """
        place = self.image_store_place()
        if not is_registry(place):
            raise Misconfigured(
                f"KNARR_RUNTIME is `{self.runtime}`, and images are kept in a folder",
                why="containers get their images from a registry",
                todo="Set KNARR_IMAGE_STORE=https://host[:port] to a registry, and KNARR_BUILDER=buildx.",
            )
        return (self.runtime_registry or place.partition("://")[2]).rstrip("/")

    @property
    def app_grace_s(self) -> float:
        """Seconds between SIGTERM and SIGKILL for an app."""
        return self.stop_grace_s / 2 if self.app_stop_grace_s is None else self.app_stop_grace_s

    @property
    def deploy_limit_s(self) -> float:
        """Seconds for a whole deployment: its parts end earlier, each with a better answer."""
        unpacking_s = 900.0
        parts = (self.release_command_timeout_s, self.start_timeout_max_s, self.worker_settle_s, self.drain_s)
        return unpacking_s + sum(parts) + 2 * self.app_grace_s
