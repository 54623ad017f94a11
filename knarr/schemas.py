"""`schemas/`: the Avro schema of each message type, a file for each form that it has had, numbered from 1.

    python -m knarr.schemas            write a new file for each type that has changed
    python -m knarr.schemas --check    say what is wrong, and end with 1 if anything is

Replicas of two releases run beside each other, and messages of releases before are met after an outage: so every form
must be read by the model as it is, and the newest form by every model before it. Files are never edited: what a release
wrote was written.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from knarr.buses import plan
from seedwork.adapters.avro import schema_of, unreadable
from seedwork.messages import Message

FOLDER = Path(__file__).parent.parent / "schemas"


def problems(types: Sequence[type[Message]], folder: Path = FOLDER) -> list[str]:
    """What is wrong with the files, a sentence each; empty: nothing."""
    found = []
    for each in types:
        forms = _forms(folder / each.__name__)
        if not forms or forms[max(forms)] != schema_of(each):
            found.append(f"{each.__name__} is not what its newest file in schemas/ says: run `make schemas`")
        found += _broken(each.__name__, forms)
    known = {each.__name__ for each in types}
    found += [f"schemas/{each.name} belongs to no message" for each in folder.iterdir() if each.name not in known]
    return sorted(found)


def write(types: Sequence[type[Message]], folder: Path = FOLDER) -> list[Path]:
    """Add a file for each type whose newest one is another; the files that were made.

    Raises:
        ValueError: A reader before it could not read the new form, or the other way round; nothing is written.
    """
    new: dict[Path, Any] = {}
    for each in types:
        forms, schema = _forms(folder / each.__name__), schema_of(each)
        if forms and forms[max(forms)] == schema:
            continue
        number = max(forms, default=0) + 1
        if broken := _broken(each.__name__, {**forms, number: schema}):
            raise ValueError("\n".join(broken))
        new[folder / each.__name__ / f"{number}.avsc"] = schema
    for path, schema in new.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(orjson.dumps(schema, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return list(new)


def _forms(folder: Path) -> dict[int, Any]:
    """The schemas of a type by their number."""
    files = {int(path.stem): path for path in folder.glob("*.avsc") if re.fullmatch(r"\d+", path.stem)}
    return {number: orjson.loads(path.read_bytes()) for number, path in sorted(files.items())}


def _broken(name: str, forms: Mapping[int, Any]) -> list[str]:
    """Pairs of which one cannot read what the other one wrote."""
    return [
        f"{name}: who knows form {reader} cannot read form {writer}: {why}"
        for writer in forms
        for reader in forms
        if writer != reader
        for why in unreadable(forms[writer], forms[reader])
    ]


def main(arguments: Sequence[str]) -> int:
    """Write or check; the exit code."""
    types = plan().types
    if "--check" in arguments:
        wrong = problems(types)
        sys.stderr.write("".join(f"{each}\n" for each in wrong))
        return 1 if wrong else 0
    try:
        made = write(types)
    except ValueError as error:
        sys.stderr.write(f"{error}\nGive fields that are added or taken away a default, or the message a new name.\n")
        return 1
    sys.stdout.write("".join(f"{each.relative_to(FOLDER.parent)}\n" for each in made))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
