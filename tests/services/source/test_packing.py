"""Submodules and LFS content in the archive, with real repositories through the handler."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from seedwork.archives import ArchiveLimits, read_members
from seedwork.errors import FinalError, InvalidInput, TooLarge
from seedwork.git import GitUrlPolicy
from seedwork.git_credentials import GitCredentials
from services.source.adapters.git import GitRepositories
from services.source.adapters.lfs import LfsStore
from services.source.archives import Archives
from services.source.contract import BuildSettings, FetchSource, SourceFetched
from services.source.handlers import fetch_source
from services.source.plan import Capabilities
from services.source.uploads import Uploads
from tests.services.source.conftest import drafts, work_of
from tests.services.source.fakes import FewAddOns
from tests.services.source.origins import GitOrigin

APP = {"requirements.txt": b"", "Procfile": b"web: python app.py\n"}
MAIN = "refs/heads/main"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return tmp_path / "host"


@pytest.fixture
def shop(host: Path) -> GitOrigin:
    return GitOrigin(host / "shop")


@pytest.fixture
def lib(host: Path) -> GitOrigin:
    return GitOrigin(host / "lib")


@pytest.fixture
def fetch(tmp_path: Path, host: Path, archives: Archives, uploads: Uploads) -> Any:
    policy = GitUrlPolicy([f"file://{host}/"])
    credentials = GitCredentials({})
    limits = ArchiveLimits(max_bytes=100_000, max_entries=200)
    return partial(
        fetch_source,
        repositories=GitRepositories(
            tmp_path / "mirrors", policy=policy, credentials=credentials, limits=limits, fetch_timeout_s=30
        ),
        uploads=uploads,
        archives=archives,
        limits=limits,
        capabilities=Capabilities(),
        large_files=LfsStore(tmp_path / "lfs", policy=policy, credentials=credentials, timeout_s=30),
        policy=policy,
        addon_kinds=FewAddOns(),
    )


def link(at: GitOrigin, path: str, commit: str, url: str) -> str:
    """A commit with a submodule."""
    section = f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n'
    with (at.work / ".gitmodules").open("a") as file:
        file.write(section)
    at.git("add", ".gitmodules")
    at.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
    at.git("commit", "--quiet", "--message", f"a submodule {path}")
    made = at.git("rev-parse", "HEAD")
    at.move(MAIN, made)
    return made


async def fetched(fetch: Any, origin: GitOrigin, commit: str | None = None, **fields: Any) -> SourceFetched:
    command = FetchSource(app="shop", clone_url=origin.url, ref=MAIN, commit=commit, **fields)
    event = await fetch(command, work=work_of())
    assert isinstance(event, SourceFetched)
    return event


def content(home: Path, event: SourceFetched, *names: str) -> dict[str, bytes]:
    archive = home / "archives/sha256" / event.digest.removeprefix("sha256:")
    return read_members(archive, names, max_bytes=1000)


async def test_submodules_are_in_the_archive_at_their_exact_commit(
    fetch: Any, shop: GitOrigin, lib: GitOrigin, host: Path, home: Path
) -> None:
    """Nested ones too; addresses may be relative. The submodule has moved on, and its branch is not the default."""
    deep = GitOrigin(host / "deep")
    inner = deep.commit({"z.py": b"z"})
    lib.commit({"helper.py": b"one"})
    wanted = link(lib, "deep", inner, "../../deep/origin.git")
    lib.commit({"helper.py": b"two"})
    shop.commit(APP)
    commit = link(shop, "lib", wanted, "../../lib/origin.git")
    event = await fetched(fetch, shop)
    assert content(home, event, "lib/helper.py", "lib/deep/z.py", "Procfile") == {
        "lib/helper.py": b"one",
        "lib/deep/z.py": b"z",
        "Procfile": APP["Procfile"],
    }
    assert (event.commit, event.description.notes) == (commit, ())
    assert drafts(home) == []


async def test_the_archive_of_submodules_is_a_function_of_its_content(
    fetch: Any, shop: GitOrigin, lib: GitOrigin, host: Path
) -> None:
    """The same files in one repository have the same digest."""
    one = GitOrigin(host / "one")
    gitmodules = b'[submodule "lib"]\n\tpath = lib\n\turl = ../../lib/origin.git\n'
    whole = {**APP, "lib/helper.py": b"1", "lib/a/b": b"2", "lib.py": b"3", ".gitmodules": gitmodules}
    one.commit(whole)
    at = lib.commit({"helper.py": b"1", "a/b": b"2"})
    shop.commit({**APP, "lib.py": b"3"})
    link(shop, "lib", at, "../../lib/origin.git")
    assert (await fetched(fetch, shop)).digest == (await fetched(fetch, one)).digest


async def test_a_submodule_that_cannot_be_fetched_is_named_and_stays_empty(
    fetch: Any, shop: GitOrigin, lib: GitOrigin, tmp_path: Path, home: Path
) -> None:
    """Outside the allow-list, not there, without an address, a commit that is nowhere: one line each."""
    outside = GitOrigin(tmp_path / "outside")
    shop.commit(APP)
    link(shop, "outside", outside.commit({"f": b"1"}), outside.url)
    link(shop, "gone", "1" * 40, "../../gone.git")
    link(shop, "lost", "2" * 40, "../../lib/origin.git")
    lib.commit({"f": b"1"})
    shop.git("update-index", "--add", "--cacheinfo", f"160000,{'3' * 40},bare")
    shop.git("commit", "--quiet", "--message", "no address")
    shop.move(MAIN, "HEAD")
    event = await fetched(fetch, shop)
    notes = dict(zip(("bare", "gone", "lost", "outside"), sorted(event.description.notes), strict=True))
    assert all(note.startswith(f"submodule {name} stays empty: ") for name, note in notes.items())
    assert "KNARR_SOURCE_ALLOW" in notes["outside"]
    assert ".gitmodules" in notes["bare"]
    assert "2" * 40 in notes["lost"]
    assert content(home, event, "Procfile")


@pytest.mark.parametrize("root", ["lib", "lib/web"])
async def test_the_root_of_an_app_may_be_in_a_submodule(
    fetch: Any, shop: GitOrigin, lib: GitOrigin, home: Path, root: str
) -> None:
    """It is the submodule itself, or a folder of it."""
    at = lib.commit({f"{root}/{name}".removeprefix("lib").lstrip("/"): data for name, data in APP.items()})
    shop.commit({"README": b""})
    commit = link(shop, "lib", at, "../../lib/origin.git")
    event = await fetched(fetch, shop, root=root)
    assert event.commit == commit
    assert content(home, event, "Procfile") == {"Procfile": APP["Procfile"]}


async def test_a_root_in_a_submodule_that_cannot_be_fetched_is_an_error(fetch: Any, shop: GitOrigin) -> None:
    """Without it there is nothing to deploy."""
    shop.commit({"README": b""})
    link(shop, "lib", "1" * 40, "../../gone.git")
    with pytest.raises(FinalError, match="gone"):
        await fetched(fetch, shop, root="lib")


async def test_submodules_outside_of_the_root_are_not_fetched(fetch: Any, shop: GitOrigin) -> None:
    """They would be named if they were missed."""
    shop.commit({f"web/{name}": data for name, data in APP.items()})
    link(shop, "docs", "1" * 40, "../../gone.git")
    assert (await fetched(fetch, shop, root="web")).description.notes == ()


async def test_a_repository_that_is_its_own_submodule_ends(fetch: Any, shop: GitOrigin) -> None:
    """Once is fine (a branch of pages); a chain over the limit is refused. Its lock is not held twice."""
    pages = shop.commit({"index.html": b"1"}, ref="refs/heads/pages")
    shop.commit(APP)
    shop.git("push", "--quiet", str(shop.bare), f"{pages}:refs/heads/pages")
    commit = link(shop, "public", pages, "./")
    assert (await fetched(fetch, shop, commit)).description.notes == ()
    for number in range(9):
        commit = link(shop, f"again{number}", commit, "./")
    with pytest.raises(TooLarge, match="submodules"):
        await fetched(fetch, shop, commit)


async def test_limits_count_for_all_repositories_together(fetch: Any, shop: GitOrigin, lib: GitOrigin) -> None:
    """Each by itself is below them."""
    at = lib.commit({"large": b"x" * 60_000})
    shop.commit({**APP, "large": b"x" * 60_000})
    link(shop, "lib", at, "../../lib/origin.git")
    with pytest.raises(TooLarge, match="100000 bytes"):
        await fetched(fetch, shop)


def pointer(data: bytes) -> bytes:
    oid = hashlib.sha256(data).hexdigest()
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (oid.encode(), len(data))


def put(origin: GitOrigin, data: bytes) -> None:
    """Content into the LFS store of a repository."""
    oid = hashlib.sha256(data).hexdigest()
    folder = origin.bare / "lfs/objects" / oid[:2] / oid[2:4]
    folder.mkdir(parents=True)
    (folder / oid).write_bytes(data)


ATTRIBUTES = b"*.whl filter=lfs diff=lfs merge=lfs -text\nrequirements.txt filter=lfs\n"


async def test_the_content_of_lfs_files_is_in_the_archive(fetch: Any, shop: GitOrigin, home: Path) -> None:
    """Where `.gitattributes` says so, also one above the root; a file that only looks like a pointer stays."""
    put(shop, b"the wheel")
    shop.commit(
        {
            ".gitattributes": ATTRIBUTES,
            **{f"web/{name}": data for name, data in APP.items()},
            "web/x.whl": pointer(b"the wheel"),
            "web/sample.txt": pointer(b"the wheel"),
        }
    )
    event = await fetched(fetch, shop, root="web")
    assert content(home, event, "x.whl", "sample.txt") == {"x.whl": b"the wheel", "sample.txt": pointer(b"the wheel")}
    assert event.description.notes == ()


async def test_lfs_content_that_is_not_there_is_named(fetch: Any, shop: GitOrigin, home: Path) -> None:
    """The archive has the pointer."""
    shop.commit({**APP, ".gitattributes": ATTRIBUTES, "x.whl": pointer(b"gone")})
    event = await fetched(fetch, shop)
    (note,) = event.description.notes
    assert "Git LFS pointers" in note
    assert "x.whl" in note
    assert content(home, event, "x.whl") == {"x.whl": pointer(b"gone")}


async def test_a_manifest_that_is_a_pointer_is_named_in_the_error(fetch: Any, shop: GitOrigin) -> None:
    """Its text would be taken for the manifest's."""
    shop.commit({".gitattributes": b"Procfile filter=lfs\n", "Procfile": pointer(b"web: x"), "requirements.txt": b""})
    with pytest.raises(FinalError, match="Git LFS pointers, without their content: Procfile"):
        await fetched(fetch, shop)


