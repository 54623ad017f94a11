"""What every `RemoteRefs` promises, asked of git with real repositories and of the fake that unit tests use."""

import abc
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from seedwork.errors import InvalidInput, NotAllowed, NotFound, Unauthenticated, Unavailable
from seedwork.git import GitUrlPolicy, run_git
from seedwork.git_credentials import GitCredentials
from services.webhook.adapters.git_refs import GitRefs
from services.webhook.ports import RemoteRefs
from tests.services.webhook.conftest import FakeRefs

LIMITS: dict[str, Any] = {"timeout_s": 20.0, "max_output_bytes": 10_000}
WHO = ["-c", "user.name=Ada", "-c", "user.email=ada@acme.example"]


class RemoteRefsContract(abc.ABC):
    """The promises."""

    url: str
    refs: RemoteRefs

    @abc.abstractmethod
    async def push(self, ref: str) -> str:
        """Put a new commit there; its id."""

    @abc.abstractmethod
    async def tag(self, name: str, ref: str) -> None:
        """Put an annotated tag on that ref's tip."""

    @abc.abstractmethod
    async def set_head(self, ref: str) -> None:
        """Make that branch the default."""

    async def test_the_tip_is_the_newest_commit(self) -> None:
        """Now, not when it was first asked."""
        first = await self.push("refs/heads/main")
        assert await self.refs.tip(self.url, "refs/heads/main") == first
        second = await self.push("refs/heads/main")
        assert await self.refs.tip(self.url, "refs/heads/main") == second != first

    async def test_each_ref_has_its_own_tip(self) -> None:
        """Names that end alike are not mixed up."""
        main = await self.push("refs/heads/main")
        other = await self.push("refs/heads/team/main")
        confusing = await self.push("refs/heads/refs/heads/main")
        assert await self.refs.tip(self.url, "refs/heads/main") == main
        assert await self.refs.tip(self.url, "refs/heads/team/main") == other
        assert await self.refs.tip(self.url, "refs/heads/refs/heads/main") == confusing

    async def test_an_annotated_tag_is_followed_to_its_commit(self) -> None:
        """A deployment names commits only."""
        commit = await self.push("refs/heads/main")
        await self.tag("v1", "refs/heads/main")
        assert await self.refs.tip(self.url, "refs/tags/v1") == commit

    async def test_a_short_name_means_a_branch_or_a_tag(self) -> None:
        """A branch counts where both have the name; a tag object is followed to its commit."""
        main = await self.push("refs/heads/main")
        await self.tag("v1.2", "refs/heads/main")
        await self.tag("both", "refs/heads/main")
        both = await self.push("refs/heads/both")
        await self.push("refs/heads/team/v1.2")
        assert await self.refs.named(self.url, "v1.2") == ("refs/tags/v1.2", main)
        assert await self.refs.named(self.url, "both") == ("refs/heads/both", both)
        with pytest.raises(NotFound, match="nowhere"):
            await self.refs.named(self.url, "nowhere")

    async def test_the_default_branch_is_the_one_that_head_names(self) -> None:
        """A branch of the name `main` beside it changes nothing."""
        await self.push("refs/heads/main")
        await self.push("refs/heads/master")
        await self.set_head("refs/heads/master")
        assert await self.refs.default_branch(self.url) == "refs/heads/master"

    async def test_a_ref_that_is_not_there_is_not_found(self) -> None:
        """Final: asking again would say the same."""
        await self.push("refs/heads/main")
        for ref in ("refs/heads/nowhere", "refs/heads/mai", "refs/heads/main/x"):
            with pytest.raises(NotFound, match=ref):
                await self.refs.tip(self.url, ref)

    async def test_a_repository_that_is_not_there_is_not_found(self) -> None:
        """Final, too."""
        with pytest.raises(NotFound):
            await self.refs.tip(self.url + "-elsewhere", "refs/heads/main")


class TestFakeRefs(RemoteRefsContract):
    """The fake keeps the promises, so that tests which use it mean something."""

    @pytest.fixture(autouse=True)
    def _made(self) -> None:
        self.url = "https://github.com/acme/shop.git"
        self.refs = self.fake = FakeRefs()

    async def push(self, ref: str) -> str:
        """Count commits."""
        commit = f"{len(self.fake.tips) + len(self.fake.asked) + 1:040x}"
        self.fake.tips[self.url, ref] = commit
        return commit

    async def tag(self, name: str, ref: str) -> None:
        """The same commit."""
        self.fake.tips[self.url, f"refs/tags/{name}"] = self.fake.tips[self.url, ref]

    async def set_head(self, ref: str) -> None:
        """Written down."""
        self.fake.defaults[self.url] = ref


