"""Apps, releases, config versions and routes."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

from seedwork.chassis.kernel_schema import kernel_v1

revision = "0001"
down_revision = None

_ID = sa.String(36)
_JSON = sa.Text().with_variant(LONGTEXT(), "mysql")


def upgrade() -> None:
    kernel_v1(op)
    op.create_table(
        "apps",
        sa.Column("app_id", _ID, primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("team", sa.String(100), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_apps_name", "apps", ["name"])
    _releases()
    op.create_table(
        "config_versions",
        sa.Column("app_id", _ID, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("sealed", _JSON, nullable=False),
        sa.Column("saga_id", _ID),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_config_versions_saga", "config_versions", ["saga_id"])
    op.create_table(
        "routes",
        sa.Column("app_id", _ID, primary_key=True),
        sa.Column("port", sa.Integer, nullable=False, unique=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("saga_id", _ID),
        sa.Column("moved_ms", sa.BigInteger, nullable=False),
    )


def _releases() -> None:
    op.create_table(
        "releases",
        sa.Column("saga_id", _ID, primary_key=True),
        sa.Column("app_id", _ID, nullable=False),
        sa.Column("number", sa.Integer),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("commit", sa.String(40)),
        sa.Column("repository", sa.String(255), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("config_version", sa.Integer, nullable=False),
        sa.Column("formation", _JSON, nullable=False),
        sa.Column("processes", _JSON, nullable=False),
        sa.Column("layers", _JSON, nullable=False),
        sa.Column("manifest_hash", sa.String(71), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ux_releases_number", "releases", ["app_id", "number"], unique=True)
    op.create_index("ix_releases_state", "releases", ["app_id", "state", "number"])
