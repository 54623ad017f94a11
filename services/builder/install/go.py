"""How Go apps are built: environment of a build step, and which versions are newer. Pure."""

import re

AWAY = re.compile(
    rb"^(?:go: |\S+\.go:\d+:\d+: ).*(?:dial tcp|i/o timeout|TLS handshake timeout|connection re(?:set|fused)|: EOF$"
    rb"|: (?:429|50[0234]) )"
)
"""A line of go itself that says that the module proxy did not answer."""


def environment(*, caches: str, fetch: bool) -> dict[str, str]:
    """Return the variables of `go` commands.

    Args:
        caches: Folder for modules and compiled packages.
        fetch: Whether a newer toolchain that go.mod asks for may be fetched.
    """
    return {
        "GOCACHE": f"{caches}/go-build",
        "GOMODCACHE": f"{caches}/go-mod",
        "GOPATH": f"{caches}/go",
        "GOFLAGS": "-trimpath -buildvcs=false -modcacherw",
        "GOTOOLCHAIN": "auto" if fetch else "local",
        "GOTELEMETRY": "off",
    }


def older(have: str, wanted: str) -> bool:
    """Whether a Go version (`1.22.3`) is older than another."""
    return _numbers(have) < _numbers(wanted)


def _numbers(version: str) -> tuple[int, ...]:
    found = re.findall(r"\d+", version)[:3]
    return tuple(int(each[:9]) for each in found) + (0,) * (3 - len(found))


def minor(version: str) -> str:
    """Return the minor version (`1.22`) of a version as go.mod writes it."""
    first, second, _ = _numbers(version)
    return f"{first}.{second}"
