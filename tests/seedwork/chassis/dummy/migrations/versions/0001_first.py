"""The kernel's tables and one of its own."""

import sqlalchemy as sa
from alembic import op

from seedwork.chassis.migrate import kernel_v1

revision = "0001"
down_revision = None


def upgrade() -> None:
    kernel_v1(op)
    op.create_table("things", sa.Column("id", sa.String(36), primary_key=True))
    op.create_index("ix_things", "things", ["id"])
