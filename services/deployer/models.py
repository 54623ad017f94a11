"""Tables of `deployer`: apps, their releases, config versions, routes and add-ons.

What runs is asked of the runtime, not kept.
The row in `routes` says which release serves; everything else follows from it, also after a crash.
"""

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, String, Table, Text

from seedwork.tables import Id, Json, Ms, kernel_tables

metadata = MetaData()
kernel = kernel_tables(metadata)

Digest = String(71)
"""`sha256:` and 64 hex digits."""

apps = Table(
    "apps",
    metadata,
    Column("app_id", Id, primary_key=True),
    Column("name", String(100), nullable=False),
    Column("team", String(100), nullable=False),
    Column("created_ms", Ms, nullable=False),
    # length of the step `observe` in seconds; null: the platform's default
    Column("observe_s", Float),
    # the newest saga that was requested for the app: a release before it is not observed any longer
    Column("newest_saga", Id),
    # numbers that a person set, by process type: they count again when a type comes back
    Column("scale", Json),
    Index("ix_apps_name", "name"),
)

releases = Table(
    "releases",
    metadata,
    # one release per saga, whatever is delivered twice
    Column("saga_id", Id, primary_key=True),
    Column("app_id", Id, nullable=False),
    # null: a saga that was undone before it had a release; its row keeps a late worker out
    Column("number", Integer),
    Column("kind", String(16), nullable=False),
    Column("commit", String(40)),
    Column("repository", String(255), nullable=False),
    Column("digest", Digest, nullable=False),
    Column("config_version", Integer, nullable=False),
    Column("formation", Json, nullable=False),
    Column("processes", Json, nullable=False),
    Column("layers", Json, nullable=False),
    Column("manifest_hash", Digest, nullable=False),
    # pending, live, superseded, undone, retired
    Column("state", String(16), nullable=False),
    Column("created_ms", Ms, nullable=False),
    # over the files that `watch` names; null: no pattern is set
    Column("watched_digest", Digest),
    # end of its observation, set when it begins; null: it has not begun
    Column("observe_until_ms", Ms),
    Index("ux_releases_number", "app_id", "number", unique=True),
    Index("ix_releases_state", "app_id", "state", "number"),
)

config_versions = Table(
    "config_versions",
    metadata,
    Column("app_id", Id, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    # pending, live, superseded (was live, or a newer one that contains it is), undone
    Column("state", String(16), nullable=False),
    # Fernet over JSON
    Column("sealed", Json, nullable=False),
    # the saga that brings it live; null: the next deployment does
    Column("saga_id", Id),
    Column("created_by", String(100), nullable=False),
    Column("created_ms", Ms, nullable=False),
    Index("ix_config_versions_saga", "saga_id"),
)

routes = Table(
    "routes",
    metadata,
    Column("app_id", Id, primary_key=True),
    Column("port", Integer, nullable=False, unique=True),
    Column("url", Text, nullable=False),
    # only grows; the write that moves traffic compares it
    Column("fence", BigInteger, nullable=False),
    # the saga whose release serves; null: none does
    Column("saga_id", Id),
    Column("moved_ms", Ms, nullable=False),
)

observations = Table(
    "observations",
    metadata,
    # the app has one release that is observed
    Column("app_id", Id, primary_key=True),
    # whose release is observed
    Column("saga_id", Id, nullable=False),
    # whose release, the one before, stays warm
    Column("warm_saga_id", Id, nullable=False),
    # open, closed (it has passed), given_up (the release before is to be stopped)
    Column("state", String(16), nullable=False),
)

audit = Table(
    "audit",
    metadata,
    # ordered by time
    Column("entry_id", Id, primary_key=True),
    Column("at_ms", Ms, nullable=False),
    Column("team", String(100), nullable=False),
    Column("app_id", Id, nullable=False),
    Column("app", String(100), nullable=False),
    # the token's name
    Column("by", String(100), nullable=False),
    Column("what", String(500), nullable=False),
    Index("ix_audit_team", "team", "entry_id"),
    Index("ix_audit_app", "app_id", "entry_id"),
    Index("ix_audit_at", "at_ms"),
)

drifts = Table(
    "drifts",
    metadata,
    Column("app_id", Id, primary_key=True),
    # of the sentence: one row per difference, however often it is seen
    Column("key", String(64), primary_key=True),
    Column("saga_id", Id, nullable=False),
    Column("what", String(500), nullable=False),
    Column("at_ms", Ms, nullable=False),
    # null: it is still there
    Column("repaired_ms", Ms),
)

addons = Table(
    "addons",
    metadata,
    Column("app_id", Id, primary_key=True),
    # of its kind: an app has at most one of each
    Column("name", String(32), primary_key=True),
    Column("kind", String(16), nullable=False),
    # as it was asked for first; null: the platform's choice
    Column("version", String(128)),
    # pending (no release with it was live yet), live, leaving
    Column("state", String(16), nullable=False),
    # the saga whose undo removes it while it is pending
    Column("saga_id", Id, nullable=False),
    # its password, Fernet over JSON
    Column("sealed", Json, nullable=False),
    Column("created_ms", Ms, nullable=False),
    Index("ix_addons_saga", "saga_id"),
    Index("ix_addons_state", "state"),
)

volumes = Table(
    "volumes",
    metadata,
    # no foreign key: a volume outlives its app until a person removes it by name
    Column("app_id", Id, primary_key=True),
    Column("name", String(32), primary_key=True),
    # the app's name, for people, also after the app is gone
    Column("app", String(100), nullable=False),
    Column("team", String(100), nullable=False),
    Column("path", String(255), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    # live, leaving (its data is deleted as soon as no instance uses it)
    Column("state", String(16), nullable=False),
    Column("created_ms", Ms, nullable=False),
    Column("left_ms", Ms),
    Index("ix_volumes_state", "state"),
)
