"""Apps, deliveries, and what became of them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGBLOB, LONGTEXT

from seedwork.chassis.kernel_schema import kernel_v1

revision = "0001"
down_revision = None

_ID = sa.String(36)
_JSON = sa.Text().with_variant(LONGTEXT(), "mysql")


def upgrade() -> None:
    kernel_v1(op)
    _apps()
    _deliveries()
    op.create_table(
        "idempotency_keys",
        sa.Column("app_id", _ID, sa.ForeignKey("apps.app_id"), primary_key=True),
        sa.Column("idempotency_key", sa.String(200), primary_key=True),
        sa.Column("saga_id", _ID, nullable=False),
        sa.Column("commit", sa.String(40)),
        sa.Column("source_digest", sa.String(71)),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )


def _apps() -> None:
    op.create_table(
        "apps",
        sa.Column("app_id", _ID, primary_key=True),
        sa.Column("team", sa.String(100), nullable=False),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("name_key", sa.String(40), comment="the name; null once removed, so that the name is free again"),
        sa.Column("repository", sa.String(200)),
        sa.Column("repository_key", sa.String(200), comment="in lower case: GitHub's names have no case"),
        sa.Column("clone_url", sa.String(1000)),
        sa.Column("ref", sa.String(255), nullable=False),
        sa.Column("root", sa.String(500), nullable=False),
        sa.Column("webhook_secret", sa.Text, nullable=False, comment="encrypted; empty once removed"),
        sa.Column("secret_version", sa.Integer, nullable=False, comment="grows with each rotation"),
        sa.Column("state", sa.String(16), nullable=False, comment="active, removing, removed"),
        sa.Column("removal_saga_id", _ID),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("last_number", sa.BigInteger, nullable=False, comment="of the newest deployment, from 1"),
        sa.Column("last_commit", sa.String(40), comment="of the newest deployment; null: an upload, or none yet"),
        sa.Column("tip_commit", sa.String(40), comment="the tip of `ref` that was last asked to be deployed"),
        sa.Column(
            "polled_commit", sa.String(40), comment="the newest commit that the poller found before its webhook came"
        ),
        sa.Column("polled_saga_id", _ID),
        sa.Column("polled_ms", sa.BigInteger),
        sa.Column("next_poll_ms", sa.BigInteger, nullable=False),
        sa.Column("poll_failures", sa.Integer, nullable=False, comment="in a row"),
        sa.Column("poll_error", sa.Text),
        sa.UniqueConstraint("team", "name_key", name="uq_apps_team_name"),
    )
    op.create_index("ix_apps_repository", "apps", ["repository_key"])
    op.create_index("ix_apps_next_poll", "apps", ["state", "next_poll_ms"])


def _deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("delivery_id", _ID, primary_key=True),
        sa.Column("team", sa.String(100), nullable=False),
        sa.Column("provider_id", sa.String(100), comment="X-GitHub-Delivery"),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("repository", sa.String(200)),
        sa.Column("ref", sa.String(255)),
        sa.Column("received_ms", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(16), nullable=False, comment="accepted, ignored, duplicate"),
        sa.Column("reason", sa.Text),
        sa.Column("headers", _JSON, nullable=False),
        sa.Column("body", sa.LargeBinary().with_variant(LONGBLOB(), "mysql"), nullable=False),
    )
    op.create_index("ix_deliveries_team", "deliveries", ["team", "delivery_id"])
    op.create_table(
        "delivery_deployments",
        sa.Column("delivery_id", _ID, sa.ForeignKey("deliveries.delivery_id"), primary_key=True),
        sa.Column("saga_id", _ID, primary_key=True),
        sa.Column("app_id", _ID, sa.ForeignKey("apps.app_id"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False, comment="order of starting, from 0"),
        sa.Column("provider_id", sa.String(100)),
        sa.Column("body_sha256", sa.String(64)),
        sa.UniqueConstraint("app_id", "provider_id", name="uq_delivery_deployments_provider"),
        sa.UniqueConstraint("app_id", "body_sha256", name="uq_delivery_deployments_body"),
    )
