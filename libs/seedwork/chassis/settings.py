"""Settings that every service has: environment over `.env` over `knarr.yaml`.

A service's own settings are a subclass in its `settings.py`. Both files stand in the home (`KNARR_HOME`);
`KNARR_CONFIG` names another `knarr.yaml`. The working directory counts for nothing: it may be a stranger's repository.
The keys of `knarr.yaml` are the field names without the prefix. Each service reads the keys that it knows, so that one
file can serve all of them.
"""

import os
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import yaml
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    YamlConfigSettingsSource,
)

from seedwork.chassis import server_settings, service_ports
from seedwork.errors import Misconfigured

SERVICE_PORTS = service_ports.SERVICE_PORTS

CommaSeparated = server_settings.CommaSeparated
Networks = server_settings.Networks

DOTENV = ".env"
YAML = "knarr.yaml"


def default_home() -> Path:
    """Return the folder in which everything is kept where no setting names another."""
    return Path.home() / ".knarr"


class ServiceSettings(server_settings.ServerSettings):
    """What each service needs to know, whatever it does."""

    home: Path = Field(default_factory=default_home)
    """Where everything is kept, one folder a service. The user's home by default, since it outlives `/tmp`."""

    host: str = "127.0.0.1"
    """The address to listen on. Loopback by default: nobody else on the network may talk to a fresh installation."""

    port_base: int = Field(default=8700, ge=0, le=65_000)
    """The services listen on this port plus 1 to 6; the base itself is kept for a web console."""

    database_url: str | None = None
    """An SQLAlchemy URL with an async driver; `{service}` in it becomes the service's name, since each has its own.

    Default: a SQLite file in the service's folder. On MySQL every service has a schema and a user of its own, both
    made by `knarr db upgrade`: `mysql+asyncmy://knarr_{service}:…@db/knarr_{service}`.
    """

    database_admin_url: SecretStr | None = None
    """A MySQL user who may make schemas and users, `mysql+asyncmy://root:…@db/`; read by `knarr db upgrade` alone.

    Without one, the schemas and users must be there already.
    """

    database_tls_ca: str | None = None
    """A file with the authority's certificate (PEM), for MySQL; the administrator's connection included.

    With it every connection is encrypted, and the server's certificate and its name in the URL are checked by that
    authority alone. None: they are not, since a server as it is shipped shows a certificate that nobody has signed.
    """

    bus: Literal["in-process", "pulsar"] = "in-process"
    """`in-process` where all services share one process (`knarr up`); `pulsar` where each has its own."""

    pulsar_url: str = "pulsar://127.0.0.1:6650"
    """The broker; `pulsar+ssl://` with TLS: its certificate and its name are checked."""

    pulsar_admin_url: str = "http://127.0.0.1:8080"
    """The broker's admin API, `https://` with TLS; `knarr bus` talks to it, and who waits for what that makes."""

    pulsar_tenant: str = Field(default="knarr", pattern=r"^[\w.-]+$")
    """The tenant whose topics are ours. `knarr bus setup` makes it, if it may."""

    pulsar_namespace: str = Field(default="default", pattern=r"^[\w.-]+$")
    """The namespace of the topics: two installations on one broker have one each."""

    pulsar_token: SecretStr | None = None
    """A JSON web token for the broker and its admin API, where they ask for one."""

    pulsar_tls_ca: str | None = None
    """A file with the authority's certificate (PEM), for `pulsar+ssl` and https; no other one is trusted then.

    None: public authorities, by the list of the package certifi for `pulsar+ssl`, and the system's for https.
    """

    pulsar_client_log: str = os.devnull
    """A file for the warnings of Pulsar's C++ client, to look into trouble; our own log says when it is away."""

    lease_s: float = Field(default=30.0, ge=1)
    """Seconds after which a replica that is silent is taken for dead, and another one takes up its work and messages.

    30: a pause of the machine or of the garbage collector of a neighbour is shorter, and people wait that long.
    """

    service_token: SecretStr | None = None
    """What services show each other. Without one, no caller is taken for a service."""

    token: SecretStr | None = None
    """The operator's token, known to every service as `local`: it has every scope of people, for every team."""

    team: str = "default"
    """The team of the operator's token: it owns what the operator creates."""

    test_endpoints: bool = False
    """Whether `POST /test/…` puts messages on the bus: for people who try things, never in production."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important lines that are written."""

    log_format: Literal["auto", "json", "text"] = "auto"
    """`auto`: text for a person on a terminal, JSON lines for a pipe."""

    otlp_endpoint: str | None = None
    """Where traces go, `http://collector:4318/v1/traces`. None: trace context is passed on, nothing is sent."""

    disk_reclaim_s: float = Field(default=3600.0, ge=0)
    """Seconds between two reclaims of what nothing needs on disks and engines; 0: only by `knarr disk --reclaim`.

    An hour: what a removed app leaves does not fill a disk sooner, and looking costs an engine some seconds.
    """

    stop_grace_s: float = Field(default=20.0, gt=0)
    """Seconds for work under way when the service stops; below the 30 s after which Kubernetes kills."""

    webhook_url: str | None = None
    """Base URL of `webhook`, where it is not at `port_base` on this machine."""
    source_url: str | None = None
    """Base URL of `source`, likewise."""
    builder_url: str | None = None
    """Base URL of `builder`, likewise."""
    registry_url: str | None = None
    """Base URL of `registry`, likewise."""
    deployer_url: str | None = None
    """Base URL of `deployer`, likewise."""
    saga_coordinator_url: str | None = None
    """Base URL of `saga_coordinator`, likewise."""

    @property
    def checks_hosts(self) -> bool:
        """Whether requests for unknown host names are refused: on loopback, and where names are set."""
        return (
            bool(self.allowed_hosts) or self.host == "localhost" or self.host.startswith("127.") or self.host == "::1"
        )

    def port(self, name: str) -> int:
        """The port of that service.

        Raises:
            Misconfigured: No service of that name has a port.
        """
        if name not in SERVICE_PORTS:
            raise Misconfigured(f"No service is called {name!r}", todo=f"Known services: {', '.join(SERVICE_PORTS)}.")
        return self.port_base + 1 + SERVICE_PORTS.index(name)

    def url_of(self, name: str) -> str:
        """The base URL of that service, without a slash at its end.

        Raises:
            Misconfigured: No service of that name has a port.
        """
        port = self.port(name)
        configured: str | None = getattr(self, f"{name}_url")
        if configured:
            return configured.rstrip("/")
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::", ""} else self.host  # noqa: S104  what we listen on
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def home_of(self, name: str) -> Path:
        """The folder that holds everything which that service keeps."""
        return self.home.expanduser().absolute() / name

    def database_url_of(self, name: str) -> str:
        """The SQLAlchemy URL of that service's database."""
        if self.database_url:
            return self.database_url.replace("{service}", name)
        return f"sqlite+aiosqlite:///{quote(str(self.home_of(name) / f'{name}.db'), safe='/ ')}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  of the working directory
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  pydantic's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then `.env` of the home, then `knarr.yaml`."""
        home = _home(init_settings, env_settings)
        dotenv = DotEnvSettingsSource(settings_cls, env_file=home / DOTENV)
        return init_settings, env_settings, dotenv, _yaml_source(settings_cls, home)


