"""Registries that want to know who we are: passwords, and tokens of a server of their own."""

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from ocistore import OpenedStore, open_store
from ocistore.registry import Patience
from ocistore.testing import put_image
from seedwork.errors import NotAllowed, Unauthenticated, Unavailable
from tests.stack.registries import OwnRegistry, own_registry

pytestmark = pytest.mark.stack("DOCKER_HOST")

QUICK = Patience(attempts=2, timeout_s=20.0, wait_initial_s=0.01, wait_max_s=0.05)
PASSWORD = "correct horse"
HTPASSWD = "knarr:$2b$04$UN6jgYv1eZu5ECJfTeqvluTGxi/mPZvEkGAz7pCGjBbQGBqAP/0ce\n"
"""That password, as `htpasswd -B` writes it."""


def opened(registry: OwnRegistry, user: str | None = "knarr", password: str | None = PASSWORD) -> OpenedStore:
    secret = None if password is None else SecretStr(password)
    return open_store(registry.url, user=user, password=secret, patience=QUICK)


async def whole_life(store: OpenedStore, folder: Path) -> None:
    """Everything that asks for another right."""
    image = await put_image(store, "staging/1", folder, {"app.py": "x"}, tags=["v1", "old"])
    await store.copy("staging/1", image.digest, to="team/shop", tags=["v1"])
    await store.tag("staging/1", image.digest, tags=["v1"])
    assert len(await store.images()) == 2
    assert await store.get("team/shop", image.digest, verify=True)
    assert [piece async for piece in store.read_blob("team/shop", image.layers[0].digest)]
    assert await store.remove("staging/1", image.digest) is True


async def refused(store: OpenedStore) -> Exception:
    with pytest.raises((Unauthenticated, NotAllowed)) as raised:
        await store.get("shop", "sha256:" + "0" * 64)
    return raised.value


# --- passwords --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_password(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRegistry]:
    folder = tmp_path_factory.mktemp("auth")
    (folder / "htpasswd").write_text(HTPASSWD)
    env = {
        "REGISTRY_AUTH": "htpasswd",
        "REGISTRY_AUTH_HTPASSWD_REALM": "test",
        "REGISTRY_AUTH_HTPASSWD_PATH": "/auth/htpasswd",
    }
    with own_registry(tmp_path_factory.mktemp("registry"), env=env, volumes=[f"{folder}:/auth:ro"]) as registry:
        yield registry


async def test_a_password_opens_the_registry(with_password: OwnRegistry, tmp_path: Path) -> None:
    """Everything that the image store does."""
    store = opened(with_password)

    await store.probe()
    await whole_life(store, tmp_path)

    await store.close()


@pytest.mark.parametrize(("user", "password"), [("knarr", "wrong"), ("nobody", PASSWORD), (None, None)])
async def test_a_wrong_password_is_told_with_what_to_change(
    with_password: OwnRegistry, user: str | None, password: str | None
) -> None:
    """The text names registry, repository and settings, and no password."""
    store = opened(with_password, user, password)

    said = str(await refused(store))
    with pytest.raises(Unauthenticated, match="KNARR_REGISTRY_PASSWORD"):
        await store.probe()

    assert with_password.host in said
    assert "shop" in said
    assert "KNARR_REGISTRY_PASSWORD" in said
    assert password is None or password not in said
    await store.close()


# --- tokens -----------------------------------------------------------------------------------------------------------


