"""Real repositories through real git: the port's contract, and what only git can get wrong."""

import asyncio
import os
import resource
import subprocess
import tarfile
from pathlib import Path

import pytest
from pydantic import SecretStr

from seedwork.archives import ArchiveLimits, BadArchive, read_members
from seedwork.errors import KnarrError, Misconfigured, TooLarge, Unavailable
from seedwork.git import GitUrlPolicy
from seedwork.git_credentials import GitCredentials
from services.source.adapters.git import GitRepositories
from services.source.errors import NotACommit
from tests.services.source.origins import GitOrigin
from tests.services.source.repository_contract import MAIN, RepositoryContract

LIMITS = ArchiveLimits(max_bytes=100_000, max_entries=200)


@pytest.fixture
def origin(tmp_path: Path) -> GitOrigin:
    return GitOrigin(tmp_path / "host")


@pytest.fixture
def mirrors(tmp_path: Path) -> Path:
    return tmp_path / "mirrors"


@pytest.fixture
def repositories(tmp_path: Path, mirrors: Path) -> GitRepositories:
    return GitRepositories(
        mirrors,
        policy=GitUrlPolicy([f"file://{tmp_path}/host/"]),
        credentials=GitCredentials({}),
        limits=LIMITS,
        fetch_timeout_s=30,
    )


@pytest.fixture
def gone(tmp_path: Path) -> str:
    return f"file://{tmp_path}/host/gone.git"


class TestGitRepositories(RepositoryContract):
    """The contract."""


def the_mirror(mirrors: Path) -> Path:
    (mirror,) = mirrors.glob("*.git")
    return mirror


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def packs(mirror: Path) -> dict[str, int]:
    return {pack.name: pack.stat().st_size for pack in mirror.glob("objects/pack/*.pack")}


def plant_locks(mirror: Path) -> None:
    (ref,) = (mirror / "refs/knarr/refs").iterdir()
    ref.with_name(f"{ref.name}.lock").touch()
    (mirror / "packed-refs.lock").touch()


def overwrite_packs(mirror: Path) -> None:
    for pack in mirror.glob("objects/pack/*"):
        pack.chmod(0o600)
        pack.write_bytes(b"\0" * 100)


async def fetched(repositories: GitRepositories, origin: GitOrigin, commit: str, out: Path, root: str = ".") -> str:
    async with repositories.open(origin.url) as repository:
        await repository.bring(MAIN, commit)
        return (await repository.pack(commit, root, out)).tar.digest


async def test_a_second_fetch_moves_only_what_is_new(
    repositories: GitRepositories, origin: GitOrigin, mirrors: Path, tmp_path: Path
) -> None:
    """One small file more costs a small pack, whatever the repository holds."""
    await fetched(repositories, origin, origin.commit({"large": os.urandom(90_000)}), tmp_path / "1.tar")
    mirror = the_mirror(mirrors)
    before = packs(mirror)
    await fetched(repositories, origin, origin.commit({"large": b"", "small": b"1"}), tmp_path / "2.tar")
    new = [size for name, size in packs(mirror).items() if name not in before]
    assert len(new) == 1
    assert new[0] < 2_000


