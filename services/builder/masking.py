"""Secrets out of build output: raw bytes in, bytes without known secrets and passwords of URLs out. Pure.

Every function takes time linear in its text for a fixed set of secrets: one long line must not block a service.
"""

import re
from collections.abc import Iterable

from seedwork.masking import forms_of

MASK = b"****"
SECRET_BYTES = 4
"""Length in bytes below which a value is not masked: shorter values would blacken ordinary words."""
_SCHEME = re.compile(rb"[a-zA-Z][a-zA-Z0-9+.-]{0,31}\Z")
_USERINFO_END = re.compile(rb"[/\s'\"]")
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\r(?!\n)")
_UNFINISHED_ESCAPE = re.compile(rb"\x1b(?:\[[0-9;?]{0,30}[ -/]{0,8})?\Z")
_UNFINISHED_BYTES = 64
_SCHEME_BYTES = 32


class Mask:
    """The secrets of one build.

    Args:
        secrets: Values that are not shown, as they stand in the output.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known: set[bytes] = set()
        for secret in secrets:
            known.update(form.encode(errors="surrogatepass") for form in forms_of(secret, shortest=SECRET_BYTES))
        self._secrets = sorted(known, key=len, reverse=True)
        self.longest = max(map(len, self._secrets), default=0)
        """Length of the longest secret in bytes."""

    def clean(self, text: bytes, *, before: bytes = b"") -> bytes:
        """Return the text without escape sequences, carriage returns, secrets and user parts of URLs.

        Args:
            text: Output of a tool, at most one line.
            before: What of the same line is shown already; a URL may begin there.
        """
        text = before[-_SCHEME_BYTES - 3 :] + _ESCAPES.sub(b"", text)
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return _without_userinfo(text)[len(before[-_SCHEME_BYTES - 3 :]) :]

    def safe_bytes(self, partial: bytes, *, before: bytes = b"") -> int:
        """Return how many leading bytes of an unfinished line can be shown before the rest of the line is known.

        The rest may turn out to be the end of an escape sequence, of a secret, or of the user part of a URL. `before`
        is what of the line is shown already.
        """
        safe = len(partial)
        tail = max(0, len(partial) - _UNFINISHED_BYTES)
        if found := _UNFINISHED_ESCAPE.search(partial, tail):
            safe = found.start()
        if partial.endswith(b"\r"):
            safe = min(safe, len(partial) - 1)
        for secret in self._secrets:
            safe = min(safe, _unfinished_secret(partial, secret))
        before = before[-_SCHEME_BYTES - 3 :]
        return min(safe, max(0, _unfinished_url(before + partial) - len(before)))


def _without_userinfo(text: bytes) -> bytes:
    pieces: list[bytes] = []
    shown = at = 0
    while (found := text.find(b"://", at)) >= 0:
        start = found + 3
        end = match.start() if (match := _USERINFO_END.search(text, start)) else len(text)
        last = text.rfind(b"@", start, end)
        if last > start and _SCHEME.search(text, max(shown, found - _SCHEME_BYTES), found):
            pieces += [text[shown:start], MASK]
            shown = last
        at = max(end - 1, start)  # its `/` may belong to the next `://`
    return b"".join([*pieces, text[shown:]]) if pieces else text


def _unfinished_secret(partial: bytes, secret: bytes) -> int:
    """Where a beginning of the secret stands at the end of the text; else the text's length."""
    start = max(0, len(partial) - len(secret) + 1)
    head = secret[:SECRET_BYTES]
    at = partial.find(head, start)
    while at >= 0:
        if secret.startswith(partial[at:]):
            return at
        at = partial.find(head, at + 1)
    lengths = range(min(len(head) - 1, len(partial)), 0, -1)
    return next((len(partial) - n for n in lengths if partial.endswith(secret[:n])), len(partial))


def _unfinished_url(partial: bytes) -> int:
    """Where the user part of a URL begins that may still go on; else the text's length."""
    found = partial.rfind(b"://")
    if found < 0 or _USERINFO_END.search(partial, found + 3):
        return len(partial)
    return found + 3
