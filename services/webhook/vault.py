"""Webhook secrets at rest: encrypted with one Fernet key, which is a setting or a file that only its owner can read."""

import os
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from pydantic import SecretStr

from seedwork.errors import Misconfigured


class Vault:
    """Encrypts and decrypts short texts (Fernet: AES-128-CBC and HMAC-SHA256)."""

    def __init__(self, key: bytes, *, where: str) -> None:
        """Take the key.

        Args:
            key: 32 bytes in URL-safe base64.
            where: Where it comes from; errors say so.

        Raises:
            Misconfigured: It is no Fernet key.
        """
        self._where = where
        try:
            self._fernet = Fernet(key)
        except ValueError as error:
            raise Misconfigured(
                f"{where} holds no key",
                why="it must be 32 bytes in URL-safe base64",
                todo="Restore it from a backup, or make one for an empty installation:"
                ' python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())".',
            ) from error

    @classmethod
    def open(cls, setting: SecretStr | None, file: Path) -> "Vault":
        """With the key of the setting, else of the file, else with a new one that is written there (mode 0600).

        Raises:
            Misconfigured: The key cannot be used, or the file cannot be read.
        """
        if setting is not None:
            return cls(setting.get_secret_value().encode(), where="KNARR_SECRET_KEY")
        try:
            if not file.exists():
                _write_once(file, Fernet.generate_key())
            return cls(file.read_bytes().strip(), where=str(file))
        except OSError as error:
            raise Misconfigured(f"The key file {file} cannot be used", why=str(error)) from error

    def encrypt(self, secret: str) -> str:
        """The secret as it is kept."""
        return self._fernet.encrypt(secret.encode()).decode()

    def decrypt(self, kept: str) -> bytes:
        """The secret as it was given.

        Raises:
            Misconfigured: It was encrypted with another key.
        """
        try:
            return self._fernet.decrypt(kept)
        except InvalidToken as error:
            raise Misconfigured(
                "A webhook secret cannot be read",
                why=f"it was encrypted with another key than that of {self._where}",
                todo="Put the earlier key back, or give each app a new secret with PATCH /apps/{app}.",
            ) from error


def _write_once(file: Path, key: bytes) -> None:
    """The whole key or nothing, also when two replicas start at once: the first one's stays."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(key)
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(draft, file)
        except FileExistsError:
            return
    finally:
        draft.unlink()