class TestGitRefs(RemoteRefsContract):
    """git, with a real repository on this disk."""

    @pytest.fixture(autouse=True)
    async def _made(self, tmp_path: Path) -> None:
        self.origin = tmp_path / "allowed" / "shop"
        self.origin.mkdir(parents=True)
        await run_git(["init", "--quiet", "--initial-branch=trunk", "."], cwd=self.origin, **LIMITS)
        self.url = f"file://{self.origin}"
        self.refs = self.of(f"file://{tmp_path}/allowed/")

    def of(self, allow: str, timeout_s: float = 20.0) -> GitRefs:
        """An adapter with this allow-list."""
        return GitRefs(GitUrlPolicy([allow]), credentials=GitCredentials({}), timeout_s=timeout_s)

    async def push(self, ref: str) -> str:
        """An empty commit."""
        args = [*WHO, "commit", "--quiet", "--allow-empty", f"--message={ref}"]
        await run_git(args, cwd=self.origin, **LIMITS)
        commit = (await run_git(["rev-parse", "HEAD"], cwd=self.origin, **LIMITS)).decode().strip()
        await run_git(["update-ref", ref, commit], cwd=self.origin, **LIMITS)
        return commit

    async def tag(self, name: str, ref: str) -> None:
        """An annotated one: an object of its own."""
        await run_git([*WHO, "tag", "--annotate", "--message=x", name, ref], cwd=self.origin, **LIMITS)

    async def set_head(self, ref: str) -> None:
        """In the repository itself."""
        await run_git(["symbolic-ref", "HEAD", ref], cwd=self.origin, **LIMITS)

    @pytest.mark.parametrize("url", ["https://github.com/acme/shop.git", "file:///etc"])
    async def test_a_url_outside_the_allow_list_is_not_asked(self, url: str) -> None:
        """Whoever calls it."""
        with pytest.raises(NotAllowed, match="KNARR_SOURCE_ALLOW"):
            await self.refs.tip(url, "refs/heads/main")

    @pytest.mark.parametrize("ref", ["--upload-pack=id", "main", "refs/heads/*", "refs/heads/-x"])
    async def test_a_ref_that_is_none_is_not_asked_for(self, ref: str) -> None:
        """Options and patterns."""
        with pytest.raises(InvalidInput):
            await self.refs.tip(self.url, ref)

    async def test_a_host_that_does_not_answer_is_a_passing_fault(self) -> None:
        """Port 9 on this machine is closed."""
        with pytest.raises(Unavailable, match=r"Asking https://127\.0\.0\.1:9/acme/shop for refs/heads/main failed"):
            await self.of("https://127.0.0.1:9/").tip("https://127.0.0.1:9/acme/shop", "refs/heads/main")

    async def test_a_token_reaches_git_but_no_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It travels in the environment of the one command, never in an argument."""
        seen = tmp_path / "seen"
        fake = tmp_path / "bin" / "git"
        fake.parent.mkdir()
        script = f'#!/bin/sh\n{{ echo "$@"; echo "HEADER $GIT_CONFIG_VALUE_0"; }} > {seen}\n'
        script += "echo 'fatal: could not read Username: terminal prompts disabled' >&2\nexit 128\n"
        fake.write_text(script)
        fake.chmod(0o700)
        monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
        credentials = GitCredentials({"https://github.com/acme/": SecretStr("ada:hunter2")})
        refs = GitRefs(GitUrlPolicy(["https://github.com/"]), credentials=credentials, timeout_s=20.0)
        with pytest.raises(Unauthenticated) as caught:
            await refs.tip("https://github.com/acme/shop.git", "refs/heads/main")
        arguments, header = seen.read_text().splitlines()
        assert header == "HEADER Authorization: Basic YWRhOmh1bnRlcjI="
        for text in (arguments, caught.value.message):
            assert "hunter2" not in text
            assert "YWRhOmh1bnRlcjI" not in text
