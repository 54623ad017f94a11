"""The intake's tables: apps, what arrived, and what became of it.

A delivery, the number and the id of each deployment that it started, and the message about it are written in one
transaction; what makes a delivery a duplicate is a unique key per app, kept for ever.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.mysql import LONGBLOB

from seedwork.tables import Id, Json, Ms, kernel_tables

metadata = MetaData()
kernel = kernel_tables(metadata)

apps = Table(
    "apps",
    metadata,
    Column("app_id", Id, primary_key=True),
    Column("team", String(100), nullable=False),
    Column("name", String(40), nullable=False),
    Column("name_key", String(40), comment="the name; null once removed, so that the name is free again"),
    Column("repository", String(200)),
    Column("repository_key", String(200), comment="in lower case: GitHub's names have no case"),
    Column("clone_url", String(1000)),
    Column("ref", String(255), nullable=False),
    Column("root", String(500), nullable=False),
    Column("webhook_secret", Text, nullable=False, comment="encrypted; empty once removed"),
    Column("secret_version", Integer, nullable=False, default=1, comment="grows with each rotation"),
    Column("state", String(16), nullable=False, comment="active, removing, removed"),
    Column("removal_saga_id", Id),
    Column("created_ms", Ms, nullable=False),
    Column("last_number", BigInteger, nullable=False, default=0, comment="of the newest deployment, from 1"),
    Column("last_commit", String(40), comment="of the newest deployment; null: an upload, or none yet"),
    Column("tip_commit", String(40), comment="the tip of `ref` that was last asked to be deployed"),
    Column("polled_commit", String(40), comment="the newest commit that the poller found before its webhook came"),
    Column("polled_saga_id", Id),
    Column("polled_ms", Ms),
    Column("next_poll_ms", Ms, nullable=False, default=0),
    Column("poll_failures", Integer, nullable=False, default=0, comment="in a row"),
    Column("poll_error", Text),
    Column("settings", Json, comment="the build settings that differ from the default"),
    Column("observe_s", Float, comment="null: the platform's default"),
    Column("held_ms", Ms, comment="null: pushes are deployed"),
    Column("held_by", String(100)),
    Column("held_why", String(200)),
    Column("held_saga_id", Id, comment="the newest rollback that held the app"),
    Column("held_commit", String(40), comment="the newest push since then"),
    UniqueConstraint("team", "name_key", name="uq_apps_team_name"),
    Index("ix_apps_repository", "repository_key"),
    Index("ix_apps_next_poll", "state", "next_poll_ms"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("delivery_id", Id, primary_key=True),
    Column("team", String(100), nullable=False),
    Column("provider_id", String(100), comment="X-GitHub-Delivery"),
    Column("body_sha256", String(64), nullable=False),
    Column("event", String(64), nullable=False),
    Column("repository", String(200)),
    Column("ref", String(255)),
    Column("received_ms", Ms, nullable=False),
    Column("status", String(16), nullable=False, comment="accepted, ignored, duplicate, held"),
    Column("reason", Text),
    Column("headers", Json, nullable=False),
    Column("body", LargeBinary().with_variant(LONGBLOB(), "mysql"), nullable=False),  # empty: not kept any more
    Index("ix_deliveries_team", "team", "delivery_id"),
)

delivery_deployments = Table(
    "delivery_deployments",
    metadata,
    Column("delivery_id", Id, ForeignKey("deliveries.delivery_id"), primary_key=True),
    Column("saga_id", Id, primary_key=True),
    Column("app_id", Id, ForeignKey("apps.app_id"), nullable=False),
    Column("position", Integer, nullable=False, comment="order of starting, from 0"),
    # What makes a later delivery a duplicate; null in rows of duplicates and of redeliveries.
    Column("provider_id", String(100)),
    Column("body_sha256", String(64)),
    UniqueConstraint("app_id", "provider_id", name="uq_delivery_deployments_provider"),
    UniqueConstraint("app_id", "body_sha256", name="uq_delivery_deployments_body"),
)

access_tokens = Table(
    "access_tokens",
    metadata,
    Column("token_id", Id, primary_key=True),
    Column("name", String(100), nullable=False),
    Column("team", String(100), nullable=False),
    # other teams, a JSON list
    Column("more_teams", Text, nullable=False),
    # with spaces between them
    Column("scopes", Text, nullable=False),
    # SHA-256 of the token in hex
    Column("hash", String(64), nullable=False),
    Column("created_ms", Ms, nullable=False),
    Column("created_by", String(100), nullable=False),
    # null: it does not expire
    Column("expires_ms", Ms),
    UniqueConstraint("team", "name", name="uq_access_tokens_name"),
    UniqueConstraint("hash", name="uq_access_tokens_hash"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("app_id", Id, ForeignKey("apps.app_id"), primary_key=True),
    Column("idempotency_key", String(200), primary_key=True),
    Column("saga_id", Id, nullable=False),
    Column("commit", String(40)),
    Column("source_digest", String(71)),
    Column("created_ms", Ms, nullable=False),
)
