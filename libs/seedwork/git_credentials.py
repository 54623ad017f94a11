"""Tokens for private repositories: by URL prefix, handed to git in its environment, never in an argument or a log.

Takes the text of `KNARR_SOURCE_CREDENTIALS` (`prefix=token` pairs), gives what to add to git's environment for one
clone URL: the token of the longest prefix that holds it, and no other.
"""

import base64
from collections.abc import Mapping
from typing import Self

from pydantic import SecretStr

from seedwork.errors import InvalidInput, Misconfigured
from seedwork.git import GitUrl


class GitCredentials:
    """The tokens that this installation has."""

    def __init__(self, by_prefix: Mapping[str, SecretStr]) -> None:
        """Take tokens by https URL prefix.

        Raises:
            Misconfigured: A prefix is no https URL.
        """
        self._known = sorted(
            ((prefix, _https(prefix), token) for prefix, token in by_prefix.items()),
            key=lambda known: len(known[1].segments),
            reverse=True,
        )

    @classmethod
    def from_setting(cls, text: SecretStr | None) -> Self:
        """From `https://host/path/=token` pairs with commas between them; a token may be `user:password`.

        Raises:
            Misconfigured: It has another form. The text is not repeated: it holds secrets.
        """
        by_prefix: dict[str, SecretStr] = {}
        for number, pair in enumerate((text.get_secret_value() if text else "").split(","), start=1):
            if not pair.strip():
                continue
            prefix, equals, token = pair.strip().partition("=")
            if not equals or not token or not token.isascii() or not token.isprintable():
                raise _misconfigured(f"its entry {number} is not prefix=token")
            by_prefix[prefix] = SecretStr(token)
        return cls(by_prefix)

    def env_for(self, clone_url: str) -> Mapping[str, str]:
        """What to add to git's environment; nothing, where no prefix holds this URL.

        Raises:
            InvalidInput: It is no URL to clone from.
        """
        prefix, value = self._found(clone_url)
        if not value:
            return {}
        return {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{prefix}.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: {value}",
        }

    def authorization_for(self, clone_url: str) -> str | None:
        """The value of the header `Authorization`; None, where no prefix holds this URL.

        Raises:
            InvalidInput: It is no URL to clone from.
        """
        return self._found(clone_url)[1] or None

    def _found(self, clone_url: str) -> tuple[str, str]:
        wanted = GitUrl.parse(clone_url)
        for prefix, parsed, token in self._known:
            if wanted.inside(parsed):
                value = token.get_secret_value()
                login = value if ":" in value else f"x-access-token:{value}"
                return prefix, f"Basic {base64.b64encode(login.encode()).decode()}"
        return "", ""


def _https(prefix: str) -> GitUrl:
    try:
        parsed = GitUrl.parse(prefix)
    except InvalidInput as error:
        raise _misconfigured("a prefix in it is no URL") from error
    if parsed.scheme != "https":
        raise _misconfigured("a token travels over https only; for ssh, put a key into ~/.ssh")
    return parsed


def _misconfigured(why: str) -> Misconfigured:
    return Misconfigured(
        "KNARR_SOURCE_CREDENTIALS cannot be read",
        why=why,
        todo="It is a list of prefix=token pairs with commas between them: https://github.com/acme/=TOKEN.",
    )
