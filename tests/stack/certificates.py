"""Authorities for tests, and the certificates of servers that they sign; all of it is good for a day."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = timedelta(days=1)


class Authority:
    """Signs for servers.

    Args:
        name: Of the authority.
        folder: Gets its certificate, and a folder for each server.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name = _named(name)
        self._key = _new_key()
        self._folder = folder
        self.file = folder / "authority.pem"
        """What somebody who trusts it is given."""
        self.file.write_bytes(_pem(self._signed(name, self._key.public_key(), authority=True)))

    def certified(self, server: str, name: str) -> Path:
        """A folder with `server.pem` and `server.key`, which a server in a container may read, whoever it runs as.

        Args:
            server: Which one it is, for people.
            name: The host name or address by which clients are to call it, and no other.
        """
        key = _new_key()
        folder = self._folder / server
        folder.mkdir()
        (folder / "server.pem").write_bytes(_pem(self._signed(name, key.public_key(), authority=False)))
        (folder / "server.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        for each in (folder, *folder.iterdir()):
            each.chmod(0o755)
        return folder

    def _signed(self, name: str, key: rsa.RSAPublicKey, *, authority: bool) -> x509.Certificate:
        """As RFC 5280 wants it, which newer clients insist on."""
        now = datetime.now(UTC)
        ours = self._key.public_key()
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=authority, crl_sign=authority, key_encipherment=not authority,
            content_commitment=False, data_encipherment=False, key_agreement=False,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        draft = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ours), critical=False)
        )
        if not authority:
            draft = draft.add_extension(x509.SubjectAlternativeName([_general(name)]), critical=False).add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
            )
        return draft.sign(self._key, hashes.SHA256())


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