async def test_lfs_content_counts_for_the_limit(fetch: Any, shop: GitOrigin) -> None:
    """Before a byte of it comes."""
    shop.commit({**APP, ".gitattributes": ATTRIBUTES, "x.whl": pointer(b"x" * 200_000)})
    with pytest.raises(TooLarge, match="Git LFS"):
        await fetched(fetch, shop)


async def test_watched_files_are_told_with_their_digest(fetch: Any, shop: GitOrigin) -> None:
    """None without patterns."""
    shop.commit({**APP, "libs/a": b"1"})
    assert (await fetched(fetch, shop)).watched_digest is None
    settings = BuildSettings(watch=("libs/**",))
    before = await fetched(fetch, shop, settings=settings)
    shop.commit({**APP, "libs/a": b"2"})
    after = await fetched(fetch, shop, settings=settings)
    assert None not in (before.watched_digest, after.watched_digest)
    assert before.watched_digest != after.watched_digest


async def test_a_name_that_is_not_utf_8_comes_through_a_submodule(
    fetch: Any, shop: GitOrigin, lib: GitOrigin, home: Path
) -> None:
    """Names are bytes on every way."""
    name = b"caf\xe9.txt".decode(errors="surrogateescape")
    at = lib.commit({name: b"1"})
    shop.commit({**APP, name: b"2"})
    link(shop, "lib", at, "../../lib/origin.git")
    assert content(home, await fetched(fetch, shop), name, f"lib/{name}") == {name: b"2", f"lib/{name}": b"1"}


async def test_a_gitmodules_that_is_no_config_names_the_submodule(fetch: Any, shop: GitOrigin) -> None:
    """It is foreign text."""
    shop.commit({**APP, ".gitmodules": b"[[[ no config"})
    shop.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},lib")
    shop.git("commit", "--quiet", "--message", "broken")
    shop.move(MAIN, "HEAD")
    (note,) = (await fetched(fetch, shop)).description.notes
    assert "submodule lib stays empty" in note


async def test_an_app_without_source_is_told_what_to_do(fetch: Any) -> None:
    """Neither a repository nor an upload."""
    with pytest.raises(InvalidInput, match="knarr deploy DIR --app shop"):
        await fetch(FetchSource(app="shop"), work=work_of())
