"""TOML of strangers: the right values, and a bound on what a small file can cost."""

import tracemalloc

import pytest

from services.source.errors import AppInvalid
from services.source.toml import read_toml

MAX = 256 * 1024


def test_values_are_those_of_the_file() -> None:
    """With a byte order mark, dotted keys, all kinds of strings, and dots in every harmless place."""
    text = '\ufeffa.b.c = 1\n# a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r\n"x.y.z.a.b.c.d.e.f.g.h.i.j.k.l.m.n.o" = 2\n'
    text += "[tool.'a.b'.c]\nlist = [1.5, 2.5, 3.5, '''\n....................\n''']\ntext = \"\"\"a\"\"\"\n"
    text += 'quoted = """a \\""" b"""\nend = """x"""""\nwhen = 2024-01-02T03:04:05.678Z\n'
    content = read_toml("f.toml", text.encode(), MAX)
    assert content.object("a") == {"b": {"c": 1}}
    table = content.object("tool")["a.b"]["c"]
    assert table["list"][:3] == [1.5, 2.5, 3.5]
    assert table["quoted"] == 'a """ b'
    assert table["end"] == 'x""'


@pytest.mark.parametrize(
    "text",
    [
        ".".join(["a"] * 13_000) + " = 1",
        "[" + ".".join(["a"] * 13_000) + "]",
        "\n".join(f"a{number}.b.c.d.e.f.g.h = 1" for number in range(10_000)),
        "\n".join(f"[t{number}.b.c.d.e.f.g.h]" for number in range(10_000)),
        "a = " + "[" * 50_000,
        "a = " + "{b=" * 50_000,
        '"' + '\\"' * 100_000,
        '"""' + '\\"""' * 50_000,
        "'" * 200_001,
        ('"' * 5 + " ") * 40_000,
        "a = " + "1" * 100_000,
        "\n".join(f"k{number} = 1" for number in range(25_000)),
    ],
)
def test_a_small_file_costs_little_memory_whatever_is_in_it(text: str) -> None:
    """26 kB of dots take gigabytes in the standard parser; each of these is refused within some megabytes."""
    tracemalloc.start()
    try:
        with pytest.raises(AppInvalid, match=r"f\.toml"):
            read_toml("f.toml", text.encode(), MAX)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_an_error_names_the_file_and_the_place() -> None:
    """As the parser says it."""
    with pytest.raises(AppInvalid, match=r"f\.toml cannot be read.*line 1"):
        read_toml("f.toml", b"a = = 1", MAX)
