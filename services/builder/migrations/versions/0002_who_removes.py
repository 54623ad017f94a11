"""A staged image that is being removed is not taken: replicas see it in the row."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("staged", sa.Column("removing_ms", sa.BigInteger))
