"""Observations that are not over, with the release that stays warm."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "observations",
        sa.Column("app_id", sa.String(36), primary_key=True),
        sa.Column("saga_id", sa.String(36), nullable=False),
        sa.Column("warm_saga_id", sa.String(36), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
    )
