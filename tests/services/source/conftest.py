"""The service's own database and places, without the service around them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from seedwork.messages import new_id
from seedwork.participant import Work
from seedwork.testing.servers import database
from seedwork.unit_of_work import Database
from services.source import models
from services.source.archives import Archives
from services.source.locks import NamedLocks
from services.source.uploads import Uploads


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The service's folder."""
    return tmp_path / "home"


@pytest.fixture
async def db(home: Path) -> AsyncIterator[Database]:
    """The service's database, all tables made."""
    async with database("sqlite", home, models.metadata) as found:
        yield found


@pytest.fixture
def archives(db: Database, home: Path) -> Archives:
    """Archives on disk."""
    return Archives(db, home, NamedLocks(home / "locks"))


@pytest.fixture
def uploads(home: Path) -> Uploads:
    """Uploads on disk."""
    return Uploads(home)


def work_of(saga_id: str | None = None, app_id: str | None = None) -> Work:
    """What the participant tells a handler."""
    return Work(
        saga_id=saga_id or new_id(),
        step="source",
        app_id=app_id or new_id(),
        team="default",
        app="shop",
        attempt=1,
        fence=1,
    )


def stored(home: Path) -> set[str]:
    """Digests whose bytes are on disk."""
    return {f"sha256:{path.name}" for path in (home / "archives/sha256").iterdir()}


def drafts(home: Path) -> list[str]:
    """What is half-made on disk."""
    return [path.name for path in (home / "drafts").iterdir()]
