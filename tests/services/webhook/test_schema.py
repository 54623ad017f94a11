"""The migrations make the tables that the code expects."""

from seedwork.testing.migrations import assert_migrations_match
from services.webhook.app import MIGRATIONS
from services.webhook.models import metadata


async def test_migrations_and_models_agree() -> None:
    """A column that only one of them knows fails here, not in production."""
    await assert_migrations_match(metadata, MIGRATIONS)
