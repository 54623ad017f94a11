"""Webhook secrets at rest; how they are sealed is the kernel's `SecretBox`."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from seedwork.errors import Misconfigured
from services.webhook.vault import Vault


def test_a_secret_is_sealed_and_comes_back(tmp_path: Path) -> None:
    """What is kept does not show it."""
    vault = Vault.open(None, tmp_path / "secret.key")
    kept = vault.encrypt("correct-horse")
    assert "correct-horse" not in kept
    assert vault.decrypt(kept) == b"correct-horse"


def test_errors_name_the_setting_and_the_way_out(tmp_path: Path) -> None:
    """Another key is no end: apps can get new secrets."""
    kept = Vault.open(None, tmp_path / "one").encrypt("correct-horse")
    with pytest.raises(Misconfigured, match=r"another key.*`knarr apps update APP --webhook-secret SECRET`"):
        Vault.open(None, tmp_path / "two").decrypt(kept)
    with pytest.raises(Misconfigured, match="KNARR_SECRET_KEY holds no key"):
        Vault.open(SecretStr("short"), tmp_path / "secret.key")
