"""`FetchSource` and `DiscardSource`, with the fake host."""

import gzip
import hashlib
import io
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from seedwork.archives import ArchiveLimits, BadArchive, read_members
from seedwork.errors import InvalidInput, NotFound, TooLarge, Unavailable
from seedwork.git import GitUrlPolicy
from seedwork.messages import new_id
from services.source.adapters.provided import HttpAddOnKinds
from services.source.archives import Archives
from services.source.contract import DiscardSource, FetchSource, SourceFetched, SourceFetchFailed
from services.source.errors import AppInvalid, CommitNotFound
from services.source.handlers import discard_source, fetch_source
from services.source.plan import Capabilities
from services.source.plan.addons import Provided
from services.source.uploads import Uploads
from tests.services.source.conftest import drafts, stored, work_of
from tests.services.source.fakes import FakeOrigin, FakeRepositories, FewAddOns, NoLargeFiles

URL = "https://git.example/acme/shop.git"
MAIN = "refs/heads/main"
APP = {"requirements.txt": b"", "Procfile": b"web: python app.py"}


@pytest.fixture
def origin() -> FakeOrigin:
    return FakeOrigin(URL)


@pytest.fixture
def host(origin: FakeOrigin) -> FakeRepositories:
    return FakeRepositories(GitUrlPolicy(["https://git.example/"]), origin)


@pytest.fixture
def fetch(host: FakeRepositories, archives: Archives, uploads: Uploads) -> Any:
    limits = ArchiveLimits(max_bytes=100_000, max_entries=200)
    return partial(
        fetch_source,
        repositories=host,
        uploads=uploads,
        archives=archives,
        limits=limits,
        capabilities=Capabilities(),
        large_files=NoLargeFiles(),
        policy=GitUrlPolicy(["https://git.example/"]),
        addon_kinds=FewAddOns(),
    )


def command(**fields: Any) -> FetchSource:
    return FetchSource(app="shop", **{"clone_url": URL, "ref": MAIN, **fields})


async def test_the_commit_is_fetched_described_and_held(
    fetch: Any, origin: FakeOrigin, archives: Archives, home: Path
) -> None:
    """What the event says is what can be read."""
    commit = origin.commit(APP)
    work = work_of()
    event = await fetch(command(commit=commit), work=work)
    assert isinstance(event, SourceFetched)
    assert event.commit == commit
    assert event.description.processes == {"web": ("/bin/sh", "-c", "python app.py")}
    assert stored(home) == {event.digest}
    with archives.open(event.digest) as file:
        data = file.read()
    assert len(data) == event.size_bytes
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == event.digest
    assert drafts(home) == []


async def test_a_second_delivery_changes_nothing(
    fetch: Any, origin: FakeOrigin, home: Path, archives: Archives
) -> None:
    """The same event; one reference, which one undo drops."""
    work = work_of()
    wanted = command(commit=origin.commit(APP))
    assert await fetch(wanted, work=work) == await fetch(wanted, work=work)
    undone = await discard_source(DiscardSource(), work=work, archives=archives)
    (digest,) = [phrase.split()[-1] for phrase in undone.found]
    assert undone.found == (f"reference to archive {digest}",)
    assert undone.done == ("dropped, the archive was removed",)
    assert stored(home) == set()


async def test_an_undo_succeeds_when_there_is_nothing(archives: Archives) -> None:
    """And says so."""
    undone = await discard_source(DiscardSource(), work=work_of(), archives=archives)
    assert (undone.found, undone.done) == ((), ())


async def test_an_undo_leaves_what_another_saga_holds(
    fetch: Any, origin: FakeOrigin, home: Path, archives: Archives
) -> None:
    """Two deployments of one commit."""
    wanted = command(commit=origin.commit(APP))
    mine, other = work_of(), work_of()
    event = await fetch(wanted, work=mine)
    await fetch(wanted, work=other)
    undone = await discard_source(DiscardSource(), work=mine, archives=archives)
    assert undone.done == ("dropped, others hold the archive",)
    assert stored(home) == {event.digest}