def files_read(home: Path) -> list[Path]:
    """Return the files that settings of this home come from, the one that counts first."""
    named = os.environ.get("KNARR_CONFIG")
    places = (home / DOTENV, Path(named) if named else home / YAML)
    return [path.absolute() for path in places if path.is_file()]


def misconfigured(error: ValidationError) -> Misconfigured:
    """Return what pydantic found wrong with the settings, in the words of the settings; no value is repeated."""
    wrong = "; ".join(f"KNARR_{'_'.join(map(str, each['loc'])).upper()}: {each['msg']}" for each in error.errors())
    return Misconfigured(
        "A setting is wrong", why=wrong, todo="Correct it in the environment, or in `.env` or `knarr.yaml` of the home."
    )


def _home(arguments: PydanticBaseSettingsSource, environment: PydanticBaseSettingsSource) -> Path:
    """Return the folder of the settings files: never the working directory, which may be a stranger's repository."""
    given = arguments().get("home") or environment().get("home") or default_home()
    return Path(given).expanduser().absolute()


def _yaml_source(settings_cls: type[BaseSettings], home: Path) -> YamlConfigSettingsSource:
    named = os.environ.get("KNARR_CONFIG")
    path = Path(named) if named else home / YAML
    if named and not path.is_file():
        raise Misconfigured(
            f"There is no file {named}", why="KNARR_CONFIG names it", todo="Create it or unset KNARR_CONFIG."
        )
    try:
        return YamlConfigSettingsSource(settings_cls, yaml_file=path)
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise Misconfigured(
            f"{path} cannot be read",
            why=reason,
            todo="It must be a YAML mapping of setting to value, such as `port_base: 8700`.",
        ) from error
