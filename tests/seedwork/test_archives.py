"""Archives of strangers: nothing outside of the target is touched, and no more is taken than the limits say."""

import contextlib
import gzip
import io
import os
import stat
import tarfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedwork.archives import (
    NORMAL_MTIME,
    ArchiveLimits,
    BadArchive,
    NotAFolder,
    disk_errors,
    extract_tar,
    normalise_tar,
    pack_tar,
    read_members,
)
from seedwork.errors import InvalidInput, KnarrError, StorageFull, TimedOut, TooLarge

LIMITS = ArchiveLimits(max_bytes=1_000_000, max_entries=200)
Item = tuple[tarfile.TarInfo, bytes]
Form = Literal[0, 1, 2]


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, data: bytes = b"", target: str = "", mode: int = 0o644) -> Item:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    info.size = len(data)
    return info, data


def link(name: str, target: str) -> Item:
    return entry(name, tarfile.SYMTYPE, target=target)


def hard_link(name: str, target: str) -> Item:
    return entry(name, tarfile.LNKTYPE, target=target)


def folder(name: str) -> Item:
    return entry(name, tarfile.DIRTYPE, mode=0o755)


def tar(*items: Item, form: Form = tarfile.PAX_FORMAT, end: bool = True) -> bytes:
    """A tar as it stands here, whatever it would do: `TarFile.add` would be too polite."""
    out = io.BytesIO()
    for info, data in items:
        out.write(info.tobuf(form, "utf-8", "surrogateescape"))
        out.write(data + bytes(-len(data) % 512))
    return out.getvalue() + (bytes(1024) if end else b"")


