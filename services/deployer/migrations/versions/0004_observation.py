"""Observation of releases, drifts, and numbers of instances that persons set."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0004"
down_revision = "0003"

_JSON = sa.Text().with_variant(LONGTEXT(), "mysql")


def upgrade() -> None:
    op.add_column("apps", sa.Column("observe_s", sa.Float))
    op.add_column("apps", sa.Column("newest_saga", sa.String(36)))
    op.add_column("apps", sa.Column("scale", _JSON))
    op.add_column("releases", sa.Column("watched_digest", sa.String(71)))
    op.add_column("releases", sa.Column("observe_until_ms", sa.BigInteger))
    op.create_table(
        "drifts",
        sa.Column("app_id", sa.String(36), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("saga_id", sa.String(36), nullable=False),
        sa.Column("what", sa.String(500), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("repaired_ms", sa.BigInteger),
    )
