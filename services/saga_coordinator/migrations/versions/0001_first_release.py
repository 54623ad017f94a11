"""The first release."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

from seedwork.chassis.kernel_schema import kernel_v1

revision = "saga_coordinator_0001"
down_revision = None

ID = sa.String(36)
JSON = sa.Text().with_variant(LONGTEXT(), "mysql")


def upgrade() -> None:
    kernel_v1(op)
    op.create_table(
        "sagas",
        sa.Column("id", ID, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("definition", sa.String(64), nullable=False),
        sa.Column("app_id", ID, nullable=False),
        sa.Column("app", sa.String(100), nullable=False),
        sa.Column("commit_id", sa.String(64)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("step", sa.String(64)),
        sa.Column("needs_attention", sa.Boolean, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("origin", JSON, nullable=False),
        sa.Column("body", JSON, nullable=False),
    )
    op.create_index("ix_sagas_created", "sagas", ["created_ms", "id"])
    op.create_index("ix_sagas_state", "sagas", ["state", "created_ms", "id"])
    op.create_index("ix_sagas_app", "sagas", ["app", "created_ms", "id"])
    op.create_index("ix_sagas_app_id", "sagas", ["app_id", "created_ms", "id"])
    op.create_index("ix_sagas_app_state", "sagas", ["app", "state", "created_ms", "id"])
    op.create_index("ix_sagas_commit", "sagas", ["commit_id", "created_ms", "id"])
    op.create_index("ix_sagas_step", "sagas", ["step", "state", "created_ms", "id"])
    op.create_index("ix_sagas_attention", "sagas", ["needs_attention", "created_ms", "id"])
    op.create_table(
        "saga_log",
        sa.Column("saga_id", ID, primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("direction", sa.String(8), nullable=False),
        sa.Column("type", sa.String(100), nullable=False),
        sa.Column("message_id", ID),
        sa.Column("causation_id", ID),
        sa.Column("step", sa.String(64)),
        sa.Column("attempt", sa.Integer),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("payload", JSON, nullable=False),
        sa.Column("context", JSON),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "lanes",
        sa.Column("app_id", ID, primary_key=True),
        sa.Column("holder", ID),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("body", JSON, nullable=False),
    )
    op.create_table(
        "timers",
        sa.Column("id", ID, primary_key=True),
        sa.Column("saga_id", ID, nullable=False),
        sa.Column("due_ms", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("step", sa.String(64)),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("by_saga", ID),
    )
    op.create_index("ix_timers_due", "timers", ["due_ms"])
    op.create_index("ix_timers_saga", "timers", ["saga_id"])