def seen(top: Path, *, but: Path) -> dict[str, Any]:
    """Everything below `top` without `but`: kind, mode, content, links, time of the last change."""
    found: dict[str, Any] = {}
    for path in top.rglob("*"):
        if path == but or but in path.parents:
            continue
        status = path.lstat()
        where = str(path.readlink()) if path.is_symlink() else None
        content = (path.read_bytes(), status.st_nlink, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
        found[str(path)] = (status.st_mode, content, where)
    return found


@pytest.fixture
def jail(tmp_path: Path) -> Path:
    """`jail/target` is where to extract; beside and above it is what an escape would hit."""
    for name in ("victim", "jail/victim", "jail/beside/victim"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("untouched")
    return tmp_path / "jail"


DEEP = "/".join(["d" * 60] * 16)

HOSTILE: dict[str, tuple[Item, ...]] = {
    "a name that climbs": (entry("../victim", data=b"gotcha"),),
    "a name that climbs in the middle": (entry("a/../../victim", data=b"gotcha"),),
    "an absolute name": (entry("/tmp/knarr-escape", data=b"gotcha"),),  # noqa: S108 - must not be made
    "an absolute link": (link("a", "/etc"),),
    "a link that climbs": (link("a", "../victim"),),
    "a link that climbs from a folder": (folder("d"), link("d/a", "../../victim")),
    "a file through a link": (link("a", ".."), entry("a/victim", data=b"gotcha")),
    "a file through a link that is fine by itself": (folder("d"), link("a", "d"), entry("a/x", data=b"gotcha")),
    "a file over a link": (link("a", "../victim"), entry("a", data=b"gotcha")),
    "a link over a file": (entry("a", data=b"1"), link("a", "b")),
    "chained links": (
        folder("d/e/f"),
        link("deep", "d/e/f"),
        link("up", "deep/../../../.."),
        entry("up/victim", data=b"gotcha"),
    ),
    "a chain that is short on paper": (folder("a"), link("a/b", "."), link("x", "a/b/b/../../..")),
    "a hard link": (hard_link("a", "../victim"), entry("a", data=b"gotcha")),
    "a hard link to a deep link": (folder(DEEP), link("l", DEEP), hard_link("h", "l"), entry("h", data=b"gotcha")),
    "two files of one name": (entry("a", data=b"1"), entry("a", data=b"2")),
    "two names of one file": (entry("a", data=b"1"), entry("./a", data=b"2")),
    "a file that is a folder, too": (entry("a", data=b"1"), entry("a/b", data=b"2")),
    "a folder that is a file, too": (entry("a/b", data=b"2"), entry("a", data=b"1")),
    "a character device": (entry("a", tarfile.CHRTYPE),),
    "a block device": (entry("a", tarfile.BLKTYPE),),
    "a FIFO": (entry("a", tarfile.FIFOTYPE),),
    "a kind that nobody knows": (entry("a", b"Z"),),
    "a sparse file": (entry("a", tarfile.GNUTYPE_SPARSE),),
    "a folder with content": (entry("a", tarfile.DIRTYPE, data=b"gotcha"),),
    "a link with content": (entry("a", tarfile.SYMTYPE, data=b"gotcha", target="b"),),
    "a link without a target": (link("a", ""),),
    "a file without a name": (entry("./", data=b"gotcha"),),
    "a link in the root's place": (link(".", "victim"),),
    "a name that is too long": (entry("/".join(["d" * 200] * 10), data=b"1"),),
    "a component that is too long": (entry("d" * 300, data=b"1"),),
    "a name that is too deep": (entry("/".join(["d"] * 100), data=b"1"),),
}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_outside_changes(jail: Path, what: str, form: Form) -> None:
    """Each of them by both doors: unpacking, and bringing into the normal form."""
    data = tar(*HOSTILE[what], form=form)
    target = jail / "target"
    before = seen(jail.parent, but=target)
    with pytest.raises((BadArchive, TooLarge)):
        extract_tar(io.BytesIO(data), target, limits=LIMITS)
    with pytest.raises((BadArchive, TooLarge)):
        normalise_tar(io.BytesIO(data), target / "out.tar", limits=LIMITS)
    assert seen(jail.parent, but=target) == before
    assert not Path("/tmp/knarr-escape").exists()  # noqa: S108


@pytest.mark.parametrize("what", ["a name that climbs", "a file through a link", "a file over a link", "a hard link"])
def test_the_watch_sees_an_escape(jail: Path, what: str) -> None:
    """A trusting extraction of the same archives changes what is outside: the tests above can fail."""
    target = jail / "target"
    target.mkdir()
    before = seen(jail.parent, but=target)
    with tarfile.open(fileobj=io.BytesIO(tar(*HOSTILE[what]))) as opened:
        opened.extractall(target, filter="fully_trusted")  # noqa: S202 - on purpose
    assert seen(jail.parent, but=target) != before


PARTS = st.sampled_from(["a", "b", "c", "..", ".", "", "victim"])
NAMES = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
ITEMS = st.one_of(
    st.builds(lambda name, data: entry(name, data=data), NAMES, st.binary(max_size=3)),
    st.builds(folder, NAMES),
    st.builds(link, NAMES, NAMES),
    st.builds(hard_link, NAMES, NAMES),
)


def leads_out(path: Path, top: Path) -> bool:
    """Whether the system, following the link, ends outside; a link to itself ends nowhere."""
    try:
        end = path.resolve(strict=True)
    except FileNotFoundError:
        end = path.resolve()
    except (RuntimeError, OSError):  # a loop: Python says RuntimeError up to 3.12, then OSError
        return False
    return not end.is_relative_to(top.resolve())


@settings(max_examples=200, deadline=None)
@given(items=st.lists(ITEMS, max_size=8))
def test_whatever_the_entries_are_nothing_leads_out(items: list[Item]) -> None:
    """Refused or unpacked: what is outside stays as it was, and no link of the result leads there."""
    with TemporaryDirectory() as made:
        jail = Path(made, "jail")
        jail.mkdir()
        for victim in (jail / "victim", jail.parent / "victim"):
            victim.write_text("untouched")
        target = jail / "target"
        before = seen(jail.parent, but=target)
        data = tar(*items)
        try:
            extract_tar(io.BytesIO(data), target, limits=LIMITS)
        except BadArchive:
            with pytest.raises(BadArchive):
                normalise_tar(io.BytesIO(data), target / "out.tar", limits=LIMITS)
        else:
            assert [path for path in target.rglob("*") if path.is_symlink() and leads_out(path, target)] == []
            normalise_tar(io.BytesIO(data), jail / "target.tar", limits=LIMITS)
            again = extract_tar(jail / "target.tar", jail / "again", limits=LIMITS)
            assert again.bytes_written == sum(len(data) for info, data in items if info.isreg())
            for name in ("target.tar", "again"):
                (jail / name).rename(target / name)
        assert seen(jail.parent, but=target) == before


@settings(max_examples=150, deadline=None)
@given(position=st.integers(min_value=0), value=st.integers(0, 255), cut=st.integers(min_value=0, max_value=4000))
def test_a_damaged_archive_gives_an_error_of_ours(position: int, value: int, cut: int) -> None:
    """One byte changed, or the end torn off: a tree or a `KnarrError`, never another exception."""
    data = bytearray(tar(folder("d"), entry("d/" + "n" * 120, data=b"x" * 700), link("l", "d"), entry("b", data=b"y")))
    data[position % len(data)] = value
    with TemporaryDirectory() as made, contextlib.suppress(KnarrError):
        extract_tar(io.BytesIO(bytes(data[: len(data) - cut])), Path(made, "target"), limits=LIMITS)


TREES = st.dictionaries(
    st.lists(st.sampled_from(["a", "b", "ab", "b.c", "ü", "n" * 120]), min_size=1, max_size=3).map("/".join),
    st.tuples(st.binary(max_size=600), st.booleans()),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(tree=TREES, shuffled=st.randoms(use_true_random=False))
def test_the_same_tree_gives_the_same_digest(tree: dict[str, tuple[bytes, bool]], shuffled: Any) -> None:
    """From a folder or from a tar in any order and of any owner and time, by any writer."""
    names = [name for name in tree if not any(other.startswith(f"{name}/") for other in tree)]
    with TemporaryDirectory() as made:
        top = Path(made)
        for name in names:
            path = top / "tree" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tree[name][0])
            path.chmod(0o700 if tree[name][1] else 0o600)
        (top / "tree").mkdir(exist_ok=True)
        shuffled.shuffle(names)
        out = io.BytesIO()
        with tarfile.open(
            fileobj=out, mode="w", format=shuffled.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
        ) as archive:
            for name in names:
                archive.add(top / "tree" / name, arcname=shuffled.choice(["", "./"]) + name)
        out.seek(0)
        normal = normalise_tar(out, top / "normal.tar", limits=LIMITS)
        assert pack_tar(top / "tree", top / "packed.tar", mtime=NORMAL_MTIME) == (normal.digest, normal.size_bytes)
        assert (top / "normal.tar").stat().st_size == normal.size_bytes
        extract_tar(top / "normal.tar", top / "out", limits=LIMITS)
        for name in names:
            assert (top / "out" / name).read_bytes() == tree[name][0]
            assert stat.S_IMODE((top / "out" / name).stat().st_mode) == (0o755 if tree[name][1] else 0o644)


def test_other_tools_read_what_we_write(tmp_path: Path) -> None:
    """Python's own reader finds the same entries, in our order."""
    (tmp_path / "tree/b").mkdir(parents=True)
    (tmp_path / "tree/b/run").write_text("#!/bin/sh\n")
    (tmp_path / "tree/b/run").chmod(0o4755)
    (tmp_path / "tree/b.txt").write_text("x" * 1000)
    (tmp_path / "tree/latest").symlink_to("b/run")
    pack_tar(tmp_path / "tree", tmp_path / "out.tar", prefix="layers/python", mtime=5)
    with tarfile.open(tmp_path / "out.tar") as archive:
        found = [(each.name, each.type, each.mode, each.uid, each.gid, each.uname, each.mtime) for each in archive]
    same = (0, 0, "", 5)
    assert found == [
        ("layers", tarfile.DIRTYPE, 0o755, *same),
        ("layers/python", tarfile.DIRTYPE, 0o755, *same),
        ("layers/python/b.txt", tarfile.REGTYPE, 0o644, *same),
        ("layers/python/b", tarfile.DIRTYPE, 0o755, *same),
        ("layers/python/b/run", tarfile.REGTYPE, 0o755, *same),
        ("layers/python/latest", tarfile.SYMTYPE, 0o777, *same),
    ]


NOT_UTF8 = (b"caf\xe9.txt", b"d\xff/\xc0\xaf", "é".encode(), b"\xed\xb2\x80")
"""Latin-1, an overlong slash in a folder, UTF-8, and a surrogate in UTF-8's manner."""


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_names_are_bytes(tmp_path: Path, form: Form) -> None:
    """Read, brought into the normal form, unpacked and packed again, they are the same bytes."""
    items = [entry(os.fsdecode(name), data=name) for name in NOT_UTF8]
    items.append(link(os.fsdecode(b"l\xe9"), os.fsdecode(NOT_UTF8[0])))
    normal = normalise_tar(io.BytesIO(tar(*items, form=form)), tmp_path / "normal", limits=LIMITS)
    extract_tar(tmp_path / "normal", tmp_path / "tree", limits=LIMITS)
    tree = tmp_path / "tree"
    assert [(tree / os.fsdecode(name)).read_bytes() for name in NOT_UTF8] == list(NOT_UTF8)
    assert (tree / os.fsdecode(b"l\xe9")).readlink() == Path(os.fsdecode(NOT_UTF8[0]))
    digest, _ = pack_tar(tmp_path / "tree", tmp_path / "again", mtime=NORMAL_MTIME)
    assert digest == normal.digest
    with tarfile.open(tmp_path / "again") as read_by_python:
        assert {os.fsencode(each) for each in read_by_python.getnames()} >= set(NOT_UTF8)


def test_a_name_that_is_not_utf_8_can_be_named_in_an_error() -> None:
    """Texts of errors go into JSON, where such a name cannot stand as it is."""
    twice = tar(*[entry(os.fsdecode(b"caf\xe9"), data=b"1")] * 2)
    with TemporaryDirectory() as target, pytest.raises(BadArchive) as caught:
        extract_tar(io.BytesIO(twice), Path(target), limits=LIMITS)
    assert "caf" in caught.value.message
    caught.value.message.encode()


def test_layers_are_unpacked_over_each_other(tmp_path: Path) -> None:
    """Folders are joined; a second file of one name, and a way through an earlier layer's link, are refused."""
    target = tmp_path / "target"
    extract_tar(io.BytesIO(tar(entry("layers/a/f", data=b"1"), link("layers/l", "a"))), target, limits=LIMITS)
    extract_tar(io.BytesIO(tar(entry("layers/b/f", data=b"2"))), target, limits=LIMITS)
    assert (target / "layers/b/f").read_bytes() == b"2"
    with pytest.raises(BadArchive, match="there already"):
        extract_tar(io.BytesIO(tar(entry("layers/a/f", data=b"3"))), target, limits=LIMITS)
    with pytest.raises(BadArchive, match="no folder"):
        extract_tar(io.BytesIO(tar(entry("layers/l/g", data=b"3"))), target, limits=LIMITS)
    assert (target / "layers/a/f").read_bytes() == b"1"


def test_special_bits_and_the_umask_do_not_matter(tmp_path: Path) -> None:
    """Modes are 0644, 0755, whatever the archive and the process say."""
    before = os.umask(0o077)
    try:
        extract_tar(
            io.BytesIO(tar(folder("d"), entry("d/s", data=b"1", mode=0o6777), entry("d/f", mode=0o000))),
            tmp_path / "target",
            limits=LIMITS,
        )
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "target").rglob("*")}
    assert modes == {"d": 0o755, "s": 0o755, "f": 0o644}


