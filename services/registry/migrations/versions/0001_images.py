"""Who holds which image, what is published, which repositories are ours."""

import sqlalchemy as sa
from alembic import op

from seedwork.chassis.migrate import kernel_v1

revision = "0001"
down_revision = None


def upgrade() -> None:
    kernel_v1(op)
    op.create_table(
        "image_references",
        sa.Column("app_id", sa.String(36), primary_key=True),
        sa.Column("digest", sa.String(71), primary_key=True),
        sa.Column("saga_id", sa.String(36), primary_key=True),
        sa.Column("repository", sa.String(200), nullable=False),
        sa.Column("commit", sa.String(40)),
        sa.Column("number", sa.Integer),
        sa.Column("taken_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_image_references_saga", "image_references", ["saga_id"])
    op.create_index("ix_image_references_image", "image_references", ["repository", "digest"])
    op.create_table(
        "images",
        sa.Column("repository", sa.String(200), primary_key=True),
        sa.Column("digest", sa.String(71), primary_key=True),
        sa.Column("app_id", sa.String(36), nullable=False),
        sa.Column("app", sa.String(100), nullable=False),
        sa.Column("team", sa.String(100), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("published_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_images_app", "images", ["app_id"])
    op.create_index("ix_images_team", "images", ["team", "published_ms", "digest"])
    op.create_table(
        "repositories",
        sa.Column("repository", sa.String(200), primary_key=True),
        sa.Column("lock_owner", sa.String(36)),
        sa.Column("lock_until_ms", sa.BigInteger, nullable=False),
    )
