"""Where images are, as a setting says it, in; the image store, ready to be used, out.

A path is an OCI layout in a directory, `http(s)://host[:port][/prefix]` a registry. The services that share a store use
the same settings, so that one file or environment serves all of them.
"""

import ssl
from pathlib import Path
from typing import Annotated, Protocol

import httpx2
from pydantic import BeforeValidator, SecretStr

from ocistore.distribution import DistributionStore
from ocistore.layout import OciLayout
from ocistore.registry import TLS_SETTING, Credentials, Patience, Registry
from ocistore.store import ImageStore
from seedwork import tls
from seedwork.chassis.settings import ServiceSettings
from seedwork.errors import Misconfigured

Place = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
"""A path or a registry's URL."""


class OpenedStore(ImageStore, Protocol):
    """An image store with a beginning and an end."""

    async def open(self) -> None:
        """Get ready; the first change does it by itself."""

    async def close(self) -> None:
        """Leave nothing open."""

    async def probe(self) -> None:
        """Look once whether the store can be used.

        Raises:
            KnarrError: It cannot; the text says why, and what to do.
        """


class MakeClient(Protocol):
    """Makes a registry's HTTP client, such as `Service.client` with its circuit breaker."""

    def __call__(self, *, trust: ssl.SSLContext | None) -> httpx2.AsyncClient:
        """A client that checks servers by `trust`; none: by the system's authorities."""


class ImageStoreSettings(ServiceSettings):
    """What builder, registry and deployer must agree on."""

    image_store: Place | None = None
    """A folder, which becomes an OCI layout, or `https://host[:port][/prefix]`, a registry.

    Default: the folder `<home>/registry/images`. Builder, registry and deployer need the same.
    """

    registry_user: str | None = None
    """Who we are at the registry. None: anonymous."""

    registry_password: SecretStr | None = None
    """That user's password or token."""

    registry_insecure: bool = False
    """True: plain `http://` to another machine is accepted. Off, since it shows the password to the network between."""

    registry_tls_ca: str | None = None
    """A file with the certificate (PEM) of an authority that is trusted at an `https://` registry, beside the system's.

    For knarr's own requests: engines, BuildKit and the nodes of a cluster have trust stores of their own.
    """

    def image_store_place(self) -> str:
        """The path or URL."""
        place = self.image_store or str(self.home / "registry" / "images")
        return place if is_registry(place) else str(Path(place).expanduser().absolute())

    def open_image_store(self, client: MakeClient | None = None) -> OpenedStore:
        """The store; see `open_store`."""
        return open_store(
            self.image_store_place(),
            user=self.registry_user,
            password=self.registry_password,
            allow_http=self.registry_insecure,
            tls_ca=self.registry_tls_ca,
            client=client,
        )


def is_registry(place: str) -> bool:
    """Whether that names a registry, not a folder."""
    return "://" in place


def open_store(
    place: str | Path,
    *,
    user: str | None = None,
    password: SecretStr | None = None,
    allow_http: bool = False,
    tls_ca: str | None = None,
    client: MakeClient | None = None,
    patience: Patience | None = None,
) -> OpenedStore:
    """The image store in that place; nothing is touched or asked before its first use.

    Args:
        place: A folder, or a registry's URL.
        user: For a registry.
        password: That user's.
        allow_http: Plain `http://` also to other machines than this one.
        tls_ca: A file with an authority's certificate, which is trusted beside the system's.
        client: Makes the HTTP client. Default: one of the store's own.
        patience: How long a registry is tried again.

    Raises:
        Misconfigured: The URL is no registry's, not encrypted, half of the credentials is missing, or the authority's
            file is of no use.
    """
    if not is_registry(str(place)):
        return OciLayout(Path(place))
    if (user is None) != (password is None):
        raise Misconfigured(
            "A registry's credentials are a user and a password, and one of them is missing",
            todo="Set KNARR_REGISTRY_USER and KNARR_REGISTRY_PASSWORD, or neither.",
        )
    credentials = Credentials(user=user, password=password) if user is not None and password is not None else None
    trust = tls.trusting(tls_ca, setting=TLS_SETTING, besides=httpx2.create_ssl_context()) if tls_ca else None
    http = client(trust=trust) if client else httpx2.AsyncClient(trust_env=False, verify=trust or True)
    return DistributionStore(
        Registry(str(place), client=http, credentials=credentials, allow_http=allow_http, patience=patience)
    )
