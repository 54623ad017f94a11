"""How a build with buildx failed, in; whose fault it is, and whether another attempt may help, out. Pure.

A step of the app that ended with an error is final, unless its last lines say that a package registry was not there.
These are the package manager's own lines, and not those of an install script, which is a part of the app's build. An
engine, a base image's registry or our own registry that did not answer may do so the next time.
"""

import re
from collections.abc import Sequence

from seedwork.errors import KnarrError, Misconfigured, NotAllowed, StorageFull, Unavailable
from services.builder.adapters.buildx.kitchen import STEP_MARK, Explain
from services.builder.adapters.buildx.progress import Progress, Step
from services.builder.adapters.layers.limits import private_bytes
from services.builder.adapters.layers.sandbox import ToolFailed
from services.builder.errors import BuildFailed, CannotBuild, OutOfMemory, RegistryUnavailable
from services.builder.install import go, node_faults, python_faults

Rule = tuple[re.Pattern[str], type[KnarrError], str, str]
"""What is said; what that means, what happened, and what to do next."""

_ENGINE_AWAY = re.compile(
    r"Cannot connect to the Docker daemon|error during connect|failed to dial|transport is closing|code = Unavailable"
    r"|error reading from server|listing workers|unexpected EOF|context deadline exceeded|connection reset by peer"
    r"|use of closed network connection|http2: |code = Canceled|no such job|graceful_stop|failed to get status"
    r"|docker\.sock: connect: connection refused",
    re.IGNORECASE,
)
_NETWORK = re.compile(
    r"dial tcp|i/o timeout|no such host|TLS handshake|connection re(fused|set)|unexpected EOF|: EOF\b"
    r"|(status|code)[ :=]+(429|5\d\d)|50[0234] |toomanyrequests|Client\.Timeout|network is unreachable",
    re.IGNORECASE,
)
_STEP_NETWORK = re.compile(
    rb"Temporary failure (in name resolution|resolving)|Could not resolve host|Network is unreachable"
    rb"|Max retries exceeded|Retrying \(Retry\(total=0|ReadTimeoutError|ConnectTimeoutError|NewConnectionError"
    rb"|HTTP error (429|5\d\d)|50[0234] (Bad Gateway|Service Unavailable|Gateway Time-?out)|Failed to fetch .*50\d "
)
_UNKNOWN_HOST = re.compile(r"lookup (\S+)(?: on \S+)?: no such host")
"""The answer of a name server, and no outage: the engine's network does not have that name."""
_NO_COMPILER = re.compile(
    rb"command '(\S*gcc|\S*g\+\+|cc|c\+\+)' failed: No such file|unable to execute '?(\S*gcc|cc)"
    rb"|No such file or directory: '(gcc|g\+\+|cc|make|cmake|pg_config|mysql_config|pkg-config)'"
    rb"|pg_config executable not found|mysql_config: (command )?not found"
    rb"|Can not find valid pkg-config name|pkg-config: (command )?not found"
    rb"|Did not find pkg-config|Unknown compiler\(s\)|CMake must be installed|Failed to find C compiler"
    rb"|you need a C compiler|fatal error: \S+\.h: No such file|gyp ERR! find Python|not found: (make|g\+\+|gcc|cc)\b"
    rb"|\b(make|g\+\+|gcc|cc): (command )?not found|make: (g\+\+|gcc|cc): No such file|no acceptable C compiler"
)
_EXIT = re.compile(r"exit code: (\d+)")
_PACKAGES = re.compile(r"\[\w+-packages ")
_BUILD_STEP = re.compile(rf"{STEP_MARK}'([^']{{1,80}})'")
_KILLED = 137
_BASE = re.compile(r"^(?:\[internal\] load metadata for|resolve image config for) (\S+)")
_DENIED = re.compile(r"denied|unauthorized|no basic auth|authorization failed|40[13] ", re.IGNORECASE)


_BEFORE_STEPS: tuple[Rule, ...] = (
    (
        re.compile(r"docker cannot be started|is not a docker command|unknown command: docker buildx"),
        Misconfigured,
        "There is no docker with buildx on this machine",
        "Install the docker command line with its buildx plugin (0.13 or newer), or set KNARR_BUILDER=layers.",
    ),
    (
        re.compile(r"invalid progress mode rawjson|unknown flag"),
        Misconfigured,
        "The buildx plugin is too old",
        "Install buildx 0.13 or newer.",
    ),
    (
        re.compile(r"no builder \"?[^\"]*\"? found|failed to find instance"),
        Misconfigured,
        "There is no such builder",
        "Correct KNARR_BUILDX_BUILDER.",
    ),
    (
        re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE),
        StorageFull,
        "The engine that builds has no room left",
        "Run `docker builder prune` there.",
    ),
)
_AFTER_STEPS: tuple[Rule, ...] = (
    (  # some pushes that fail are ended as if they had not
        re.compile(rf"Error response from daemon: .*({_NETWORK.pattern})", re.IGNORECASE),
        Unavailable,
        "The engine could not push the image",
        "The registry must be reachable from the engine, under the name in KNARR_BUILDX_REGISTRY.",
    ),
    (
        _ENGINE_AWAY,
        Unavailable,
        "The engine that builds did not answer to the end",
        "Is it running, and reachable from here?",
    ),
    (
        re.compile(r"dockerfile|failed to compute cache key", re.IGNORECASE),
        BuildFailed,
        "The Dockerfile cannot be built",
        "Correct it and push again.",
    ),
)