async def test_an_older_commit_is_superseded(fetch: Any, origin: FakeOrigin, home: Path) -> None:
    """Its newer one is live or waiting, and the ref has moved on."""
    older, newer = origin.commit(APP), origin.commit(APP | {"f": b""})
    saga = new_id()
    event = await fetch(command(commit=older, known_commits={saga: newer}), work=work_of())
    assert isinstance(event, SourceFetchFailed)
    assert (event.code, event.superseded_by, event.retryable) == ("superseded", saga, False)
    assert "force" in event.message
    assert stored(home) == set()


async def test_the_newest_saga_is_named_when_several_supersede(fetch: Any, origin: FakeOrigin) -> None:
    """Ids grow with time."""
    older = origin.commit(APP)
    known = {new_id(): origin.commit(APP | {"f": f"{n}".encode()}) for n in range(3)}
    event = await fetch(command(commit=older, known_commits=known), work=work_of())
    assert event.superseded_by == max(known)


@pytest.mark.parametrize("case", ["force", "the same commit", "the ref went back", "another branch", "unknown commit"])
async def test_what_is_not_superseded(fetch: Any, origin: FakeOrigin, case: str) -> None:
    """Somebody wants exactly this, or nothing newer has it in its history."""
    older, newer = origin.commit(APP), origin.commit(APP | {"f": b""})
    fields: dict[str, Any] = {"commit": older, "known_commits": {new_id(): newer}}
    if case == "force":
        fields["force"] = True
    elif case == "the same commit":
        fields["known_commits"] = {new_id(): older}
    elif case == "the ref went back":
        origin.move(MAIN, older)
    elif case == "another branch":
        fields["known_commits"] = {new_id(): origin.commit(APP, ref="refs/heads/other")}
    else:
        fields["known_commits"] = {new_id(): "0" * 40}
    assert isinstance(await fetch(command(**fields), work=work_of()), SourceFetched)


async def test_errors_say_who_has_to_act(fetch: Any, origin: FakeOrigin, host: FakeRepositories, home: Path) -> None:
    """The host's silence is worth another attempt; the rest is the user's."""
    wrong = origin.commit({"requirements.txt": b""})
    with pytest.raises(AppInvalid, match="Add a Procfile"):
        await fetch(command(commit=wrong), work=work_of())
    with pytest.raises(CommitNotFound):
        await fetch(command(commit="0" * 40), work=work_of())
    with pytest.raises(InvalidInput, match="no clone URL"):
        await fetch(command(clone_url=None), work=work_of())
    with pytest.raises(InvalidInput, match="no folder inside"):
        await fetch(command(commit=wrong, root="../x"), work=work_of())
    host.down = True
    with pytest.raises(Unavailable):
        await fetch(command(commit=wrong), work=work_of())
    assert stored(home) == set()
    assert drafts(home) == []


# --- uploads ---------------------------------------------------------------------------------------------------------


async def uploaded(uploads: Uploads, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"

    async def chunks() -> Any:
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]

    assert await uploads.store(digest, chunks()) == len(data)
    return digest


