"""How a phase of the lifecycle ended, in; whose fault it is, out. Pure.

Exit codes: https://github.com/buildpacks/spec, "Platform Interface", "Exit codes".
"""

import re

from seedwork.errors import KnarrError, Misconfigured, NotAllowed, Unavailable
from services.builder.adapters.buildpacks.phases import Phase
from services.builder.errors import BuildFailed, CannotBuild, OutOfMemory

_NETWORK = re.compile(
    r"dial tcp|i/o timeout|no such host|TLS handshake|connection re(fused|set)|unexpected EOF|: EOF\b"
    r"|(status|code)[ :=]+(429|5\d\d)|toomanyrequests|network is unreachable|BLOB_UNKNOWN|MANIFEST_BLOB_UNKNOWN",
    re.IGNORECASE,
)
_DENIED = re.compile(r"denied|unauthorized|UNAUTHORIZED", re.IGNORECASE)
_NO_REBASE = re.compile(
    r"provide -force|incompatible stack|stack not defined|missing required mixin|flag provided but not defined"
)
_NOTHING_DETECTED = 20
_DETECT_ERROR = 21
_INCOMPATIBLE = (11, 12)
_KILLED = 137


def explained(
    phase: Phase, exit_code: int, tail: tuple[str, ...], *, builder: str, run_image: str, memory_bytes: int
) -> KnarrError:
    """Return the error that this end means."""
    why = next((line for line in reversed(tail) if line.startswith("ERROR")), tail[-1] if tail else "")[:500]
    if exit_code == _KILLED:
        return OutOfMemory(
            "A buildpack was killed, or ran out of memory",
            why=f"the build may take {memory_bytes // 1024**2} MiB",
            todo="Make the build smaller, or raise KNARR_BUILD_MEMORY_BYTES.",
        )
    if exit_code in _INCOMPATIBLE:
        return Misconfigured(
            f"The builder {builder} and its lifecycle do not fit", why=why, todo="Use a newer builder image."
        )
    if phase == "detector" and exit_code in {_NOTHING_DETECTED, _DETECT_ERROR}:
        return CannotBuild(
            f"No buildpack of {builder} builds this app",
            why=why or f"exit code {exit_code}",
            todo="The log says what each of them looked for. Add that, or a Dockerfile.",
        )
    if phase in {"detector", "builder"}:
        return BuildFailed(
            "A buildpack failed", why=why or f"exit code {exit_code}", todo="The last lines of the log say why."
        )
    if phase == "rebaser" and _NO_REBASE.search("\n".join(tail)):
        return CannotBuild(
            f"The image cannot be moved to the run image {run_image}",
            why=why,
            todo="Deploy the app again: a build takes any run image.",
        )
    return _at_the_registry(phase, "\n".join(tail), why or f"exit code {exit_code}", run_image)


def _at_the_registry(phase: Phase, text: str, why: str, run_image: str) -> KnarrError:
    if _NETWORK.search(text):
        return Unavailable(
            f"The {phase} of the buildpacks did not reach a registry", why=why, todo="It is tried again."
        )
    if run_image.partition(":")[0] in text or "run image" in text:
        return CannotBuild(
            f"The run image {run_image} cannot be had",
            why=why,
            todo="Set KNARR_BUILDPACKS_RUN_IMAGE to one that the engine's network reaches.",
        )
    if _DENIED.search(text):
        return NotAllowed(
            f"The registry refuses the {phase} of the buildpacks",
            why=why,
            todo="Check KNARR_REGISTRY_USER and KNARR_REGISTRY_PASSWORD.",
        )
    return Unavailable(f"The {phase} of the buildpacks failed", why=why, todo="The last lines of the log say why.")
