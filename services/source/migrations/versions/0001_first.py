"""The first release."""

import sqlalchemy as sa
from alembic import op

from seedwork.chassis.kernel_schema import kernel_v1

revision = "source_0001"
down_revision = None


def upgrade() -> None:
    kernel_v1(op)
    op.create_table(
        "archive_references",
        sa.Column("saga_id", sa.String(36), primary_key=True),
        sa.Column("digest", sa.String(71), primary_key=True),
        sa.Column("app_id", sa.String(36), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_archive_references_digest", "archive_references", ["digest"])
