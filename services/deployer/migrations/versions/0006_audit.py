"""Who read values of config vars."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("entry_id", sa.String(36), primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("team", sa.String(100), nullable=False),
        sa.Column("app_id", sa.String(36), nullable=False),
        sa.Column("app", sa.String(100), nullable=False),
        sa.Column("by", sa.String(100), nullable=False),
        sa.Column("what", sa.String(500), nullable=False),
    )
    op.create_index("ix_audit_team", "audit", ["team", "entry_id"])
    op.create_index("ix_audit_app", "audit", ["app_id", "entry_id"])
    op.create_index("ix_audit_at", "audit", ["at_ms"])
