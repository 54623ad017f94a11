"""Tables of `source`: who holds which archive."""

from sqlalchemy import Column, Index, MetaData, String, Table

from seedwork.tables import Id, Ms, kernel_tables

metadata = MetaData()
kernel = kernel_tables(metadata)

archive_references = Table(
    "archive_references",
    metadata,
    Column("saga_id", Id, primary_key=True),
    Column("digest", String(71), primary_key=True),
    Column("app_id", Id, nullable=False),
    Column("at_ms", Ms, nullable=False),
    Index("ix_archive_references_digest", "digest"),
)
