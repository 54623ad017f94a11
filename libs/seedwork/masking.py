"""Secrets out of text that is kept: the forms in which a secret is printed, and lines without them. Pure.

Every place that keeps output of apps and builds uses these forms: build logs as they are written, last lines of an
instance, and whatever a participant answers (saga log, job rows, events, dead letters). Time is linear in the text for
a fixed set of secrets.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

MASK = "********"
SHORTEST = 6
"""Length in characters below which a value is not masked: shorter values would blacken ordinary words."""
_LONGEST_CUT = 4096
"""Length in characters of the longest end of a line that is compared with the beginning of a secret."""
FRAGMENT = 8
"""Length in characters from which a part of a secret is masked: a line of it, an end that was cut off, or base64."""


def forms_of(secret: str, *, shortest: int = SHORTEST) -> set[str]:
    """Return the texts in which the secret shows: as it is, its lines, encoded, and the password of a URL.

    Args:
        secret: As it was given.
        shortest: Length in characters below which it is no secret.
    """
    found: set[str] = set()
    for value in {secret, secret.strip(), _password(secret)}:
        if len(value) < shortest:
            continue
        lines = value.splitlines()
        found |= {value.replace("\r", "").replace("\n", ""), *(each for each in lines if len(each) >= FRAGMENT)}
        found |= {quote(value, safe=""), json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
        if len(value) >= FRAGMENT:
            found |= set(_base64_of(value))
    return {each for each in found if len(each) >= shortest}


def _password(secret: str) -> str:
    """Return the password of a URL; empty: it is none."""
    if "://" not in secret:
        return ""
    try:
        return urlsplit(secret).password or ""
    except ValueError:
        return ""


def _base64_of(value: str) -> Iterator[str]:
    """Yield what stands in base64 of any text that has the value in it, at each of the three offsets."""
    raw = value.encode(errors="surrogatepass")
    for offset in range(3):
        coded = base64.b64encode(bytes(offset) + raw).rstrip(b"=").decode()
        first = -(-offset * 8 // 6)  # digits that the bytes before it have a part in
        last = (offset + len(raw)) * 8 // 6  # and those after it
        inner = coded[first:last]
        if len(inner) >= FRAGMENT:
            yield inner
            yield inner.replace("+", "-").replace("/", "_")


class Hidden:
    """Secrets of one work or one app.

    Args:
        secrets: As they were given; short ones are passed over.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets for form in forms_of(secret)}
        self._forms = sorted(forms, key=lambda each: (-len(each), each))

    def __bool__(self) -> bool:
        """Whether there is anything to hide."""
        return bool(self._forms)

    def text(self, text: str) -> str:
        """Return the text without the secrets."""
        return "\n".join(self.lines(text.split("\n"))) if self._forms else text

    def lines(self, lines: Sequence[str]) -> tuple[str, ...]:
        """Return the lines without the secrets, also those that go on in the next line or were cut at an end.

        Args:
            lines: In their order; they may begin or end in the middle of a secret.
        """
        spans = [*self._spans("".join(lines)), *self._cut(lines)]
        return _without(lines, _merged(spans))

    def value(self, value: Any) -> Any:
        """Return a JSON value with its texts masked."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list | tuple):
            if value and all(isinstance(each, str) for each in value):
                return list(self.lines(list(value)))
            return [self.value(each) for each in value]
        if isinstance(value, dict):
            return {name: self.value(each) for name, each in value.items()}
        return value

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        for form in self._forms:
            at = text.find(form)
            while at >= 0:
                yield at, at + len(form)
                at = text.find(form, at + len(form))

    def _cut(self, lines: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Yield beginnings of secrets at the end of a line, and ends of secrets at the beginning of the first one."""
        end = 0
        for line in lines:
            end += len(line)
            for form in self._forms:
                if length := _prefix_at_end(line, form):
                    yield end - length, end
        for form in self._forms:
            if lines and (length := _prefix_at_end(lines[0][::-1], form[::-1])):
                yield 0, length


def _prefix_at_end(line: str, form: str) -> int:
    """Return how many characters at the end of the line begin the form, if they are enough to matter; else 0."""
    head, start = form[:FRAGMENT], max(0, len(line) - min(len(form), _LONGEST_CUT) + 1)
    at = line.find(head, start)
    while at >= 0:
        if form.startswith(line[at:]):
            return len(line) - at
        at = line.find(head, at + 1)
    return 0


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _without(lines: Sequence[str], spans: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Replace the spans of the joined text; one that goes over several lines is masked in each of them."""
    shown = []
    begin = index = 0
    for line in lines:
        end, pieces, at = begin + len(line), [], begin
        while index < len(spans) and spans[index][0] < end:
            start, stop = max(spans[index][0], begin), min(spans[index][1], end)
            pieces += [line[at - begin : start - begin], MASK]
            at = stop
            if spans[index][1] > end:
                break
            index += 1
        shown.append("".join([*pieces, line[at - begin :]]))
        begin = end
    return tuple(shown)
