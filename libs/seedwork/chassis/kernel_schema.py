"""The kernel's tables as releases made them, for the migrations of every service: history, never edited.

A service's first migration calls `kernel_v1(op)` and makes its own tables. What the kernel changes later gets a
`kernel_v2` here, called by a new migration in every service. The tables as they are now stand in `seedwork.tables`.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import LONGTEXT

_ID = sa.String(36)
_JSON = sa.Text().with_variant(LONGTEXT(), "mysql")


def kernel_v1(op: Any) -> None:
    """Make inbox, outbox, jobs, dead letters and tokens.

    Args:
        op: `alembic.op`.
    """
    _messages_v1(op)
    _jobs_v1(op)
    op.create_table(
        "tokens",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("team", sa.String(100), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )


def _messages_v1(op: Any) -> None:
    op.create_table(
        "inbox",
        sa.Column("message_id", _ID, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_inbox_at", "inbox", ["at_ms"])
    op.create_table(
        "outbox",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("message_id", _ID, nullable=False, unique=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("envelope", _JSON, nullable=False),
    )
    op.create_table(
        "dead_letters",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("type", sa.String(100), nullable=False),
        sa.Column("saga_id", _ID, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("envelope", _JSON, nullable=False),
        sa.Column("resent_ms", sa.BigInteger),
    )
    op.create_index("ix_dead_letters_at", "dead_letters", ["at_ms"])


def _jobs_v1(op: Any) -> None:
    op.create_table(
        "jobs",
        sa.Column("saga_id", _ID, primary_key=True),
        sa.Column("step", sa.String(64), primary_key=True),
        sa.Column("app_id", _ID, nullable=False),
        sa.Column("kind", sa.String(100), nullable=False),
        sa.Column("accepted_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16)),
        sa.Column("command", _JSON),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("outcome", _JSON),
        sa.Column("undo_state", sa.String(16)),
        sa.Column("undo_command", _JSON),
        sa.Column("undo_attempt", sa.Integer, nullable=False),
        sa.Column("undo_outcome", _JSON),
        sa.Column("tombstone_ms", sa.BigInteger),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_until_ms", sa.BigInteger),
        sa.Column("lease_number", sa.Integer, nullable=False),
        sa.Column("lost_leases", sa.Integer, nullable=False),
        sa.Column("swept", sa.Boolean, nullable=False),
    )
    op.create_index("ix_jobs_state", "jobs", ["state", "kind", "accepted_ms"])
    op.create_index("ix_jobs_undo_state", "jobs", ["undo_state", "accepted_ms"])
    op.create_index("ix_jobs_lease_owner", "jobs", ["lease_owner"])
    op.create_index("ix_jobs_accepted", "jobs", ["accepted_ms"])