def test_times_are_kept_only_on_request(tmp_path: Path) -> None:
    """One fixed time for every release would make browsers keep the files of the one before."""
    item = entry("f", data=b"1")
    item[0].mtime = 1000
    extract_tar(io.BytesIO(tar(item)), tmp_path / "new", limits=LIMITS)
    extract_tar(io.BytesIO(tar(item)), tmp_path / "kept", limits=LIMITS, keep_mtime=True)
    assert (tmp_path / "new/f").stat().st_mtime > 1_000_000
    assert (tmp_path / "kept/f").stat().st_mtime == 1000


def test_a_file_that_claims_to_be_huge_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """A header is cheap: 8 TiB in 512 bytes."""
    item = entry("f")
    item[0].size = 8 << 40
    with pytest.raises(TooLarge, match="1000000 bytes"):
        extract_tar(io.BytesIO(tar(item, form=tarfile.GNU_FORMAT)), tmp_path / "target", limits=LIMITS)
    assert not (tmp_path / "target/f").exists()


def test_many_files_that_are_small_count_too(tmp_path: Path) -> None:
    """The number of entries has a limit of its own, and so has the sum of their bytes."""
    with pytest.raises(TooLarge, match="more than 200"):
        extract_tar(io.BytesIO(tar(*(entry(f"{n}") for n in range(201)))), tmp_path / "many", limits=LIMITS)
    halves = (entry("a", data=b"x" * 600_000), entry("b", data=b"x" * 600_000))
    with pytest.raises(TooLarge, match="'b' crosses"):
        extract_tar(io.BytesIO(tar(*halves)), tmp_path / "large", limits=LIMITS)


