"""Settings in, a `KubernetesRuntime` and its add-ons out."""

from math import ceil

from seedwork.clock import Clock
from seedwork.extras import need_extra
from services.deployer.adapters.addon_recipes import addon_means
from services.deployer.adapters.images import Pullable
from services.deployer.adapters.kubernetes.addons import KubernetesAddOns
from services.deployer.adapters.kubernetes.cluster import Cluster
from services.deployer.adapters.kubernetes.front import Front, Ways
from services.deployer.adapters.kubernetes.objects import APP_ID, PULL_SECRET, Account, Shape
from services.deployer.adapters.kubernetes.objects import INSTALLATION as INSTALLATION_LABEL
from services.deployer.adapters.kubernetes.runtime import KubernetesRuntime, Options
from services.deployer.adapters.kubernetes.storage_pod import StorageOptions, StoragePods
from services.deployer.adapters.kubernetes.volumes import KubernetesVolumes
from services.deployer.settings import DeployerSettings

INSTALLATION = "knarr"


def make_kubernetes_runtime(
    settings: DeployerSettings, clock: Clock
) -> tuple[KubernetesRuntime, KubernetesAddOns, KubernetesVolumes]:
    """The runtime, what provides its add-ons, and its volumes; the cluster is asked nothing before its first use.

    Raises:
        Misconfigured: Images are kept in a folder, from which no cluster pulls; or the client is not installed.
    """
    need_extra("kubernetes", "kubernetes_asyncio", what="The client of Kubernetes")
    registry = settings.pull_registry()
    user, password = settings.registry_user, settings.registry_password
    shape = Shape(
        installation=settings.installation or INSTALLATION,
        memory_mb=settings.app_memory_mb,
        cpus=settings.app_cpus,
        requested_memory_mb=min(settings.kubernetes_request_memory_mb, settings.app_memory_mb),
        requested_cpus=min(settings.kubernetes_request_cpus, settings.app_cpus),
        quota_cpus=settings.kubernetes_quota_cpus,
        quota_memory_mb=settings.kubernetes_quota_memory_mb,
        quota_pods=settings.kubernetes_quota_pods,
        run_as_user=settings.kubernetes_run_as_user,
        volume_owner_image=settings.kubernetes_volume_owner_image,
        grace_s=ceil(settings.app_grace_s),
        settle_s=ceil(settings.worker_settle_s),
        release_command_timeout_s=ceil(settings.release_command_timeout_s),
        tmp_mb=settings.app_tmp_mb if settings.app_read_only else None,
        account=_account(settings.kubernetes_service_account, settings.kubernetes_app_role),
        egress_except=settings.kubernetes_egress_except,
        dns_networks=settings.kubernetes_dns_networks,
        pull_login=(registry.split("/")[0], user, password.get_secret_value()) if user and password else None,
    )
    ways = Ways(
        host=settings.app_host if settings.app_host not in {"0.0.0.0", "::"} else "127.0.0.1",  # noqa: S104  compared only
        node_port_base=settings.kubernetes_node_port_base,
        domain=settings.kubernetes_domain,
        ingress_class=settings.kubernetes_ingress_class,
        tls_secret=settings.kubernetes_tls_secret,
    )
    cluster = Cluster(settings.kubeconfig)
    front = Front(cluster, clock, shape, ways)
    addons = KubernetesAddOns(cluster, front, installation=shape.installation, means=addon_means(settings))
    volumes = KubernetesVolumes(
        cluster,
        app_label=APP_ID,
        installation_label={INSTALLATION_LABEL: shape.installation},
        storage_class=settings.addon_storage_class,
        pods=StoragePods(
            cluster,
            StorageOptions(
                image=settings.storage_image,
                user=shape.run_as_user,
                pull_secret=PULL_SECRET if shape.pull_login else None,
            ),
        ),
        owner_image=shape.volume_owner_image,
        group=shape.run_as_user,
    )
    runtime = KubernetesRuntime(
        cluster=cluster,
        front=front,
        pullable=Pullable(registry),
        clock=clock,
        options=Options(
            shape=shape,
            start_timeout_s=settings.start_timeout_s,
            start_timeout_max_s=settings.start_timeout_max_s,
        ),
        provider=addons,
        volumes=volumes,
    )
    return runtime, addons, volumes


def _account(named: str | None, role: str) -> Account | None:
    namespace, _, name = (named or "").partition("/")
    return Account(namespace=namespace, name=name, role=role) if name else None
