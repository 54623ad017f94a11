"""Tables of `saga_coordinator`: sagas, their log, the lanes of apps and the timers.

The truth is `body` (JSON; a saga's with `origin`) under `version`; the columns beside it are there to be searched by.
"""

from sqlalchemy import Boolean, Column, Index, Integer, MetaData, String, Table

from seedwork.tables import Id, Json, Ms, kernel_tables

metadata = MetaData()
kernel = kernel_tables(metadata)

sagas = Table(
    "sagas",
    metadata,
    Column("id", Id, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("definition", String(64), nullable=False),
    Column("app_id", Id, nullable=False),
    Column("app", String(100), nullable=False),
    Column("commit_id", String(64)),
    Column("state", String(16), nullable=False),
    Column("step", String(64)),  # worked on now, or the one for which the saga was undone
    Column("needs_attention", Boolean, nullable=False),
    Column("created_ms", Ms, nullable=False),
    Column("origin", Json, nullable=False),  # what it began with, written once
    Column("body", Json, nullable=False),
    # null: written by a coordinator of an earlier version during an upgrade; only platform-wide callers see such a row
    Column("team", String(100)),
    # each filter of GET /sagas has its index, in the order of the list; the id makes the order total
    Index("ix_sagas_created", "created_ms", "id"),
    Index("ix_sagas_state", "state", "created_ms", "id"),
    Index("ix_sagas_app", "app", "created_ms", "id"),
    Index("ix_sagas_app_id", "app_id", "created_ms", "id"),
    Index("ix_sagas_app_state", "app", "state", "created_ms", "id"),
    Index("ix_sagas_commit", "commit_id", "created_ms", "id"),
    Index("ix_sagas_at_step", "step", "created_ms", "id"),
    Index("ix_sagas_step", "step", "state", "created_ms", "id"),
    Index("ix_sagas_attention", "needs_attention", "created_ms", "id"),
    Index("ix_sagas_team", "team", "created_ms", "id"),
)

saga_log = Table(
    "saga_log",
    metadata,
    Column("saga_id", Id, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at_ms", Ms, nullable=False),
    Column("direction", String(8), nullable=False),
    Column("type", String(100), nullable=False),
    Column("message_id", Id),
    Column("causation_id", Id),
    Column("step", String(64)),
    Column("attempt", Integer),
    Column("state", String(16), nullable=False),
    Column("payload", Json, nullable=False),
    Column("context", Json),  # what `decide` received besides the payload; null for what went out
    sqlite_with_rowid=False,
)

lanes = Table(
    "lanes",
    metadata,
    Column("app_id", Id, primary_key=True),
    Column("holder", Id),
    Column("fence", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("body", Json, nullable=False),
)

timers = Table(
    "timers",
    metadata,
    Column("id", Id, primary_key=True),  # the saga's own timer: its id; a notice: an id of its own
    Column("saga_id", Id, nullable=False),
    Column("due_ms", Ms, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("step", String(64)),
    Column("attempt", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("by_saga", Id),  # a notice: on whose account
    Index("ix_timers_due", "due_ms"),
    Index("ix_timers_saga", "saga_id"),
)