def test_folders_that_are_only_implied_count_in_the_normal_form(tmp_path: Path) -> None:
    """A few long names could make many folders."""
    items = [entry("/".join([f"x{n}"] * 60)) for n in range(5)]
    with pytest.raises(TooLarge, match="more than 200"):
        normalise_tar(io.BytesIO(tar(*items)), tmp_path / "out.tar", limits=LIMITS)


class Endless(io.RawIOBase):
    """A stream that never ends: pieces of `block`, for ever."""

    def __init__(self, *first: bytes, block: bytes) -> None:
        super().__init__()
        self.waiting = b"".join(first)
        self.block = block
        self.given = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while len(self.waiting) < size:
            self.waiting += self.block
        piece, self.waiting = self.waiting[:size], self.waiting[size:]
        self.given += len(piece)
        return piece


def gzipped_zeros() -> bytes:
    return gzip.compress(bytes(10_000_000))


ENDLESS: dict[str, Callable[[], Endless]] = {
    "entries": lambda: Endless(block=tar(entry("a"), end=False)),
    "extension headers": lambda: Endless(block=tar(entry("", tarfile.XHDTYPE), end=False)),
    "long names": lambda: Endless(block=tar(entry("", tarfile.GNUTYPE_LONGNAME, data=b"n" * 1000), end=False)),
    "an extension header": lambda: Endless(
        tar((_sized(1 << 40, tarfile.XHDTYPE), b""), end=False), block=b"30 comment=aaaaaaaaaaaaaaaaaaa\n"
    ),
    "zeros after the end": lambda: Endless(tar(entry("a")), block=bytes(4096)),
}


