"""Tables of `builder`: builds by saga, and who holds which staged image."""

from sqlalchemy import Column, Index, Integer, MetaData, String, Table, Text

from seedwork.tables import Id, Json, Ms, kernel_tables

metadata = MetaData()
kernel = kernel_tables(metadata)

Digest = String(71)
"""`sha256:` and 64 hex digits."""

builds = Table(
    "builds",
    metadata,
    Column("saga_id", Id, primary_key=True),
    Column("app_id", Id, nullable=False),
    Column("app", String(100), nullable=False),
    Column("team", String(100), nullable=False),
    Column("commit", String(40)),
    # of the archive; of a rebase: of the image that stands on an older run image
    Column("source_digest", Digest, nullable=False),
    # running, succeeded, failed, discarded
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("digest", Digest),
    Column("layers", Json, nullable=False),
    Column("error", Text),
    Column("started_ms", Ms, nullable=False),
    Column("ended_ms", Ms),
    Index("ix_builds_app", "app_id", "started_ms"),
)

staged = Table(
    "staged",
    metadata,
    Column("saga_id", Id, primary_key=True),
    Column("app_id", Id, nullable=False),
    Column("digest", Digest, nullable=False),
    # set when the saga needs it no more; the image is collected after that
    Column("released_ms", Ms),
    # set while its holder removes the image, which nobody else has: until then nobody takes it
    Column("removing_ms", Ms),
    Index("ix_staged_image", "app_id", "digest"),
    Index("ix_staged_released", "released_ms"),
)
