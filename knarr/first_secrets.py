"""The secrets of a new installation, made once: random values out, in files for compose or in a cluster as Secrets.

A bundle is what changes together, as `NAME=value`: `platform` for all services; one for each service, its database
user; `<service>-key` for those that encrypt what they keep; `mysql` for the server and the job that makes schemas; in
files, `images` for the registry and those that push and pull. What
is there already stays as it is, so that this may run before every start; whoever deletes a bundle gets a new one the
next time. (Without its key, what was encrypted cannot be read again.)

    python -m knarr.first_secrets files /secrets --homes /homes
    python -m knarr.first_secrets kubernetes

`files`: the bundles are `<folder>/<bundle>.env`, and each service finds what it needs in the file `.env` of its home,
which is mounted at `<homes>/<service>`; the services read that file by themselves. `kubernetes`: a Secret
`knarr-<bundle>` in the namespace of the pod in which this runs.
"""

import argparse
import base64
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx2

from knarr.htpasswd import USER, htpasswd
from seedwork.chassis.settings import SERVICE_PORTS
from seedwork.errors import KnarrError, NotAllowed, Unavailable

USER_ID = 10001
"""The user of the image."""
KEYS = {"webhook-key": "KNARR_SECRET_KEY", "deployer-key": "KNARR_CONFIG_KEY"}
"""What encrypts webhook secrets and config vars at rest."""
BUNDLES = ("platform", "mysql", *SERVICE_PORTS, *KEYS)
REGISTRY_BUNDLE = "images"
"""Login of the registry that compose starts. In a cluster the registry is the operator's."""
REGISTRY_USERS = ("builder", "registry", "deployer")
"""Services that push, copy or pull images."""
_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S = 30.0

Bundle = Mapping[str, str]


def make(bundle: str, database: str) -> Bundle:
    """A new bundle of that name.

    Args:
        bundle: One of `BUNDLES`, or `REGISTRY_BUNDLE`.
        database: `host[:port]` of the MySQL server.
    """
    if bundle == "platform":
        return {"KNARR_TOKEN": secrets.token_urlsafe(32), "KNARR_SERVICE_TOKEN": secrets.token_urlsafe(32)}
    if bundle in KEYS:
        return {KEYS[bundle]: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()}
    password = secrets.token_urlsafe(24)
    if bundle == REGISTRY_BUNDLE:
        return {"KNARR_REGISTRY_USER": USER, "KNARR_REGISTRY_PASSWORD": password}
    if bundle == "mysql":
        return {
            "MYSQL_ROOT_PASSWORD": password,
            "KNARR_DATABASE_ADMIN_URL": f"mysql+asyncmy://root:{password}@{database}/",
        }
    return {"KNARR_DATABASE_URL": f"mysql+asyncmy://knarr_{bundle}:{password}@{database}/knarr_{bundle}"}


# --- files ------------------------------------------------------------------------------------------------------------


def to_files(folder: Path, homes: Path, database: str, owners: Mapping[str, int]) -> list[str]:
    """Keep the bundles in a folder, and give each home its `.env`; the bundles that were made.

    Args:
        folder: Only for us.
        homes: Holds a folder for each service, and for `mysql` and `images`, which get their passwords as files.
        database: `host[:port]` of the MySQL server.
        owners: The user by service, where it is not `USER_ID`.
    """
    made = []
    for name in (*BUNDLES, REGISTRY_BUNDLE):
        path = folder / f"{name}.env"
        if not path.exists():
            _write(path, _lines(make(name, database)))
            made.append(name)
    for service in SERVICE_PORTS:
        owner = owners.get(service, USER_ID)
        home = homes / service
        os.chown(home, owner, owner)
        own = [name for name in ("platform", service, f"{service}-key") if name in BUNDLES]
        own += [REGISTRY_BUNDLE] if service in REGISTRY_USERS else []
        _write(home / ".env", "".join((folder / f"{name}.env").read_text() for name in own), owner=owner)
    root = _read(folder / "mysql.env")
    # The server's own user reads it, whose number is the image's affair; only the server has this folder.
    _write(homes / "mysql" / "root-password", root["MYSQL_ROOT_PASSWORD"], mode=0o444)
    login = _read(folder / f"{REGISTRY_BUNDLE}.env")
    _write(homes / "images" / "htpasswd", htpasswd(login["KNARR_REGISTRY_PASSWORD"]).decode(), mode=0o444)
    return made


def _read(path: Path) -> Bundle:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def _lines(bundle: Bundle) -> str:
    return "".join(f"{name}={value}\n" for name, value in bundle.items())


def _write(path: Path, text: str, *, owner: int | None = None, mode: int = 0o400) -> None:
    """Replace a file at once: whoever reads it meanwhile sees the old text or the new one."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
    new.chmod(mode)
    if owner is not None:
        os.chown(new, owner, owner)
    new.replace(path)


# --- a cluster --------------------------------------------------------------------------------------------------------


def to_cluster(database: str) -> list[str]:
    """Make the Secrets that are not there; the bundles that were made.

    Raises:
        NotAllowed: The pod's service account may not make Secrets.
        Unavailable: The cluster's API does not answer.
    """
    namespace = (_POD / "namespace").read_text()
    headers = {"Authorization": f"Bearer {(_POD / 'token').read_text()}"}
    with httpx2.Client(
        base_url="https://kubernetes.default.svc", verify=str(_POD / "ca.crt"), headers=headers, timeout=_TIMEOUT_S
    ) as http:
        return [
            name
            for name in BUNDLES
            if _create(http, namespace, f"knarr-{name.replace('_', '-')}", make(name, database))
        ]


def _create(http: httpx2.Client, namespace: str, name: str, bundle: Bundle) -> bool:
    """False: there is one of that name."""
    labels = {"app.kubernetes.io/part-of": "knarr"}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": labels},
        "stringData": bundle,
    }
    try:
        answer = http.post(f"/api/v1/namespaces/{namespace}/secrets", json=secret)
    except httpx2.HTTPError as error:
        raise Unavailable("The cluster's API does not answer", why=type(error).__name__) from error
    if answer.status_code == 409:
        return False
    if answer.status_code in (401, 403):
        raise NotAllowed(
            f"The Secret {name} may not be made",
            why=answer.json().get("message", ""),
            todo="The pod's service account needs the verb `create` on secrets.",
        )
    if answer.status_code != 201:
        raise Unavailable(f"The Secret {name} was not made", why=f"the API answered {answer.status_code}")
    return True


def _owners(pairs: list[str]) -> dict[str, int]:
    return {service: int(number) for service, _, number in (pair.partition("=") for pair in pairs)}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m knarr.first_secrets", description=__doc__)
    parser.add_argument("--database", default="mysql:3306", metavar="HOST[:PORT]")
    ways = parser.add_subparsers(dest="way", required=True)
    files = ways.add_parser("files")
    files.add_argument("folder", type=Path)
    files.add_argument("--homes", type=Path, required=True)
    files.add_argument("--owner", action="append", default=[], metavar="SERVICE=UID")
    ways.add_parser("kubernetes")
    asked = parser.parse_args(arguments)
    try:
        if asked.way == "files":
            made = to_files(asked.folder, asked.homes, asked.database, _owners(asked.owner))
        else:
            made = to_cluster(asked.database)
    except KnarrError as error:
        sys.exit(error.message)
    sys.stdout.write(f"made: {', '.join(made) or 'nothing, all of it was there'}\n")


if __name__ == "__main__":
    main()
