"""The output of a failed install tool in; the error with file, tool and reason out. Pure."""

import re
from collections.abc import Sequence

from services.builder.errors import BuildFailed, RegistryUnavailable
from services.builder.install.python import Command, Installation

_NETWORK = re.compile(
    rb"error sending request|dns error|failed to lookup address|Could not connect|Connection ?re(fused|set)|timed out"
    rb"|Failed to fetch: .*|HTTP status (server error|client error \(429)|request failed after \d+ retries"
    rb"|connection closed before message completed|error decoding response body|Max retries exceeded"
    rb"|All attempts to connect to .* failed|Temporary failure in name resolution|Name or service not known",
    re.IGNORECASE,
)
_NOT_NETWORK = re.compile(rb"HTTP status client error \(4(?!29)\d\d|40[134] Client Error")
_BUILD_FAILED = re.compile(
    rb"The build backend returned an error|Backend subprocess exited|Build backend raised error"
    rb"|(Getting requirements to build|Preparing (editable )?metadata|Building (wheel|editable)|Running setup).*"
    rb" did not run successfully|python setup\.py \S+ did not run successfully|Failed building wheel"
    rb"|This error originates from the build backend"
)
"""A package's own build failed: what that build could not download says nothing about the index."""
_STALE = re.compile(
    rb"lockfile .*needs to be updated|changed significantly since poetry\.lock|poetry\.lock is not up to date"
    rb"|Lockfile doesn't satisfy|Lockfile hash doesn't match|Pipfile\.lock is out-of-date",
    re.IGNORECASE,
)
_NO_REASON = re.compile(
    r"^(usage:|try |hint:|warning:|info:|resolved \d|using cpython|note:|for more information)", re.IGNORECASE
)
_REASON = re.compile(r"^(error|fatal|cause)\b|^\[\w*(error|exception)\]|^\w*(error|exception): ", re.IGNORECASE)
_LABEL = re.compile(r"^(error|fatal|cause): ?", re.IGNORECASE)
_MARKS = re.compile("^[\\s\u2500-\u25ff\u2713-\u2718\u00b7\u00d7\u2022|]+")
"""Lines, arrows, ticks and crosses in front of a message."""
_ADVICE = re.compile(r"(?:[.,;:]|(?<!\s)(?=\s))\s++Run (\$|`).*$")
"""The advice of the tool itself, which knarr gives in its own words."""
_REASON_CHARS = 300
"""Of each of the two lines."""


def explained(
    installation: Installation, command: Command, lines: Sequence[bytes], ending: str
) -> BuildFailed | RegistryUnavailable:
    """Explain why a command failed.

    Args:
        installation: Whose command.
        command: The command that failed.
        lines: The last lines that it printed.
        ending: How it ended: `exit code 2`.
    """
    reason = reason_of(lines) or ending
    said = b"\n".join(lines)
    stale = _STALE.search(said)
    if not (stale or is_failed_build(lines) or _NOT_NETWORK.search(said)) and _NETWORK.search(said):
        return RegistryUnavailable("The Python package index did not answer", why=reason)
    if installation.manifest and (stale or command.compares):
        return BuildFailed(
            f"{installation.file} does not fit {installation.manifest}",
            why=_ADVICE.sub("", reason),
            todo=f"Run `{installation.lock_command}` and commit {installation.file}.",
            code="lock_out_of_date",
        )
    tool = command.tool.requirement if command.tool else "uv"
    return BuildFailed(
        f"The packages of {installation.file or 'the project'} could not be installed",
        why=f"{tool}: {reason}",
        todo="The last lines of the log say why.",
    )


def is_failed_build(lines: Sequence[bytes]) -> bool:
    """Whether the build of a package failed: its code ran, whatever it could not download."""
    return any(_BUILD_FAILED.search(line) for line in lines)


def reason_of(lines: Sequence[bytes]) -> str:
    """Return the first line that says what went wrong and the last one that says why; empty where there is none."""
    texts = [_MARKS.sub("", line.decode(errors="replace")).strip() for line in lines]
    texts = [text for text in texts if text and not _NO_REASON.match(text)]
    reasons = [text for text in texts if _REASON.search(text)] or texts[-1:]
    parts = dict.fromkeys(_LABEL.sub("", text) for text in (*reasons[:1], *reasons[-1:]))
    return ": ".join(part.rstrip(".:")[:_REASON_CHARS] for part in parts if part)
