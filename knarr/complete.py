"""Whether a home has everything that it had: `knarr up` and `knarr db upgrade` refuse one that lost a file.

The records of the services (`seedwork.used`) say what there was. A home of a version without records counts as used
where an app has left something in it; then every service must have its database, and its keys.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from knarr.home import Home
from seedwork import used
from seedwork.chassis.settings import ServiceSettings
from seedwork.unit_of_work import Database

TRACES = ("deployer/releases", "deployer/logs", "builder/logs", "source/archives")
"""Folders that are empty until something is deployed."""
KEYS = {"webhook": "secret.key", "deployer": "config.key"}
"""Key files, where the key is no setting."""
_KEY_SETTINGS = ("secret_key", "config_key")


def refuse_incomplete(home: Home, settings: Mapping[str, ServiceSettings]) -> None:
    """Refuse a used home without one of its databases or keys.

    Args:
        home: Which home.
        settings: Of each service that is about to start, by its name.

    Raises:
        Misconfigured: The text names every file that is missing, empty or cut off, and what to do.
    """
    recorded = any(used.record_of(home.path, name) for name in settings)
    unrecorded = not recorded and is_used(home)
    found: list[str] = []
    for name, each in settings.items():
        file = Database(each.database_url_of(name)).file
        keys = not any(getattr(each, setting, None) for setting in _KEY_SETTINGS)
        found += used.lost(home.path, name, database=file, keys=keys)
        if unrecorded:
            found += _lost_without_record(home, name, file=file, keys=keys)
    if found:
        raise used.refusal(home.path, found)


def is_used(home: Home) -> bool:
    """Whether an app left something in the home."""
    return any(_has_entries(home.path / trace) for trace in TRACES)


def _lost_without_record(home: Home, name: str, *, file: Path | None, keys: bool) -> Iterable[str]:
    if file is not None and (fault := used.fault_of(file)):
        yield f"its database {file} {fault}"
    key = home.path / name / KEYS[name] if name in KEYS else None
    if keys and key is not None and not key.is_file():
        yield f"its key {key} is missing"


def _has_entries(folder: Path) -> bool:
    try:
        return next(folder.iterdir(), None) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False