def explained(
    error: ToolFailed, progress: Progress, *, registry: str, memory_bytes: int, explain: Explain | None = None
) -> KnarrError:
    """The error that this failure means.

    Args:
        error: How buildx ended.
        progress: What it printed.
        registry: Where the image was to go; for people.
        memory_bytes: What a step may take.
        explain: Explains a failed step of a stage that installs packages.
    """
    step = progress.failed
    text = "\n".join([*progress.said, step.error if step else ""])
    why = _why(error, progress)
    if error.exit_code < 0:
        return Unavailable("The docker command was ended before the build", why=error.ending, todo="It is tried again.")
    if not (step and _PACKAGES.match(step.name)):
        explain = None
    return (
        _by_rule(_BEFORE_STEPS, text, why)
        or (_of_step(step, why, registry, memory_bytes, explain) if step else None)
        or _by_rule(_AFTER_STEPS, text, why)
        or BuildFailed("The build failed", why=why, todo="The last lines of the log say why.")
    )


def lacks_compiler(progress: Progress) -> bool:
    """Whether packages could not be installed since one of them is compiled, and the stage has no compiler for it."""
    step = progress.failed
    return (
        step is not None
        and _PACKAGES.match(step.name) is not None
        and any(_NO_COMPILER.search(line) for line in step.lines)
    )


def _by_rule(rules: Sequence[Rule], text: str, why: str) -> KnarrError | None:
    return next((kind(what, why=why, todo=todo) for pattern, kind, what, todo in rules if pattern.search(text)), None)


def _of_step(step: Step, why: str, registry: str, memory_bytes: int, explain: Explain | None) -> KnarrError | None:
    if base := _BASE.match(step.name):
        return _base_image(base[1], step.error, why)
    if step.name.startswith(("pushing", "exporting")):
        return _pushing(step, why, registry)
    if found := _EXIT.search(step.error):
        return _exited(int(found[1]), step, why, memory_bytes, explain)
    return None


def _base_image(image: str, error: str, why: str) -> KnarrError:
    if unknown := _UNKNOWN_HOST.search(error):
        return CannotBuild(
            f"The base image {image} cannot be pulled",
            why=f"the engine's network does not know the host {unknown[1]}",
            todo="Give the engine access to that registry or a mirror of it, or load the image there (`docker load`).",
            code="no_base_image",
        )
    if _NETWORK.search(error):
        return RegistryUnavailable(f"The base image {image} cannot be had now", why=why)
    return CannotBuild(
        f"The base image {image} cannot be had",
        why=why,
        todo="Correct FROM in the Dockerfile, or let the engine log in to that image's registry.",
    )


def push_failed(said: str, *, registry: str) -> KnarrError:
    """The error of a push whose last line is `said`."""
    found = _pushing(Step(number=0, name="pushing", error=said), said[:500], registry)
    return found or Unavailable("The engine that builds went away during the push", why=said[:500])


def _pushing(step: Step, why: str, registry: str) -> KnarrError | None:
    if _DENIED.search(step.error) and not _NETWORK.search(step.error):
        return NotAllowed(
            f"The registry {registry} does not take the image from the engine",
            why=why,
            todo="Check KNARR_REGISTRY_USER and KNARR_REGISTRY_PASSWORD.",
        )
    if _ENGINE_AWAY.search(step.error) and not _NETWORK.search(step.error):
        return None
    return Unavailable(
        f"The engine could not push to the registry {registry}",
        why=why,
        todo="The registry must be reachable from the engine under that name (KNARR_BUILDX_REGISTRY), and be known to "
        "it as insecure if it is plain http.",
    )


def _exited(exit_code: int, step: Step, why: str, memory_bytes: int, explain: Explain | None) -> KnarrError:
    lines = tuple(step.lines)
    ending = f"exit code {exit_code}"
    if exit_code == _KILLED or any(b"MemoryError" in line or b"heap out of memory" in line for line in lines):
        return OutOfMemory(
            "A step of the build was killed, or ran out of memory",
            why=f"{why}; each process may reserve {private_bytes(memory_bytes) // 1024**2} MiB",
            todo="Make the build smaller, or raise KNARR_BUILD_MEMORY_BYTES or what the engine may take.",
        )
    if explain:
        return explain(lines, ending)
    if any(node_faults.AWAY.search(line) or go.AWAY.search(line) for line in lines) or (
        any(_STEP_NETWORK.search(line) for line in lines)
        and not python_faults.is_failed_build(lines)
        and node_faults.script_failed(lines, ending) is None
    ):
        return RegistryUnavailable(f"A package registry did not answer to {step.name[:100]}", why=why)
    named = _BUILD_STEP.search(step.name)
    what = f"The build step {named[1]} failed" if named else f"The step {step.name[:200]} failed"
    return BuildFailed(what, why=ending, todo="The last lines of the log say why.")


def _why(error: ToolFailed, progress: Progress) -> str:
    """What buildx itself said last, without its preamble."""
    if progress.failed is not None:
        return progress.failed.error[:500]
    lines = [line for line in progress.said if line.startswith("ERROR:")] or list(progress.said)[-1:]
    return lines[-1].removeprefix("ERROR: ")[:500] if lines else error.ending
