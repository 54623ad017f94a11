"""Add-ons: databases and caches that apps asked for."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0002"
down_revision = "0001"

_ID = sa.String(36)
_JSON = sa.Text().with_variant(LONGTEXT(), "mysql")


def upgrade() -> None:
    op.create_table(
        "addons",
        sa.Column("app_id", _ID, primary_key=True),
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("version", sa.String(128)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("saga_id", _ID, nullable=False),
        sa.Column("sealed", _JSON, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_addons_saga", "addons", ["saga_id"])
    op.create_index("ix_addons_state", "addons", ["state"])
