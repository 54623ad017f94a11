"""Settings of an app, and the hold of its automatic deployment."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0002"
down_revision = "0001"

_ID = sa.String(36)
_JSON = sa.Text().with_variant(LONGTEXT(), "mysql")


def upgrade() -> None:
    op.add_column("apps", sa.Column("settings", _JSON, comment="the build settings that differ from the default"))
    op.add_column("apps", sa.Column("observe_s", sa.Float, comment="null: the platform's default"))
    op.add_column("apps", sa.Column("held_ms", sa.BigInteger, comment="null: pushes are deployed"))
    op.add_column("apps", sa.Column("held_by", sa.String(100)))
    op.add_column("apps", sa.Column("held_why", sa.String(200)))
    op.add_column("apps", sa.Column("held_saga_id", _ID, comment="the newest rollback that held the app"))
    op.add_column("apps", sa.Column("held_commit", sa.String(40), comment="the newest push since then"))
    if op.get_bind().dialect.supports_comments:  # SQLite has none, and cannot alter a column
        op.alter_column(
            "deliveries",
            "status",
            existing_type=sa.String(16),
            existing_nullable=False,
            existing_comment="accepted, ignored, duplicate",
            comment="accepted, ignored, duplicate, held",
        )
