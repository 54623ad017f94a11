"""Names of ours in, names that an engine or a cluster takes out; two different names never become the same.

What is valid everywhere is a DNS label (RFC 1123): lower-case letters, digits and hyphens, at most 63 characters,
beginning and ending with a letter or digit. Where a name had to be changed, a part of its hash keeps it apart.
"""

import hashlib
import re

LABEL_CHARS = 63

_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?", re.ASCII)
_OTHER = re.compile(r"[^a-z0-9]+", re.ASCII)
_HASH_CHARS = 10
"""40 bits: among ten thousand names, two share them with a chance of one in twenty thousand."""


def short_hash(text: str) -> str:
    """The first hex digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_CHARS]


def slug(text: str, *, chars: int = 24) -> str:
    """What can be read of it; may be the same for different texts."""
    plain = _OTHER.sub("-", text.lower()).strip("-")[:chars].strip("-")
    return plain if plain[:1].isalpha() else f"x{plain}"


def label(text: str, *, chars: int = LABEL_CHARS) -> str:
    """The text itself where it is a DNS label that short, else its slug with a part of its hash.

    A text that looks like such a mapped one is mapped as well, so that nobody can choose the name of another.
    """
    if _LABEL.fullmatch(text) and len(text) <= chars and not _looks_mapped(text):
        return text
    return f"{slug(text, chars=chars - _HASH_CHARS - 1)}-{short_hash(text)}"


def unique(text: str, identity: str, *, chars: int = 24) -> str:
    """Readable by `text`, unique by `identity`."""
    return f"{slug(text, chars=chars)}-{short_hash(identity)}"


def _looks_mapped(text: str) -> bool:
    _, _, last = text.rpartition("-")
    return len(last) == _HASH_CHARS and all(char in "0123456789abcdef" for char in last)