def _sized(size: int, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("x")
    info.size, info.type = size, kind
    return info


@pytest.mark.parametrize("what", ENDLESS)
def test_an_endless_stream_ends(tmp_path: Path, what: str) -> None:
    """By a limit, after a bounded number of bytes."""
    stream = ENDLESS[what]()
    limits = ArchiveLimits(max_bytes=1_000_000, max_entries=200, max_names_bytes=100_000)
    with pytest.raises((TooLarge, BadArchive)):
        extract_tar(stream, tmp_path / "target", limits=limits)  # type: ignore[arg-type]
    assert stream.given < 4_000_000


def test_a_gzip_bomb_is_stopped_by_what_it_becomes(tmp_path: Path) -> None:
    """A few kilobytes of gzip that would become a gigabyte."""
    item = _sized(1 << 30, tarfile.REGTYPE)
    stream = Endless(gzip.compress(item.tobuf(tarfile.GNU_FORMAT)), block=gzipped_zeros())
    with pytest.raises(TooLarge):
        extract_tar(stream, tmp_path / "target", limits=LIMITS, compression="gzip")  # type: ignore[arg-type]
    zeros = Endless(gzip.compress(tar(entry("a"))), block=gzipped_zeros())
    with pytest.raises(BadArchive, match="goes on after its end"):
        extract_tar(zeros, tmp_path / "zeros", limits=LIMITS, compression="gzip")  # type: ignore[arg-type]


def test_empty_gzip_members_without_end_are_stopped_by_time(tmp_path: Path) -> None:
    """They become nothing at all, so that no size would ever stop them."""
    stop = threading.Event()

    class Stopping(Endless):
        def read(self, size: int = -1) -> bytes:
            if self.given > 1_000_000:
                stop.set()
            return super().read(size)

    stream = Stopping(block=gzip.compress(b""))
    with pytest.raises(TimedOut):
        extract_tar(stream, tmp_path / "t", limits=LIMITS, compression="gzip", stop=stop)  # type: ignore[arg-type]


def test_the_time_limit_counts(tmp_path: Path) -> None:
    """No time at all is over at once."""
    limits = ArchiveLimits(max_seconds=0)
    with pytest.raises(TimedOut, match="longer than 0 s"):
        extract_tar(io.BytesIO(tar(entry("a"))), tmp_path / "target", limits=limits)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"x" * 2000, tar(entry("a", data=b"x" * 600))[:700], tar(entry("a"), end=False)],
    ids=["nothing", "a word", "no tar", "torn off", "without an end"],
)
def test_what_is_no_whole_tar_is_said_to_be_damaged(tmp_path: Path, data: bytes) -> None:
    """A tar that stops at the border of two entries is not whole either."""
    with pytest.raises(BadArchive, match="damaged"):
        extract_tar(io.BytesIO(data), tmp_path / "target", limits=LIMITS)


