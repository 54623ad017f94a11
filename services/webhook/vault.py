"""Webhook secrets at rest: sealed with the installation's one key for them."""

from seedwork.secret_box import SecretBox


class Vault(SecretBox):
    """Seals webhook secrets."""

    setting = "KNARR_SECRET_KEY"
    unreadable = "A webhook secret cannot be read"
    lost = (
        "Restore it from a backup, or make one for an empty installation:"
        ' python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())".'
    )
    exchanged = (
        "Put the earlier key back, or give each app a new secret: `knarr apps update APP --webhook-secret SECRET`."
    )

    def encrypt(self, secret: str) -> str:
        """The secret as it is kept."""
        return self.seal_bytes(secret.encode())

    def decrypt(self, kept: str) -> bytes:
        """The secret as it was given.

        Raises:
            Misconfigured: It was sealed with another key.
        """
        return self.unseal_bytes(kept)