def tar_gz(*infos: tarfile.TarInfo, **files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.mtime, info.uid = len(content), 12345, 1000
            archive.addfile(info, io.BytesIO(content))
        for info in infos:
            archive.addfile(info)
    return gzip.compress(out.getvalue())


async def test_an_upload_gives_the_same_archive_as_the_commit(
    fetch: Any, origin: FakeOrigin, uploads: Uploads, archives: Archives, home: Path
) -> None:
    """The same tree, the same digest, whatever way it came; the undo leaves the upload."""
    data = tar_gz(**APP)
    digest = await uploaded(uploads, data)
    work = work_of()
    event = await fetch(command(clone_url=None, ref=None, source_digest=digest), work=work)
    from_git = await fetch(command(commit=origin.commit(APP)), work=work_of())
    assert (event.commit, event.digest, event.description) == (None, from_git.digest, from_git.description)
    with archives.open(event.digest) as file:
        (home / "copy.tar").write_bytes(file.read())
    assert read_members(home / "copy.tar", APP, max_bytes=100) == APP
    await discard_source(DiscardSource(), work=work, archives=archives)
    assert uploads.path(digest).read_bytes() == data


def bad_entry(kind: bytes, name: str, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "data",
    [
        tar_gz(bad_entry(tarfile.REGTYPE, "../victim"), **APP),
        tar_gz(bad_entry(tarfile.SYMTYPE, "l", "/etc/passwd"), **APP),
        tar_gz(bad_entry(tarfile.LNKTYPE, "l", "Procfile"), **APP),
        tar_gz(bad_entry(tarfile.FIFOTYPE, "l"), **APP),
        b"no archive at all",
        gzip.compress(b"no tar"),
        tar_gz(**APP)[:-20],
    ],
    ids=["climbing", "link", "hard link", "fifo", "no gzip", "no tar", "torn"],
)
async def test_a_hostile_upload_is_refused(fetch: Any, uploads: Uploads, home: Path, data: bytes) -> None:
    """Nothing of it is left but the upload itself."""
    digest = await uploaded(uploads, data)
    with pytest.raises(BadArchive):
        await fetch(command(source_digest=digest), work=work_of())
    assert stored(home) == set()
    assert drafts(home) == []


async def test_a_bomb_is_refused(fetch: Any, uploads: Uploads, home: Path) -> None:
    """A small upload that would become large."""
    digest = await uploaded(uploads, tar_gz(**APP, zeros=bytes(5_000_000)))
    with pytest.raises(TooLarge, match="100000 bytes"):
        await fetch(command(source_digest=digest), work=work_of())
    assert drafts(home) == []


async def test_an_upload_that_is_gone_is_said_to_be_gone(fetch: Any, uploads: Uploads) -> None:
    """With the setting that says for how long they are kept."""
    digest = await uploaded(uploads, tar_gz(**APP))
    assert await uploads.sweep(3600) == 0
    assert await uploads.sweep(0) == 1
    with pytest.raises(NotFound, match="KNARR_UPLOAD_KEEP_DAYS"):
        await fetch(command(source_digest=digest), work=work_of())


# ── add-ons ──────────────────────────────────────────────────────────────────────────────────────────────────────────

ASKS = {**APP, "app.json": b'{"addons": ["mongolab", "heroku-redis", "heroku-postgresql"]}'}


async def test_an_app_whose_addons_are_not_provided_is_refused_before_the_build(
    fetch: Any, origin: FakeOrigin, home: Path
) -> None:
    """All of them by their names, with what to do; nothing is kept."""
    commit = origin.commit(ASKS)
    with pytest.raises(AppInvalid, match=r"mongodb and redis, which the runtime `process` does not provide") as refused:
        await fetch(command(commit=commit), work=work_of())
    assert "no server program" in refused.value.why
    assert "knarr up --runtime docker" in refused.value.todo
    assert stored(home) == set()


@pytest.mark.parametrize("known", [None, Provided("docker", frozenset({"mongodb", "redis", "postgres"}))])
async def test_an_app_goes_on_where_its_addons_are_provided_or_nobody_knows(
    fetch: Any, origin: FakeOrigin, known: Provided | None
) -> None:
    """A deployer that does not answer holds nothing up: it refuses the app itself, later."""
    event = await fetch(command(commit=origin.commit(ASKS)), work=work_of(), addon_kinds=FewAddOns(known))
    assert {each.kind for each in event.description.addons} == {"mongodb", "redis", "postgres"}


async def test_the_deployer_is_not_asked_for_an_app_without_addons(fetch: Any, origin: FakeOrigin) -> None:
    """Most apps have none."""
    kinds = FewAddOns()
    await fetch(command(commit=origin.commit(APP)), work=work_of(), addon_kinds=kinds)
    assert kinds.asked == 0


@pytest.mark.parametrize(
    ("status", "body", "known"),
    [
        (200, {"runtime": "process", "addons": ["redis"]}, Provided("process", frozenset({"redis"}))),
        (200, {"addons": 7}, None),
        (503, {"detail": "busy"}, None),
        (404, {}, None),
    ],
)
async def test_what_the_deployer_answers_is_checked(status: int, body: dict[str, Any], known: Provided | None) -> None:
    """One of another version is taken for one that does not answer."""
    transport = httpx2.MockTransport(lambda _: httpx2.Response(status, json=body))
    kinds = HttpAddOnKinds(lambda: httpx2.AsyncClient(base_url="http://deployer", transport=transport))
    assert await kinds.provided() == known
