"""Each saga has its team in a column, so that every query can name the teams whose sagas it reads."""

import sqlalchemy as sa
from alembic import op

revision = "saga_coordinator_0003"
down_revision = "saga_coordinator_0002"

_FILL = {
    "sqlite": "UPDATE sagas SET team = JSON_EXTRACT(origin, '$.team')",
    "mysql": "UPDATE sagas SET team = JSON_UNQUOTE(JSON_EXTRACT(origin, '$.team'))",
}
_FILL_DEFAULT = "UPDATE sagas SET team = 'default' WHERE team IS NULL"
"""The origin leaves the team out where it is the default one."""


def upgrade() -> None:
    op.add_column("sagas", sa.Column("team", sa.String(100)))
    op.execute(_FILL[op.get_bind().dialect.name])
    op.execute(_FILL_DEFAULT)
    op.create_index("ix_sagas_team", "sagas", ["team", "created_ms", "id"])
