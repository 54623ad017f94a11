"""Secrets at rest: bytes in, text for a column out, and back, under one key.

The key (Fernet: AES-128-CBC and HMAC-SHA256) is a setting, or a file that only its owner can read and that is made
once. To change it, the new one is put before the earlier ones, with commas between: the first one seals, all of them
open. A service derives a box that says in its own words what is in it.
"""

import os
from pathlib import Path
from typing import ClassVar, Self

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from seedwork.errors import Misconfigured
from seedwork.used import refuse_lost_key


class SecretBox:
    """Seals and opens.

    Args:
        key: 32 bytes in URL-safe base64; several with commas between them: the first one seals.
        where: Where it comes from; errors say so.

    Raises:
        Misconfigured: It is no Fernet key.
    """

    setting: ClassVar[str]
    """The environment variable that may hold the key."""
    unreadable: ClassVar[str]
    """What happened, where something was sealed with another key."""
    lost: ClassVar[str]
    """What to do where there is no key any more."""
    exchanged: ClassVar[str]
    """What to do where it is another one."""

    def __init__(self, key: bytes, *, where: str) -> None:
        self._where = where
        try:
            keys = [Fernet(each.strip()) for each in key.split(b",")]
        except ValueError as error:
            raise Misconfigured(
                f"{where} holds no key", why="it must be 32 bytes in URL-safe base64", todo=self.lost
            ) from error
        self._first, self._fernet = keys[0], MultiFernet(keys)

    @classmethod
    def open(cls, setting: SecretStr | None, file: Path) -> Self:
        """With the key of the setting, else of the file, else with a new one that is written there (mode 0600).

        Raises:
            Misconfigured: The key cannot be used, the file cannot be read or written, or the home had a key that is
                missing.
        """
        if setting is not None:
            return cls(setting.get_secret_value().encode(), where=cls.setting)
        try:
            if not file.exists():
                refuse_lost_key(file)
                _write_once(file, Fernet.generate_key())
            return cls(file.read_bytes().strip(), where=str(file))
        except OSError as error:
            raise Misconfigured(f"The key file {file} cannot be used", why=str(error)) from error

    def seal_bytes(self, secret: bytes) -> str:
        """The secret as it is kept."""
        return self._fernet.encrypt(secret).decode()

    def unseal_bytes(self, kept: str) -> bytes:
        """The secret as it was given.

        Raises:
            Misconfigured: It was sealed with another key.
        """
        try:
            return self._fernet.decrypt(kept)
        except InvalidToken as error:
            raise Misconfigured(
                self.unreadable, why=f"sealed with another key than that of {self._where}", todo=self.exchanged
            ) from error

    def renewed(self, kept: str) -> str | None:
        """The same secret as it is kept under the first key; None: so it is already.

        Raises:
            Misconfigured: It was sealed with another key.
        """
        try:
            self._first.decrypt(kept)
        except InvalidToken:
            return self.seal_bytes(self.unseal_bytes(kept))
        return None


def _write_once(file: Path, key: bytes) -> None:
    """The whole key or nothing, also when two replicas start at once: the first one's stays."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(key)
            out.flush()
            os.fsync(out.fileno())
        os.link(draft, file)
    except FileExistsError:
        return
    finally:
        draft.unlink(missing_ok=True)
