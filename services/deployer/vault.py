"""Config vars at rest: sealed with one Fernet key, which is a setting or a file that only its owner can read."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import orjson
from cryptography.fernet import Fernet, InvalidToken
from pydantic import SecretStr

from seedwork.errors import Misconfigured


class Vault:
    """Seals config vars (Fernet: AES-128-CBC and HMAC-SHA256).

    Args:
        key: 32 bytes in URL-safe base64.
        where: Where it comes from; errors say so.

    Raises:
        Misconfigured: It is no Fernet key.
    """

    def __init__(self, key: bytes, *, where: str) -> None:
        self._where = where
        try:
            self._fernet = Fernet(key)
        except ValueError as error:
            raise Misconfigured(
                f"{where} holds no key",
                why="it must be 32 bytes in URL-safe base64",
                todo="Restore it from a backup: without it the config vars of all apps are lost.",
            ) from error

    @classmethod
    def open(cls, setting: SecretStr | None, file: Path) -> "Vault":
        """With the key of the setting, else of the file, else with a new one that is written there (mode 0600).

        Raises:
            Misconfigured: The key cannot be used, or the file cannot be read or written.
        """
        if setting is not None:
            return cls(setting.get_secret_value().encode(), where="KNARR_CONFIG_KEY")
        try:
            if not file.exists():
                _write_once(file, Fernet.generate_key())
            return cls(file.read_bytes().strip(), where=str(file))
        except OSError as error:
            raise Misconfigured(f"The key file {file} cannot be used", why=str(error)) from error

    def seal(self, values: Mapping[str, str]) -> str:
        """The config vars as they are kept."""
        return self._fernet.encrypt(orjson.dumps(dict(values))).decode()

    def unseal(self, kept: str) -> dict[str, str]:
        """The config vars as they were given.

        Raises:
            Misconfigured: They were sealed with another key.
        """
        try:
            values: dict[str, str] = orjson.loads(self._fernet.decrypt(kept))
        except InvalidToken as error:
            raise Misconfigured(
                "The config vars cannot be read",
                why=f"they were sealed with another key than that of {self._where}",
                todo="Put the earlier key back.",
            ) from error
        return values


def new_secret() -> str:
    """256 random bits, for a config var with `"generator": "secret"`."""
    return secrets.token_hex(32)


def _write_once(file: Path, key: bytes) -> None:
    """The whole key or nothing, also when two replicas start at once: the first one's stays."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(key)
        out.flush()
        os.fsync(out.fileno())
    try:
        os.link(draft, file)
    except FileExistsError:
        return
    finally:
        draft.unlink()
