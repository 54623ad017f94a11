"""The tables that every service has: inbox, outbox, jobs, dead letters, tokens.

Each service's `models.py` calls `kernel_tables(metadata)`, so that they stand in its own database beside its own
tables. Times are milliseconds since 1970 by the database's clock; JSON is text.
"""

from dataclasses import dataclass
from typing import Self

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, String, Table, Text
from sqlalchemy.dialects.mysql import LONGTEXT

Ms = BigInteger
Json = Text().with_variant(LONGTEXT(), "mysql")
Id = String(36)


@dataclass(frozen=True, slots=True)
class KernelTables:
    """The kernel's tables in one service's metadata."""

    inbox: Table
    outbox: Table
    jobs: Table
    dead_letters: Table
    tokens: Table

    @classmethod
    def of(cls, metadata: MetaData) -> Self:
        """Find them in the metadata of a service that has called `kernel_tables`."""
        return cls(**{name: metadata.tables[name] for name in cls.__slots__})


def kernel_tables(metadata: MetaData) -> KernelTables:
    """Define the kernel's tables in this metadata."""
    inbox = Table(
        "inbox",
        metadata,
        Column("message_id", Id, primary_key=True),
        Column("at_ms", Ms, nullable=False),
        Index("ix_inbox_at", "at_ms"),
    )
    outbox = Table(
        "outbox",
        metadata,
        Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("message_id", Id, nullable=False, unique=True),
        Column("at_ms", Ms, nullable=False),
        Column("envelope", Json, nullable=False),
    )
    jobs = Table(
        "jobs",
        metadata,
        Column("saga_id", Id, primary_key=True),
        Column("step", String(64), primary_key=True),
        Column("app_id", Id, nullable=False),
        Column("kind", String(100), nullable=False),
        Column("accepted_ms", Ms, nullable=False),
        # the work: queued, running, done; null where only an undo ever came
        Column("state", String(16)),
        Column("command", Json),
        Column("attempt", Integer, nullable=False, default=0),
        Column("outcome", Json),
        # its undo: queued, running, done, failed; null where none came
        Column("undo_state", String(16)),
        Column("undo_command", Json),
        Column("undo_attempt", Integer, nullable=False, default=0),
        Column("undo_outcome", Json),
        Column("tombstone_ms", Ms),
        # who works on it now
        Column("lease_owner", String(64)),
        Column("lease_until_ms", Ms),
        Column("lease_number", Integer, nullable=False, default=0),
        Column("lost_leases", Integer, nullable=False, default=0),
        Column("swept", Boolean, nullable=False, default=False),
        Index("ix_jobs_state", "state", "kind", "accepted_ms"),
        Index("ix_jobs_undo_state", "undo_state", "accepted_ms"),
        Index("ix_jobs_lease_owner", "lease_owner"),
        Index("ix_jobs_accepted", "accepted_ms"),
    )
    dead_letters = Table(
        "dead_letters",
        metadata,
        Column("id", Id, primary_key=True),
        Column("at_ms", Ms, nullable=False),
        Column("type", String(100), nullable=False),
        Column("saga_id", Id, nullable=False),
        Column("error", Text, nullable=False),
        Column("envelope", Json, nullable=False),
        Column("resent_ms", Ms),
        Index("ix_dead_letters_at", "at_ms"),
    )
    tokens = Table(
        "tokens",
        metadata,
        Column("name", String(100), primary_key=True),
        Column("team", String(100), nullable=False),
        Column("scopes", Text, nullable=False),
        Column("hash", String(64), nullable=False, unique=True),
        Column("created_ms", Ms, nullable=False),
    )
    return KernelTables(inbox=inbox, outbox=outbox, jobs=jobs, dead_letters=dead_letters, tokens=tokens)
