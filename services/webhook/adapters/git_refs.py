"""`RemoteRefs` by `git ls-remote`: only URLs inside the allow-list, nothing written, an end to time and output."""

import re

from seedwork.errors import NotFound
from seedwork.git import GitUrlPolicy, check_ref, run_git
from seedwork.git_credentials import GitCredentials

_LINE = re.compile(r"([0-9a-f]{40})\t(\S+)", re.ASCII)
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
        peeled = f"{ref}^{{}}"
        output = await run_git(
            ["ls-remote", "--quiet", "--end-of-options", clone_url, ref, peeled],
            env=self._credentials.env_for(clone_url),
            timeout_s=self._timeout_s,
            max_output_bytes=_MAX_OUTPUT_BYTES,
            what=f"Asking {clone_url} for {ref}",
        )
        found: dict[str, str] = {name: commit for commit, name in _LINE.findall(output.decode("utf-8", "replace"))}
        commit = found.get(peeled) or found.get(ref)
        if commit is None:
            raise NotFound(
                f"{clone_url} has no {ref}",
                why="the repository has no such branch or tag",
                todo="Push it, or choose another ref.",
                code="ref_not_found",
            )
        return commit
