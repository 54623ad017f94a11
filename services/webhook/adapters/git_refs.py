"""`RemoteRefs` by `git ls-remote`: only URLs inside the allow-list, nothing written, an end to time and output."""

import re

from seedwork.errors import NotFound
from seedwork.git import GitUrlPolicy, check_ref, run_git
from seedwork.git_credentials import GitCredentials

_LINE = re.compile(r"([0-9a-f]{40})\t(\S+)", re.ASCII)
_HEAD = re.compile(r"^ref: (refs/heads/\S+)\tHEAD$", re.ASCII | re.MULTILINE)
_MAX_OUTPUT_BYTES = 64 * 1024
"""Two lines are asked for; a hostile server may send as many as it likes."""


class GitRefs:
    """Asks with git, in a process of its own."""

    def __init__(self, policy: GitUrlPolicy, *, credentials: GitCredentials, timeout_s: float) -> None:
        """Take the allow-list, the tokens for private repositories, and the seconds that one answer may take."""
        self._policy = policy
        self._credentials = credentials
        self._timeout_s = timeout_s

    async def tip(self, clone_url: str, ref: str) -> str:
        """The commit at the tip; an annotated tag is followed to its commit. See `RemoteRefs`."""
        self._policy.check(clone_url)
        check_ref(ref)
        commit = _tip_of(ref, await self._asked(clone_url, ref, ref, f"{ref}^{{}}"))
        if commit is None:
            raise _missing(clone_url, ref)
        return commit

    async def default_branch(self, clone_url: str) -> str:
        """The branch that HEAD names. See `RemoteRefs`."""
        self._policy.check(clone_url)
        match = _HEAD.search(await self._asked(clone_url, "its default branch", "--symref", "HEAD"))
        if match is None:
            raise NotFound(
                f"{clone_url} names no default branch",
                why="it is empty, or its HEAD is no branch",
                todo="Name the branch: `knarr apps create APP --ref BRANCH`.",
                code="ref_not_found",
            )
        check_ref(match[1])
        return match[1]

    async def named(self, clone_url: str, name: str) -> tuple[str, str]:
        """The branch or the tag of a short name. See `RemoteRefs`."""
        self._policy.check(clone_url)
        refs = (f"refs/heads/{name}", f"refs/tags/{name}")
        for ref in refs:
            check_ref(ref)
        answer = await self._asked(clone_url, name, *refs, f"{refs[1]}^{{}}")
        found = next(((ref, tip) for ref in refs if (tip := _tip_of(ref, answer)) is not None), None)
        if found is None:
            raise _missing(clone_url, name)
        return found

    async def _asked(self, clone_url: str, wanted: str, *args: str) -> str:
        options = [each for each in args if each.startswith("--")]
        patterns = [each for each in args if not each.startswith("--")]
        output = await run_git(
            ["ls-remote", "--quiet", *options, "--end-of-options", clone_url, *patterns],
            env=self._credentials.env_for(clone_url),
            timeout_s=self._timeout_s,
            max_output_bytes=_MAX_OUTPUT_BYTES,
            what=f"Asking {clone_url} for {wanted}",
        )
        return output.decode("utf-8", "replace")


def _tip_of(ref: str, answer: str) -> str | None:
    found: dict[str, str] = {name: commit for commit, name in _LINE.findall(answer)}
    return found.get(f"{ref}^{{}}") or found.get(ref)


def _missing(clone_url: str, ref: str) -> NotFound:
    return NotFound(
        f"{clone_url} has no {ref}",
        why="the repository has no such branch or tag",
        todo="Push it, or choose another ref.",
        code="ref_not_found",
    )
