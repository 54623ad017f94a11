"""Makes the next release of the knarr that is installed here: a column in two databases, a field in two messages."""

import compileall
import importlib.util
import py_compile
from pathlib import Path

MIGRATION = '''\
"""What the next release wants."""

import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = {before!r}


def upgrade() -> None:
    op.add_column({table!r}, sa.Column("of_the_next_release", sa.String(20)))
'''
TABLES = {"saga_coordinator": "sagas", "builder": "builds"}
FIELD = '    of_the_next_release: str = "told by it"\n    """Not in the release before."""\n'
MESSAGES = ("class BuildImage(Command):\n", "class ImageBuilt(Event):\n")


def folder_of(service: str) -> Path:
    """Where the service is installed."""
    spec = importlib.util.find_spec(f"services.{service}")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def add_migration(service: str, table: str) -> None:
    """Behind the newest one."""
    versions = folder_of(service) / "migrations" / "versions"
    newest = max(versions.glob("*.py"), key=lambda path: path.name).read_text()
    (line,) = [each for each in newest.splitlines() if each.startswith("revision = ")]
    text = MIGRATION.format(before=line.split('"')[1], table=table)
    (versions / "9999_next.py").write_text(text)


def add_fields(path: Path) -> None:
    """To both messages, before their own."""
    text = path.read_text()
    for beginning in MESSAGES:
        before, found, after = text.partition(beginning)
        assert found, beginning
        docstring, newline, rest = after.partition('"""\n\n')
        text = before + found + docstring + newline + FIELD + rest
    path.write_text(text)


for name, its_table in TABLES.items():
    add_migration(name, its_table)
add_fields(folder_of("builder") / "contract.py")
# Compiled files of the image are taken without a look at their source.
compileall.compile_dir(
    folder_of("builder").parent, quiet=1, force=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
)
