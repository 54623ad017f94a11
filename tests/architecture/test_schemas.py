"""The schemas in `schemas/` are those of the models, and a release reads what the releases beside it write."""

from pathlib import Path

import orjson
import pytest
from pydantic import create_model

from knarr.buses import plan
from knarr.schemas import problems, write
from seedwork.adapters.avro import Codec, schema_of
from seedwork.messages import Event, Message


class Sailed(Event):
    """A message to change."""

    ship: str
    knots: float | None = None


def changed(**fields: object) -> type[Message]:
    return create_model("Sailed", __base__=Event, **fields)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write([Sailed], tmp_path)
    return tmp_path


def test_every_message_has_its_schema_in_the_repository() -> None:
    """`make schemas` writes what is missing; a change that breaks another release is refused there and here."""
    assert problems(plan().types) == []


def test_every_example_goes_through_its_schema_unchanged() -> None:
    """As Avro and back."""
    for each in plan().types:
        codec = Codec(schema_of(each))
        example = each.example()
        assert each.model_validate(codec.decode(codec.encode(example.model_dump(mode="json")))) == example


def test_a_field_with_a_default_may_come_and_go(folder: Path) -> None:
    """It gets a file of its own, and the one before stays as it was."""
    before = (folder / "Sailed" / "1.avsc").read_bytes()
    more = changed(ship=(str, ...), knots=(float | None, None), crew=(int, 12))
    assert [each.name for each in write([more], folder)] == ["2.avsc"]
    less = changed(ship=(str, ...), crew=(int, 12))
    assert [each.name for each in write([less], folder)] == ["3.avsc"]
    assert problems([less], folder) == []
    assert (folder / "Sailed" / "1.avsc").read_bytes() == before


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"ship": (str, ...), "knots": (float | None, None), "crew": (int, ...)}, ".crew: was not written"),
        ({"knots": (float | None, None)}, ".ship: was not written"),
        ({"ship": (int, ...), "knots": (float | None, None)}, ".ship: string is read as long"),
        ({"ship": (str, ...), "knots": (float, 0.0)}, ".knots: null is read as double"),
        ({"ship": (tuple[str, ...], ...), "knots": (float | None, None)}, ".ship: string is read as array"),
    ],
    ids=["added without default", "taken away without default", "other type", "null no more", "other kind"],
)
def test_a_change_that_breaks_another_release_is_refused(folder: Path, fields: dict[str, object], why: str) -> None:
    """Neither written nor passed over when somebody edits the file by hand."""
    model = changed(**fields)
    with pytest.raises(ValueError, match="form") as refused:
        write([model], folder)
    assert why in str(refused.value)
    assert any("run `make schemas`" in each for each in problems([model], folder))
    (folder / "Sailed" / "2.avsc").write_bytes(orjson.dumps(schema_of(model)))
    assert any(why in each for each in problems([model], folder))


def test_a_file_without_a_message_is_noticed(folder: Path) -> None:
    """A message that was renamed leaves no schema behind by mistake."""
    assert problems([], folder) == ["schemas/Sailed belongs to no message"]


def test_a_type_that_avro_has_no_word_for_is_named() -> None:
    """With its field."""
    with pytest.raises(TypeError, match=r"Sailed\.cargo: .*no Avro type here"):
        schema_of(changed(cargo=(bytes, ...)))


@pytest.mark.parametrize("payload", [b"", b"\xff" * 12, b"\x02", b"\x06abc\x00trailing"])
def test_bytes_of_something_else_are_no_message(payload: bytes) -> None:
    """A `ValueError`, whatever is in them."""
    with pytest.raises(ValueError, match="this is no Sailed"):
        Codec(schema_of(Sailed)).decode(payload)
