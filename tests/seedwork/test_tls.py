"""What a setting with an authority's certificate may be, and which errors are about trust; servers: tests/stack."""

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ocistore import open_store
from seedwork.adapters.pulsar_client import PulsarAddress
from seedwork.errors import Misconfigured, Unavailable
from seedwork.tls import trusting, why_untrusted
from seedwork.unit_of_work import Database
from tests.stack.certificates import Authority


async def open_database(file: str) -> None:
    await Database("mysql+asyncmy://user:password@db.invalid/schema", tls_ca=file).open()


async def open_registry(file: str) -> None:
    open_store("https://registry.invalid", tls_ca=file)


async def address_pulsar(file: str) -> None:
    PulsarAddress(url="pulsar+ssl://pulsar.invalid", admin_url="https://pulsar.invalid", tls_ca=file).trust()


@pytest.mark.parametrize(
    ("begin", "setting"),
    [
        (open_database, "KNARR_DATABASE_TLS_CA"),
        (open_registry, "KNARR_REGISTRY_TLS_CA"),
        (address_pulsar, "KNARR_PULSAR_TLS_CA"),
    ],
)
@pytest.mark.parametrize("content", [None, "", "no certificate"])
async def test_a_file_of_no_use_is_named_with_its_setting(
    begin: Callable[[str], Awaitable[None]], setting: str, content: str | None, tmp_path: Path
) -> None:
    """Before anything is connected: it is not there, is empty, or is something else."""
    file = tmp_path / "authority.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(Misconfigured, match=rf"{file} cannot be used: .+ {setting} must name a file"):
        await begin(str(file))


def test_what_trusts_an_authority_checks_certificate_and_name(tmp_path: Path) -> None:
    """And trusts nobody else, unless it is told to."""
    context = trusting(str(Authority("ours", tmp_path).file), setting="KNARR_DATABASE_TLS_CA")
    assert len(context.get_ca_certs()) == 1
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def fault_of_handshake(answer: bytes) -> Exception:
    """What the library raises when the other side answers that, and says no more."""
    incoming = ssl.MemoryBIO()
    talking = ssl.create_default_context().wrap_bio(incoming, ssl.MemoryBIO(), server_hostname="db.invalid")
    incoming.write(answer)
    incoming.write_eof()
    with pytest.raises(ssl.SSLError) as fault:
        talking.do_handshake()
    return fault.value


def behind(fault: Exception) -> Exception:
    """As adapters hand it on."""
    error = Unavailable("The server does not answer")
    error.__cause__ = OSError("no connection")
    error.__cause__.__cause__ = fault
    return error


def test_a_server_without_tls_is_told_from_a_connection_that_breaks() -> None:
    """The one waits for a person, the other one passes by itself."""
    plain = behind(fault_of_handshake(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    assert "does not speak TLS" in str(why_untrusted(plain))
    assert why_untrusted(behind(fault_of_handshake(b""))) is None
    assert why_untrusted(behind(ConnectionResetError())) is None
    assert why_untrusted(None) is None