def test_gzip_that_is_none_or_damaged_is_said_to_be_damaged(tmp_path: Path) -> None:
    """The checksum at a gzip's end is looked at."""
    whole = gzip.compress(tar(entry("a", data=b"x")))
    for number, data in enumerate([b"no gzip", whole[:-10], whole[:-8] + b"12345678"]):
        with pytest.raises(BadArchive, match="damaged"):
            extract_tar(io.BytesIO(data), tmp_path / f"target{number}", limits=LIMITS, compression="gzip")


def test_git_s_global_header_is_passed_over(tmp_path: Path) -> None:
    """`git archive` writes the commit there; one that renames entries is refused."""
    fine = entry("pax_global_header", tarfile.XGLTYPE, data=b"52 comment=" + b"a" * 40 + b"\n")
    extract_tar(io.BytesIO(tar(fine, entry("a"))), tmp_path / "fine", limits=LIMITS)
    assert (tmp_path / "fine/a").exists()
    bad = entry("pax_global_header", tarfile.XGLTYPE, data=b"13 path=../x\n")
    with pytest.raises(BadArchive, match="global header"):
        extract_tar(io.BytesIO(tar(bad, entry("a"))), tmp_path / "bad", limits=LIMITS)


def test_links_inside_stay_links(tmp_path: Path) -> None:
    """Relative ones, also upward inside, also to nothing."""
    items = (entry("a/f", data=b"1"), link("a/up", "../b/l"), link("b/l", "../a/f"), link("b/nothing", "nowhere"))
    report = extract_tar(io.BytesIO(tar(*items)), tmp_path / "target", limits=LIMITS)
    assert (report.files, report.links) == (1, 3)
    assert (tmp_path / "target/a/up").read_bytes() == b"1"
    assert (tmp_path / "target/b/nothing").is_symlink()


