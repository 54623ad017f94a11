"""How each kind of add-on runs in a container: an add-on in, image, environment, port and data folder out. Pure.

The images are the public ones of Docker Hub, or whatever takes the same environment. They start as root to own their
volume, and go on as a user of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.deployer.errors import CannotRun
from services.deployer.ports import AddOn
from services.deployer.settings import DeployerSettings

IMAGES: Mapping[str, str] = {
    "mongodb": "mongo:6.0.2",
    "mysql": "mysql:9",
    "postgres": "postgres:15",
    "redis": "redis:7",
}
"""Unless a setting or the app says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How it runs."""

    image: str
    port: int
    data: str
    """Where its volume is mounted."""
    env: Mapping[str, str] = field(repr=False)
    command: tuple[str, ...] | None = None
    """None: the image's own."""
    check: tuple[str, ...] | None = None
    """What ends with 0 in the container once its user can log in. None: a port that is open says as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What an add-on may take."""

    images: Mapping[str, str] = field(default_factory=lambda: IMAGES)
    memory_mb: int = 1024
    cpus: float = 1.0
    storage_gb: int = 5
    storage_class: str | None = None
    start_timeout_s: float = 300.0
    pull_timeout_s: float = 600.0


def addon_means(settings: DeployerSettings) -> Means:
    """As the settings say."""
    return Means(
        images={**IMAGES, **settings.addon_images},
        memory_mb=settings.addon_memory_mb,
        cpus=settings.addon_cpus,
        storage_gb=settings.addon_storage_gb,
        storage_class=settings.addon_storage_class,
        start_timeout_s=settings.addon_start_timeout_s,
    )


_PGDATA = "/pgdata"
"""A folder of its own, since the image's default has another place from version 18 on."""
_ASK_POSTGRES = 'PGPASSWORD="$POSTGRES_PASSWORD" psql -h 127.0.0.1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "SELECT 1"'
_ASK_MYSQL = 'MYSQL_PWD="$MYSQL_PASSWORD" mysql -h 127.0.0.1 -u "$MYSQL_USER" -e "SELECT 1" "$MYSQL_DATABASE"'
_REDIS = 'exec docker-entrypoint.sh redis-server --appendonly yes --requirepass "$REDIS_PASSWORD"'


def recipe(addon: AddOn, means: Means) -> Recipe:
    """How to run it.

    Raises:
        CannotRun: There is no image for its kind.
    """
    image = means.images.get(addon.kind)
    if image is None:
        raise CannotRun(
            f"There is no image for the add-on {addon.kind}",
            todo="Name one in KNARR_ADDON_IMAGES.",
            code="no_addon_image",
        )
    if addon.version:
        image = f"{_untagged(image)}:{addon.version}"
    user, password = addon.user, addon.password
    if addon.kind == "postgres":
        env = {"POSTGRES_USER": user, "POSTGRES_PASSWORD": password, "POSTGRES_DB": user, "PGDATA": _PGDATA}
        return Recipe(image=image, port=5432, data=_PGDATA, env=env, check=("sh", "-c", _ASK_POSTGRES))
    if addon.kind == "mysql":
        env = {"MYSQL_USER": user, "MYSQL_PASSWORD": password, "MYSQL_DATABASE": user, "MYSQL_ROOT_PASSWORD": password}
        return Recipe(image=image, port=3306, data="/var/lib/mysql", env=env, check=("sh", "-c", _ASK_MYSQL))
    if addon.kind == "mongodb":
        env = {"MONGO_INITDB_ROOT_USERNAME": user, "MONGO_INITDB_ROOT_PASSWORD": password}
        return Recipe(image=image, port=27017, data="/data/db", env=env)
    command = ("/bin/sh", "-c", _REDIS)
    return Recipe(image=image, port=6379, data="/data", env={"REDIS_PASSWORD": password}, command=command)


def _untagged(image: str) -> str:
    """`mongo` of `mongo:6.0.2`; a port in the registry's name stays."""
    before, colon, after = image.partition("@")[0].rpartition(":")
    return before if colon and "/" not in after else image.partition("@")[0]