@dataclass
class TokenServer:
    """Issues tokens that a registry believes: distribution's token authentication specification."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    asked: list[dict[str, list[str]]] = field(default_factory=list)
    life_s: int = 300
    grants: frozenset[str] = frozenset({"pull", "push", "delete", "*"})
    realm: str = ""

    def certificate(self) -> x509.Certificate:
        """Its own, signed by itself."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens")])
        now = datetime.now(UTC)
        draft = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self.key.public_key())
        draft = draft.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        draft = draft.not_valid_after(now + timedelta(days=1))
        draft = draft.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return draft.sign(self.key, hashes.SHA256())

    def token(self, scopes: list[str]) -> str:
        """For these scopes, as far as they are granted."""
        chain = [base64.b64encode(self._certificate.public_bytes(serialization.Encoding.DER)).decode()]
        now = int(time.time())
        claims = {
            "iss": "tokens",
            "sub": "knarr",
            "aud": "registry",
            "jti": f"{len(self.asked)}",
            "iat": now - 5,
            "nbf": now - 5,
            "exp": now + self.life_s,
            "access": [self._access(scope) for scope in scopes],
        }
        signed = b".".join(
            _packed(orjson.dumps(part)) for part in ({"typ": "JWT", "alg": "ES256", "x5c": chain}, claims)
        )
        r, s = decode_dss_signature(self.key.sign(signed, ec.ECDSA(hashes.SHA256())))
        return (signed + b"." + _packed(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()

    def _access(self, scope: str) -> dict[str, Any]:
        kind, name, actions = scope.split(":")
        return {"type": kind, "name": name, "actions": [each for each in actions.split(",") if each in self.grants]}

    def answer(self, path: str, authorization: str) -> tuple[int, bytes]:
        """Status and body."""
        query = parse_qs(urlsplit(path).query)
        self.asked.append(query)
        if authorization != "Basic " + base64.b64encode(f"knarr:{PASSWORD}".encode()).decode():
            return 401, b'{"details": "wrong user or password"}'
        return 200, orjson.dumps({"token": self.token(query.get("scope", [])), "expires_in": self.life_s})

    @contextmanager
    def serving(self) -> Iterator[None]:
        """On a free port of this machine."""
        self._certificate = self.certificate()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = server.answer(self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - likewise
                """Quiet."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
            self.realm = f"http://127.0.0.1:{listening.server_address[1]}/token"
            thread = threading.Thread(target=listening.serve_forever)
            thread.start()
            try:
                yield
            finally:
                listening.shutdown()
                thread.join()

    def certificate_pem(self) -> bytes:
        """For the registry."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)


def _packed(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


@pytest.fixture(scope="module")
def tokens() -> Iterator[TokenServer]:
    server = TokenServer()
    with server.serving():
        yield server


@pytest.fixture(scope="module")
def running_with_tokens(tokens: TokenServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRegistry]:
    folder = tmp_path_factory.mktemp("auth")
    (folder / "tokens.pem").write_bytes(tokens.certificate_pem())
    env = {
        "REGISTRY_AUTH": "token",
        "REGISTRY_AUTH_TOKEN_REALM": tokens.realm,
        "REGISTRY_AUTH_TOKEN_SERVICE": "registry",
        "REGISTRY_AUTH_TOKEN_ISSUER": "tokens",
        "REGISTRY_AUTH_TOKEN_ROOTCERTBUNDLE": "/auth/tokens.pem",
    }
    with own_registry(tmp_path_factory.mktemp("registry"), env=env, volumes=[f"{folder}:/auth:ro"]) as registry:
        yield registry


@pytest.fixture
def with_tokens(running_with_tokens: OwnRegistry, tokens: TokenServer) -> OwnRegistry:
    running_with_tokens.wipe()
    tokens.asked.clear()
    tokens.life_s, tokens.grants = 300, frozenset({"pull", "push", "delete", "*"})
    return running_with_tokens


async def test_tokens_open_the_registry(with_tokens: OwnRegistry, tokens: TokenServer, tmp_path: Path) -> None:
    """For each repository and right one token, fetched once; a mount shows one for both repositories."""
    store = opened(with_tokens)

    await whole_life(store, tmp_path)

    scopes = [scope for query in tokens.asked for scope in query.get("scope", [])]
    assert "registry:catalog:*" in scopes
    assert any(len(query.get("scope", [])) == 2 for query in tokens.asked)
    assert len(tokens.asked) < 12
    assert {each for query in tokens.asked for each in query["service"]} == {"registry"}
    await store.close()


async def test_a_token_that_is_over_is_fetched_anew(
    with_tokens: OwnRegistry, tokens: TokenServer, tmp_path: Path
) -> None:
    """The registry refuses an old one; the same call goes on with another."""
    tokens.life_s = -120
    store = opened(with_tokens)
    with pytest.raises(Unauthenticated):
        await put_image(store, "shop", tmp_path, {"a": "1"})
    tokens.life_s = 300

    await put_image(store, "shop", tmp_path, {"a": "1"})

    assert len(await store.images()) == 1
    await store.close()


async def test_a_right_that_we_do_not_have_is_told(
    with_tokens: OwnRegistry, tokens: TokenServer, tmp_path: Path
) -> None:
    """A user who may only pull cannot put; the text names the repository."""
    tokens.grants = frozenset({"pull"})
    store = opened(with_tokens)

    with pytest.raises((Unauthenticated, NotAllowed), match="shop"):
        await put_image(store, "shop", tmp_path, {"a": "1"})

    await store.close()


async def test_a_wrong_password_at_the_token_server_is_told(with_tokens: OwnRegistry) -> None:
    """The text says that it was the token server, and does not hold the password."""
    store = opened(with_tokens, password="wrong")

    said = str(await refused(store))

    assert "token server" in said
    assert "wrong user or password" in said
    await store.close()


async def test_a_token_server_that_is_away_may_come_back(
    with_tokens: OwnRegistry, tokens: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its 503 is worth another attempt."""
    real, answers = tokens.answer, iter([(503, b"")])
    monkeypatch.setattr(tokens, "answer", lambda *args: next(answers, None) or real(*args))
    store = opened(with_tokens)

    assert await store.images() == []

    monkeypatch.setattr(tokens, "answer", lambda *_: (503, b""))
    other = opened(with_tokens)
    with pytest.raises(Unavailable, match="token server"):
        await other.images()
    await store.close()
    await other.close()


async def test_the_registry_itself_says_401_without_a_token(with_tokens: OwnRegistry) -> None:
    """So these tests have a registry that really asks."""
    async with httpx2.AsyncClient(base_url=with_tokens.url) as client:
        assert (await client.get("/v2/_catalog")).status_code == 401