def test_a_folder_of_the_archive_can_be_the_root(tmp_path: Path) -> None:
    """What is outside of it is left out, and a link that leads there is refused."""
    items = (entry("web/a/f", data=b"1"), entry("other", data=b"2"), link("web/l", "a/f"))
    normal = normalise_tar(io.BytesIO(tar(*items)), tmp_path / "out.tar", limits=LIMITS, root="./web/")
    extract_tar(tmp_path / "out.tar", tmp_path / "out", limits=LIMITS)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "l"]
    assert normal.entries == 3
    with pytest.raises(BadArchive, match="outside"):
        normalise_tar(
            io.BytesIO(tar(*items, link("web/out", "../other"))), tmp_path / "2.tar", limits=LIMITS, root="web"
        )
    for number, root in enumerate(["nowhere", "other", "web/l"]):
        with pytest.raises(NotAFolder):
            normalise_tar(io.BytesIO(tar(*items)), tmp_path / f"no{number}.tar", limits=LIMITS, root=root)


def test_nothing_half_made_stays_beside_a_normal_form_that_failed(tmp_path: Path) -> None:
    """The spool goes in any case."""
    with pytest.raises(BadArchive):
        normalise_tar(io.BytesIO(tar(entry("a", data=b"1"), link("b", "/"))), tmp_path / "out.tar", limits=LIMITS)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_as_such() -> None:
    """`/dev/full` answers as a full disk does."""
    with pytest.raises(StorageFull, match="no room"), disk_errors(), Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")


def test_packing_refuses_what_nobody_could_unpack(tmp_path: Path) -> None:
    """A link that leads out, a socket or FIFO; on request such links are left out."""
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/python").symlink_to("/usr/bin/python3")
    (tree / "f").write_text("x")
    (tree / "bin/own").symlink_to(tree / "f")
    with pytest.raises(BadArchive, match="bin/python"):
        pack_tar(tree, tmp_path / "1.tar")
    pack_tar(tree, tmp_path / "2.tar", skip_escaping_links=True)
    extract_tar(tmp_path / "2.tar", tmp_path / "out", limits=LIMITS)
    assert (tmp_path / "out/bin/own").readlink() == Path("../f")
    assert not (tmp_path / "out/bin/python").is_symlink()
    os.mkfifo(tree / "pipe")
    with pytest.raises(InvalidInput, match="pipe"):
        pack_tar(tree, tmp_path / "3.tar", skip_escaping_links=True)


def test_members_are_read_up_to_their_limit(tmp_path: Path) -> None:
    """One byte more than the limit tells that there is more; a link is not followed."""
    (tmp_path / "a.tar").write_bytes(
        tar(entry("Procfile", data=b"x" * 50), entry("d/Procfile", data=b"y"), folder("app.json"))
    )
    names: Iterable[str] = ("Procfile", "app.json", "nothing")
    assert read_members(tmp_path / "a.tar", names, max_bytes=10) == {"Procfile": b"x" * 11}
    assert read_members(tmp_path / "a.tar", names, max_bytes=50) == {"Procfile": b"x" * 50}
    (tmp_path / "b.tar").write_bytes(tar(link("Procfile", "other")))
    with pytest.raises(BadArchive, match="is a link"):
        read_members(tmp_path / "b.tar", names, max_bytes=10)