async def test_a_fetch_that_is_ended_in_the_middle_leaves_no_half_of_a_pack(
    repositories: GitRepositories, origin: GitOrigin, mirrors: Path, tmp_path: Path
) -> None:
    """On a full disk it would keep the room that everybody needs; the next fetch has it."""
    await fetched(repositories, origin, origin.commit({"f": b"1"}), tmp_path / "1.tar")
    mirror = the_mirror(mirrors)
    commit = origin.commit({"large": os.urandom(90_000)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # git is ended by a signal, and cannot clear up
    try:
        with pytest.raises(KnarrError):
            await fetched(repositories, origin, commit, tmp_path / "2.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(mirror.glob("objects/*/tmp_*")) == []

    (mirror / "objects/pack/tmp_pack_of_a_kill").write_bytes(b"PACK")
    await fetched(repositories, origin, commit, tmp_path / "3.tar")
    assert list(mirror.glob("objects/*/tmp_*")) == []


async def test_two_fetches_of_one_repository_at_once_both_succeed(
    repositories: GitRepositories, origin: GitOrigin, tmp_path: Path
) -> None:
    """They take turns; the mirror is made once."""
    first = origin.commit({"f": b"1"})
    second = origin.commit({"f": b"2"})
    digests = await asyncio.gather(
        fetched(repositories, origin, first, tmp_path / "1.tar"),
        fetched(repositories, origin, second, tmp_path / "2.tar"),
        fetched(repositories, origin, first, tmp_path / "3.tar"),
    )
    assert digests[0] == digests[2] != digests[1]


async def test_a_lock_file_of_a_git_that_was_killed_is_no_obstacle(
    repositories: GitRepositories, origin: GitOrigin, mirrors: Path, tmp_path: Path
) -> None:
    """`kill -9` leaves such files behind; whoever holds the mirror's lock may remove them."""
    await fetched(repositories, origin, origin.commit({"f": b"1"}), tmp_path / "1.tar")
    mirror = the_mirror(mirrors)
    plant_locks(mirror)
    await fetched(repositories, origin, origin.commit({"f": b"2"}), tmp_path / "2.tar")
    assert read_members(tmp_path / "2.tar", ["f"], max_bytes=9) == {"f": b"2"}


async def test_a_damaged_mirror_is_made_anew(
    repositories: GitRepositories, origin: GitOrigin, mirrors: Path, tmp_path: Path
) -> None:
    """The first attempt says that it is worth another one, and that one succeeds."""
    commit = origin.commit({"f": b"1"})
    await fetched(repositories, origin, commit, tmp_path / "1.tar")
    mirror = the_mirror(mirrors)
    overwrite_packs(mirror)
    with pytest.raises(Unavailable, match="damaged"):
        await fetched(repositories, origin, commit, tmp_path / "2.tar")
    await fetched(repositories, origin, commit, tmp_path / "3.tar")


async def test_a_commit_that_is_missing_does_not_cost_the_mirror(
    repositories: GitRepositories, origin: GitOrigin, mirrors: Path, tmp_path: Path
) -> None:
    """The host's clear answer is believed."""
    await fetched(repositories, origin, origin.commit({"f": b"1"}), tmp_path / "1.tar")
    mirror = the_mirror(mirrors)
    inode = mirror.stat().st_ino
    with pytest.raises(Exception, match="is not in"):
        await fetched(repositories, origin, "0" * 39 + "1", tmp_path / "2.tar")
    assert mirror.stat().st_ino == inode


async def test_modes_links_and_odd_names_arrive(
    repositories: GitRepositories, origin: GitOrigin, tmp_path: Path
) -> None:
    """What git keeps of a tree is what the archive has."""
    (origin.work / "bin").mkdir()
    (origin.work / "bin/run").write_text("#!/bin/sh\n")
    (origin.work / "bin/run").chmod(0o755)
    (origin.work / "-n ü\n").write_text("odd")
    (origin.work / "latest").symlink_to("bin/run")
    await fetched(repositories, origin, origin.commit_all(), tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        found = {each.name: (each.type, each.mode, each.linkname) for each in archive}
    assert found == {
        "-n ü\n": (tarfile.REGTYPE, 0o644, ""),
        "bin": (tarfile.DIRTYPE, 0o755, ""),
        "bin/run": (tarfile.REGTYPE, 0o755, ""),
        "latest": (tarfile.SYMTYPE, 0o777, "bin/run"),
    }


async def test_a_link_out_of_the_app_s_folder_is_refused(
    repositories: GitRepositories, origin: GitOrigin, tmp_path: Path
) -> None:
    """Inside the repository or not: the folder is all that is deployed. The error names the link and its target."""
    (origin.work / "web").mkdir()
    (origin.work / "shared").write_text("1")
    (origin.work / "web/shared").symlink_to("../shared")
    commit = origin.commit_all()
    with pytest.raises(BadArchive, match=r"'shared' leads to '\.\./shared'"):
        await fetched(repositories, origin, commit, tmp_path / "a.tar", root="web")
    await fetched(repositories, origin, commit, tmp_path / "b.tar")


async def test_submodules_stay_out_and_export_ignore_counts(
    repositories: GitRepositories, origin: GitOrigin, tmp_path: Path
) -> None:
    """As the documentation says: an empty folder in one case, nothing in the other."""
    commit = origin.commit(
        {".gitattributes": b"secret export-ignore\nv export-subst\n", "secret": b"1", "v": b"$Format:%H$"}
    )
    origin.git("update-index", "--add", "--cacheinfo", f"160000,{commit},sub")
    origin.git("commit", "--quiet", "--message", "a submodule")
    commit = origin.git("rev-parse", "HEAD")
    origin.move(MAIN, commit)
    await fetched(repositories, origin, commit, tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert {each.name: each.isdir() for each in archive} == {".gitattributes": False, "sub": True, "v": False}
    assert read_members(tmp_path / "a.tar", ["v"], max_bytes=99) == {"v": b"$Format:%H$"}


async def test_the_id_of_a_tag_object_is_peeled(repositories: GitRepositories, origin: GitOrigin) -> None:
    """An annotated tag, and a tag of that tag, as an id and as a ref: what comes is the commit's id."""
    commit = origin.commit({"f": b"1"})
    origin.commit({"f": b"2"})
    for name, of in (("v1", commit), ("v1-again", "v1")):
        origin.git("tag", "--annotate", "--message", name, name, of)
        origin.move(f"refs/tags/{name}", name)
    ids = [origin.git("rev-parse", name) for name in ("v1", "v1-again")]
    assert commit not in ids
    for tag in ids:
        async with repositories.open(origin.url) as repository:
            assert (await repository.bring(MAIN, tag)).commit == commit
    for name in ("v1", "v1-again"):
        async with repositories.open(origin.url) as repository:
            brought = await repository.bring(f"refs/tags/{name}", None)
            assert (brought.commit, brought.tip) == (commit, commit)


@pytest.mark.parametrize("already_here", [False, True], ids=["not fetched", "fetched"])
@pytest.mark.parametrize(("of", "kind"), [("HEAD^{tree}", "tree"), ("HEAD:f", "blob")])
async def test_what_is_no_commit_is_refused_in_words(
    repositories: GitRepositories, origin: GitOrigin, mirrors: Path, of: str, kind: str, *, already_here: bool
) -> None:
    """By its id, or through a tag; the mirror is not taken for damaged."""
    origin.commit({"f": b"1"})
    named = origin.git("rev-parse", of)
    if not already_here:
        origin.commit({"f": b"2"}, ref="refs/heads/other")
    async with repositories.open(origin.url) as repository:
        await repository.bring(MAIN if already_here else "refs/heads/other", None)
    with pytest.raises(NotACommit, match=f"{named} is a {kind}, no commit"):
        async with repositories.open(origin.url) as repository:
            await repository.bring(MAIN if already_here else "refs/heads/other", named)
    origin.git("tag", "--annotate", "--message", "t", "odd", named)
    origin.move("refs/tags/odd", "odd")
    with pytest.raises(NotACommit, match=f"refs/tags/odd is a {kind}, no commit"):
        async with repositories.open(origin.url) as repository:
            await repository.bring("refs/tags/odd", None)
    assert the_mirror(mirrors).name


async def test_no_hook_and_no_filter_of_the_repository_runs(
    repositories: GitRepositories, origin: GitOrigin, tmp_path: Path
) -> None:
    """A filter stays a name in `.gitattributes`; a hook of the host's runs for nobody who fetches."""
    planted = tmp_path / "ran"
    for name in ("post-checkout", "reference-transaction", "pre-auto-gc", "post-update"):
        hook = origin.bare / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch {planted}\n")
        hook.chmod(0o755)
    planted.unlink(missing_ok=True)
    commit = origin.commit({".gitattributes": b"* filter=evil\n", "f": b"1"})
    planted.unlink(missing_ok=True)  # the push ran them, as it should
    await fetched(repositories, origin, commit, tmp_path / "a.tar")
    assert not planted.exists()


async def test_a_tree_over_the_limits_is_refused_before_it_is_packed(
    repositories: GitRepositories, origin: GitOrigin, tmp_path: Path
) -> None:
    """Too many files, too many bytes."""
    many = origin.commit({f"{number}": b"" for number in range(201)})
    with pytest.raises(TooLarge, match="200 files"):
        await fetched(repositories, origin, many, tmp_path / "1.tar")
    large = origin.commit({"a": b"x" * 60_000, "b": b"x" * 60_000})
    with pytest.raises(TooLarge, match="100000 bytes"):
        await fetched(repositories, origin, large, tmp_path / "2.tar")
    assert not any(".tar" in name for name in names_in(tmp_path))


async def test_a_git_bomb_is_refused(repositories: GitRepositories, origin: GitOrigin, tmp_path: Path) -> None:
    """Ten trees of ten entries each, one in the other: 10^10 files in a few hundred bytes."""

    def make(kind: str, text: str) -> str:
        return subprocess.run(
            ["git", *kind.split()], cwd=origin.work, input=text, capture_output=True, text=True, check=True
        ).stdout.strip()

    below = make("hash-object -w --stdin", "boom")
    mode, what = "100644", "blob"
    for _ in range(10):
        below = make("mktree", "".join(f"{mode} {what} {below}\tf{n}\n" for n in range(10)))
        mode, what = "040000", "tree"
    origin.git("commit", "--quiet", "--allow-empty", "--message", "parent")
    commit = origin.git("commit-tree", "-m", "bomb", below)
    origin.move(MAIN, commit)
    with pytest.raises(TooLarge):
        await fetched(repositories, origin, commit, tmp_path / "a.tar")


async def test_a_fetch_that_takes_too_long_is_worth_another_attempt(
    tmp_path: Path, origin: GitOrigin, mirrors: Path
) -> None:
    """The network's fault, not the user's."""
    slow = GitRepositories(
        mirrors,
        policy=GitUrlPolicy([f"file://{tmp_path}/host/"]),
        credentials=GitCredentials({}),
        limits=LIMITS,
        fetch_timeout_s=0.0001,
    )
    with pytest.raises(Unavailable, match="did not finish"):
        await fetched(slow, origin, origin.commit({"f": b"1"}), tmp_path / "a.tar")


async def test_mirrors_go_when_nobody_uses_them(
    repositories: GitRepositories, origin: GitOrigin, mirrors: Path, tmp_path: Path
) -> None:
    """One that was used lately stays."""
    await fetched(repositories, origin, origin.commit({"f": b"1"}), tmp_path / "a.tar")
    assert await repositories.sweep(3600) == 0
    assert await repositories.sweep(0) == 1
    assert not any(name.endswith(".git") for name in names_in(mirrors))


def test_a_token_goes_to_its_prefix_only() -> None:
    """In the environment, for the longest prefix; nothing for others."""
    setting = SecretStr("https://git.example/=one,https://git.example/acme/=ada:two=")
    credentials = GitCredentials.from_setting(setting)
    assert credentials.env_for("https://git.example/acme/shop.git") == {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "http.https://git.example/acme/.extraHeader",
        "GIT_CONFIG_VALUE_0": "Authorization: Basic YWRhOnR3bz0=",
    }
    assert credentials.env_for("https://git.example/acme2/shop.git")["GIT_CONFIG_VALUE_0"].endswith(
        "eC1hY2Nlc3MtdG9rZW46b25l"
    )
    assert credentials.env_for("https://git.example.org/acme/shop.git") == {}


@pytest.mark.parametrize("text", ["token", "https://h/=", "http://h/=s3cret", "ssh://h/=s3cret", "https://h/=s3\ncret"])
def test_wrong_credentials_are_refused_without_repeating_them(text: str) -> None:
    """A setting's error must not tell a secret."""
    with pytest.raises(Misconfigured) as caught:
        GitCredentials.from_setting(SecretStr(text))
    assert "s3" not in caught.value.message
