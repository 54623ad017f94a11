"""Config vars at rest: sealed with the installation's one key for them."""

import secrets
from collections.abc import Mapping

import orjson

from seedwork.secret_box import SecretBox


class Vault(SecretBox):
    """Seals config vars."""

    setting = "KNARR_CONFIG_KEY"
    unreadable = "The config vars cannot be read"
    lost = "Restore it from a backup: without it the config vars of all apps are lost."
    exchanged = "Put the earlier key back."

    def seal(self, values: Mapping[str, str]) -> str:
        """The config vars as they are kept."""
        return self.seal_bytes(orjson.dumps(dict(values)))

    def unseal(self, kept: str) -> dict[str, str]:
        """The config vars as they were given.

        Raises:
            Misconfigured: They were sealed with another key.
        """
        values: dict[str, str] = orjson.loads(self.unseal_bytes(kept))
        return values


def new_secret() -> str:
    """256 random bits, for a config var with `"generator": "secret"`."""
    return secrets.token_hex(32)
