"""Secrets at rest, whatever they are."""

import stat
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr

from seedwork.errors import Misconfigured
from seedwork.secret_box import SecretBox


class Box(SecretBox):
    setting = "KNARR_SECRET_KEY"
    unreadable = "The secret cannot be read"
    lost = "Restore the key."
    exchanged = "Put the earlier key back."


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    """The next start reads what this one wrote."""
    file = tmp_path / "service" / "secret.key"
    kept = Box.open(None, file).seal_bytes(b"correct-horse")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "correct-horse" not in kept
    assert Box.open(None, file).unseal_bytes(kept) == b"correct-horse"
    assert [each.name for each in file.parent.iterdir()] == ["secret.key"]


def test_a_setting_comes_before_the_file(tmp_path: Path) -> None:
    """Several replicas share a key; no file is made."""
    key = SecretStr(Fernet.generate_key().decode())
    kept = Box.open(key, tmp_path / "secret.key").seal_bytes(b"correct-horse")
    assert Box.open(key, tmp_path / "elsewhere").unseal_bytes(kept) == b"correct-horse"
    assert list(tmp_path.iterdir()) == []


def test_another_key_is_told_apart(tmp_path: Path) -> None:
    """The text says what to do; neither key nor secret is in it."""
    kept = Box.open(None, tmp_path / "one").seal_bytes(b"correct-horse")
    with pytest.raises(Misconfigured, match=r"another key.*Put the earlier key back"):
        Box.open(None, tmp_path / "two").unseal_bytes(kept)


def test_a_new_key_before_the_old_one_seals_and_both_open(tmp_path: Path) -> None:
    """What was sealed before is read; what is sealed from now on does not need the old key."""
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    before = Box.open(SecretStr(old), tmp_path).seal_bytes(b"correct-horse")
    both = Box.open(SecretStr(f"{new}, {old}"), tmp_path)
    assert both.unseal_bytes(before) == b"correct-horse"
    alone = Box.open(SecretStr(new), tmp_path)
    assert alone.unseal_bytes(both.seal_bytes(b"battery")) == b"battery"
    with pytest.raises(Misconfigured, match="another key"):
        alone.unseal_bytes(before)
    renewed = both.renewed(before)
    assert renewed is not None
    assert alone.unseal_bytes(renewed) == b"correct-horse"
    assert both.renewed(renewed) is None


@pytest.mark.parametrize("key", ["", "short", ",", "ü" * 44])
def test_what_is_no_key_is_said_at_the_start(tmp_path: Path, key: str) -> None:
    """From the setting and from the file."""
    with pytest.raises(Misconfigured, match="KNARR_SECRET_KEY holds no key"):
        Box.open(SecretStr(key), tmp_path / "secret.key")
    (tmp_path / "secret.key").write_text(key)
    with pytest.raises(Misconfigured, match=r"secret\.key holds no key"):
        Box.open(None, tmp_path / "secret.key")


def test_the_first_of_two_keys_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two replicas that start at once on one folder use one key."""
    file = tmp_path / "secret.key"
    first = Box.open(None, file)
    monkeypatch.setattr(Path, "exists", lambda _self: False)  # the second one looked before the first one wrote
    second = Box.open(None, file)
    assert second.unseal_bytes(first.seal_bytes(b"correct-horse")) == b"correct-horse"
