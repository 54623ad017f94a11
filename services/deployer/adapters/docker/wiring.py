"""Settings in, a `DockerRuntime` and its add-ons out."""

from pathlib import Path

from seedwork.clock import Clock
from seedwork.extras import need_extra
from services.deployer.adapters.addon_recipes import addon_means
from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.addons import DockerAddOns
from services.deployer.adapters.docker.engine import Engine, Login
from services.deployer.adapters.docker.networks import Networks
from services.deployer.adapters.docker.options import Options
from services.deployer.adapters.docker.runtime import DockerRuntime
from services.deployer.adapters.docker.volumes import DockerVolumes
from services.deployer.adapters.images import Pullable
from services.deployer.adapters.naming import short_hash
from services.deployer.adapters.process.leftovers import home_id_of
from services.deployer.adapters.router import make_router
from services.deployer.settings import MIB, DeployerSettings


def make_docker_runtime(
    settings: DeployerSettings, home: Path, clock: Clock
) -> tuple[DockerRuntime, DockerAddOns, DockerVolumes]:
    """The runtime, what provides its add-ons, and its volumes; the engine is asked nothing before `recover`.

    Raises:
        Misconfigured: Images are kept in a folder, from which no engine pulls; or the client is not installed.
    """
    need_extra("docker", "aiodocker", what="The client of Docker engines")
    user, password = settings.registry_user, settings.registry_password
    options = Options(
        installation=settings.installation or f"knarr-{short_hash(home_id_of(home))}",
        start_timeout_s=settings.start_timeout_s,
        start_timeout_max_s=settings.start_timeout_max_s,
        grace_s=settings.app_grace_s,
        drain_s=settings.drain_s,
        release_command_timeout_s=settings.release_command_timeout_s,
        settle_s=settings.worker_settle_s,
        bounds=spec.Bounds(
            memory_bytes=settings.app_memory_mb * MIB,
            cpus=settings.app_cpus,
            processes=settings.app_processes,
            log_bytes=settings.app_log_max_bytes,
            tmp_bytes=settings.app_tmp_mb * MIB if settings.app_read_only else None,
        ),
        login=Login(user=user, password=password.get_secret_value()) if user and password else None,
    )
    engine = Engine(settings.docker_host)
    networks = Networks(engine, options.installation)
    runtime = DockerRuntime(
        engine=engine,
        networks=networks,
        pullable=Pullable(settings.pull_registry()),
        router=make_router(settings),
        clock=clock,
        options=options,
    )
    means = addon_means(settings)
    add_ons = DockerAddOns(engine, networks, installation=options.installation, means=means)
    return runtime, add_ons, DockerVolumes(engine, installation=options.installation)
