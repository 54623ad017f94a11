"""What every adapter of the `Repositories` port keeps, and its fake as well."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pytest

from seedwork.archives import ArchiveLimits, NotAFolder, extract_tar, read_members
from seedwork.errors import InvalidInput, NotAllowed
from services.source.errors import CommitNotFound, RepositoryRefused
from services.source.ports import Repositories

MAIN = "refs/heads/main"
NOWHERE = "0123456789abcdef0123456789abcdef01234567"


class Origin(Protocol):
    """A repository that the test can change."""

    url: str

    def commit(self, files: Mapping[str, bytes], *, ref: str = MAIN) -> str: ...
    def move(self, ref: str, commit: str) -> None: ...
    def remove(self, ref: str) -> None: ...


class RepositoryContract:
    """Fixtures to bring: `origin`, `repositories` that may talk to it, `gone` (a URL with nothing behind it)."""

    async def test_the_exact_commit_comes_not_the_tip(
        self, repositories: Repositories, origin: Origin, tmp_path: Path
    ) -> None:
        """The ref has moved on; what was asked for is what is packed."""
        first = origin.commit({"f": b"1"})
        second = origin.commit({"f": b"2"})
        async with repositories.open(origin.url) as repository:
            brought = await repository.bring(MAIN, first)
            assert (brought.commit, brought.tip) == (first, second)
            await repository.pack(first, ".", tmp_path / "a.tar")
        assert read_members(tmp_path / "a.tar", ["f"], max_bytes=10) == {"f": b"1"}

    async def test_without_a_commit_the_tip_comes(self, repositories: Repositories, origin: Origin) -> None:
        """Of the ref, or of HEAD where there is none."""
        commit = origin.commit({"f": b"1"})
        async with repositories.open(origin.url) as repository:
            assert (await repository.bring(MAIN, None)).commit == commit
            assert (await repository.bring(None, None)).commit == commit

    async def test_what_was_pushed_later_is_found_too(self, repositories: Repositories, origin: Origin) -> None:
        """What is here from before does not hide what is new."""
        first = origin.commit({"f": b"1"})
        async with repositories.open(origin.url) as repository:
            await repository.bring(MAIN, first)
        second = origin.commit({"f": b"2"})
        async with repositories.open(origin.url) as repository:
            assert (await repository.bring(MAIN, second)).tip == second
            assert await repository.is_ancestor(first, second)

    async def test_a_commit_that_a_force_push_took_away_is_asked_for_by_name(
        self, repositories: Repositories, origin: Origin
    ) -> None:
        """Hosts give it for as long as they have it."""
        base = origin.commit({"f": b"1"})
        lost = origin.commit({"f": b"2"})
        origin.move(MAIN, base)
        async with repositories.open(origin.url) as repository:
            brought = await repository.bring(MAIN, lost)
        assert (brought.commit, brought.tip) == (lost, base)

    async def test_a_commit_whose_branch_was_deleted_is_asked_for_by_name(
        self, repositories: Repositories, origin: Origin
    ) -> None:
        """There is no tip then."""
        origin.commit({"f": b"1"})
        commit = origin.commit({"f": b"2"}, ref="refs/heads/feature")
        origin.remove("refs/heads/feature")
        async with repositories.open(origin.url) as repository:
            brought = await repository.bring("refs/heads/feature", commit)
        assert (brought.commit, brought.tip) == (commit, None)

    async def test_what_is_not_there_is_said_to_be_missing(self, repositories: Repositories, origin: Origin) -> None:
        """A commit that nobody ever made; a ref that does not exist."""
        origin.commit({"f": b"1"})
        async with repositories.open(origin.url) as repository:
            with pytest.raises(CommitNotFound, match=NOWHERE):
                await repository.bring(MAIN, NOWHERE)
            with pytest.raises(CommitNotFound, match="refs/heads/nowhere"):
                await repository.bring("refs/heads/nowhere", None)

    async def test_a_repository_that_is_not_there_is_refused(self, repositories: Repositories, gone: str) -> None:
        """Hosts do not tell it from one that we may not read."""
        async with repositories.open(gone) as repository:
            with pytest.raises(RepositoryRefused, match="cannot be read"):
                await repository.bring(MAIN, NOWHERE)

    @pytest.mark.parametrize("commit", ["main", "HEAD", "--upload-pack=x", "9c1d", "9C" * 20, "", "a" * 41])
    async def test_a_commit_is_forty_hex_digits(self, repositories: Repositories, origin: Origin, commit: str) -> None:
        """Nothing that git could take for something else."""
        async with repositories.open(origin.url) as repository:
            with pytest.raises(InvalidInput):
                await repository.bring(MAIN, commit)

    @pytest.mark.parametrize("ref", ["main", "--exec=x", "refs/heads/../x", "refs/heads/a b", "refs/heads/a:b", ""])
    async def test_a_ref_is_a_full_name(self, repositories: Repositories, origin: Origin, ref: str) -> None:
        """Nothing that git could take for an option or a refspec."""
        async with repositories.open(origin.url) as repository:
            with pytest.raises(InvalidInput):
                await repository.bring(ref, None)

    @pytest.mark.parametrize("url", ["file:///etc/", "https://example.org/a/b.git", "ssh://git@example.org/a.git"])
    async def test_a_url_outside_of_the_allow_list_is_not_talked_to(self, repositories: Repositories, url: str) -> None:
        """Before anything is opened."""
        with pytest.raises(NotAllowed):
            async with repositories.open(url):
                pass

    @pytest.mark.parametrize("url", ["--upload-pack=touch /tmp/x", "ext::sh -c id", "", "https://u:p@example.org/a"])
    async def test_what_is_no_url_is_not_talked_to(self, repositories: Repositories, url: str) -> None:
        """An option, a remote helper, credentials."""
        with pytest.raises(InvalidInput):
            async with repositories.open(url):
                pass

    async def test_ancestors_are_told_from_others(self, repositories: Repositories, origin: Origin) -> None:
        """A commit is not its own ancestor, and nothing is one of what is not here."""
        base = origin.commit({"f": b"0"})
        left = origin.commit({"f": b"1"})
        origin.move("refs/heads/other", base)
        right = origin.commit({"f": b"2"}, ref="refs/heads/other")
        async with repositories.open(origin.url) as repository:
            await repository.bring(MAIN, left)
            await repository.bring("refs/heads/other", right)
            assert await repository.is_ancestor(base, left)
            assert not await repository.is_ancestor(left, base)
            assert not await repository.is_ancestor(left, right)
            assert not await repository.is_ancestor(base, base)
            assert not await repository.is_ancestor(base, NOWHERE)

    async def test_a_folder_of_the_repository_can_be_the_app(
        self, repositories: Repositories, origin: Origin, tmp_path: Path
    ) -> None:
        """Its content stands at the archive's root, and nothing beside it is there."""
        commit = origin.commit({"services/web/app.py": b"1", "README": b"2"})
        async with repositories.open(origin.url) as repository:
            await repository.bring(MAIN, commit)
            await repository.pack(commit, "./services/web/", tmp_path / "a.tar")
            for number, root in enumerate(["nowhere", "README"]):
                with pytest.raises(NotAFolder):
                    await repository.pack(commit, root, tmp_path / f"no{number}.tar")
            for number, root in enumerate(["..", "/services", "services/../.."]):
                with pytest.raises(InvalidInput):
                    await repository.pack(commit, root, tmp_path / f"bad{number}.tar")
        extract_tar(tmp_path / "a.tar", tmp_path / "out", limits=ArchiveLimits())
        assert [path.name for path in (tmp_path / "out").rglob("*")] == ["app.py"]

    async def test_the_same_tree_has_the_same_digest_in_every_commit(
        self, repositories: Repositories, origin: Origin, tmp_path: Path
    ) -> None:
        """A revert gives the archive of before."""
        first = origin.commit({"a/f": b"1", "a.b": b"2"})
        origin.commit({"a/f": b"3"})
        again = origin.commit({"a/f": b"1", "a.b": b"2"})
        async with repositories.open(origin.url) as repository:
            await repository.bring(MAIN, again)
            before = await repository.pack(first, ".", tmp_path / "1.tar")
            after = await repository.pack(again, ".", tmp_path / "2.tar")
        assert first != again
        assert before == after
        assert (tmp_path / "1.tar").stat().st_size == before.tar.size_bytes

    async def test_watched_files_have_a_digest_of_their_own(self, repositories: Repositories, origin: Origin) -> None:
        """Another content or another file that matches changes it; anything else, also another commit, does not."""
        files = {"app/f": b"1", "libs/a/x.py": b"1", "libs/docs.md": b"1", "go.mod": b"1"}
        watch = ["libs/**", "/go.mod", "!*.md"]
        commits = [
            origin.commit(files),
            origin.commit({**files, "app/f": b"2", "libs/docs.md": b"2", "app/go.mod": b"1"}),
            origin.commit({**files, "libs/a/x.py": b"2"}),
            origin.commit({**files, "libs/b": b"1"}),
            origin.commit({**files, "go.mod": b"2"}),
        ]
        async with repositories.open(origin.url) as repository:
            await repository.bring(MAIN, commits[-1])
            digests = [await repository.watched(commit, watch) for commit in commits]
        assert digests[0] == digests[1]
        assert len(set(digests)) == 4
