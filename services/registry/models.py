"""Tables of `registry`: who holds which image, what is published, and which repositories are ours."""

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table

from seedwork.tables import Id, Ms, kernel_tables

metadata = MetaData()
kernel = kernel_tables(metadata)

Digest = String(71)
"""`sha256:` and 64 hex digits."""
Repository = String(200)

image_references = Table(
    "image_references",
    metadata,
    Column("app_id", Id, primary_key=True),
    Column("digest", Digest, primary_key=True),
    Column("saga_id", Id, primary_key=True),
    Column("repository", Repository, nullable=False),
    # the tag; null: an upload
    Column("commit", String(40)),
    # the number of the saga's release, known once it is deployed
    Column("number", Integer),
    Column("taken_ms", Ms, nullable=False),
    Index("ix_image_references_saga", "saga_id"),
    Index("ix_image_references_image", "repository", "digest"),
)

images = Table(
    "images",
    metadata,
    Column("repository", Repository, primary_key=True),
    Column("digest", Digest, primary_key=True),
    Column("app_id", Id, nullable=False),
    Column("app", String(100), nullable=False),
    Column("team", String(100), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("published_ms", Ms, nullable=False),
    Index("ix_images_app", "app_id"),
    Index("ix_images_team", "team", "published_ms", "digest"),
)

repositories = Table(
    "repositories",
    metadata,
    # every repository that ever got an image from us, before it got one: others in the store are not ours to clean
    Column("repository", Repository, primary_key=True),
    # who changes it now, where several processes share the database
    Column("lock_owner", Id),
    Column("lock_until_ms", Ms, nullable=False),
)
