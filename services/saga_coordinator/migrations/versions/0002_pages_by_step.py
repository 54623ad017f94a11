"""Sagas at one step, in the order of the list: the index that begins with the state as well has another order."""

from alembic import op

revision = "saga_coordinator_0002"
down_revision = "saga_coordinator_0001"


def upgrade() -> None:
    op.create_index("ix_sagas_at_step", "sagas", ["step", "created_ms", "id"])
