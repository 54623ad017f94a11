"""Builds and staged images."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

from seedwork.chassis.migrate import kernel_v1

revision = "0001"
down_revision = None


def upgrade() -> None:
    kernel_v1(op)
    op.create_table(
        "builds",
        sa.Column("saga_id", sa.String(36), primary_key=True),
        sa.Column("app_id", sa.String(36), nullable=False),
        sa.Column("app", sa.String(100), nullable=False),
        sa.Column("team", sa.String(100), nullable=False),
        sa.Column("commit", sa.String(40)),
        sa.Column("source_digest", sa.String(71), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(71)),
        sa.Column("layers", sa.Text().with_variant(LONGTEXT(), "mysql"), nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger),
    )
    op.create_index("ix_builds_app", "builds", ["app_id", "started_ms"])
    op.create_table(
        "staged",
        sa.Column("saga_id", sa.String(36), primary_key=True),
        sa.Column("app_id", sa.String(36), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("released_ms", sa.BigInteger),
    )
    op.create_index("ix_staged_image", "staged", ["app_id", "digest"])
    op.create_index("ix_staged_released", "staged", ["released_ms"])
