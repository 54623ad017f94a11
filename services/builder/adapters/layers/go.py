"""Go apps: a toolchain for the build steps. The image has the app's files with the program that a step made.

The toolchain is the machine's. Where go.mod asks for a newer one, the machine's fetches it from the module proxy
(GOTOOLCHAIN=auto), unless KNARR_FETCH_TOOLCHAINS is off. Modules and compiled packages are kept for each app.
"""

import asyncio
import re
from pathlib import Path

from services.builder.adapters.layers.image import HOST_PATH
from services.builder.adapters.layers.installed import Installed
from services.builder.adapters.layers.sandbox import ToolFailed
from services.builder.adapters.layers.workshop import Workshop
from services.builder.errors import CannotBuild
from services.builder.install import go as plan
from services.source.contract import Packages

_VERSION = re.compile(r"go(\d+(?:\.\d+){1,2})")


async def prepare(shop: Workshop, packages: Packages, *, fetch: bool) -> Installed:
    """Find the toolchain.

    Raises:
        CannotBuild: There is no Go, or an older one than go.mod asks for, and none may be fetched.
    """
    program = await asyncio.to_thread(shop.sandbox.which, "go")
    if program is None:
        raise CannotBuild(
            "Go apps cannot be built on this machine",
            why="go is not on PATH",
            todo="Install Go (https://go.dev/dl) and restart knarr, or set KNARR_BUILDER=buildx where Docker is.",
            code="no_interpreter",
        )
    have = await _version(shop, program)
    if packages.version and plan.older(have, packages.version) and not fetch:
        raise CannotBuild(
            f"The app asks for Go {packages.version} ({packages.version_file or 'go.mod'})",
            why=f"this machine has {have}, and KNARR_FETCH_TOOLCHAINS is off",
            todo="Install that version, or set KNARR_FETCH_TOOLCHAINS=true.",
            code="no_interpreter",
        )
    await shop.say(f"Go {have}, modules of {packages.lock or 'go.mod'}")
    env = plan.environment(caches=str(shop.app_cache.tools), fetch=fetch)
    path = f"{program.parent}:{shop.sandbox.path}"
    return Installed(env={"PATH": HOST_PATH}, step_env={**env, "PATH": path})


async def _version(shop: Workshop, program: Path) -> str:
    kept = _Kept()
    env = shop.environment({"GOTOOLCHAIN": "local"}, variables={})
    try:
        await shop.sandbox.run([str(program), "env", "GOVERSION"], cwd=shop.scratch, env=env, output=kept)
    except ToolFailed as error:
        raise CannotBuild("Go does not start on this machine", why=error.ending, code="no_interpreter") from error
    found = _VERSION.search(kept.text.decode(errors="replace"))
    return found[1] if found else "1.0"


class _Kept:
    """A `BuildOutput` for what is not for people."""

    def __init__(self) -> None:
        self.text = bytearray()

    def write(self, text: bytes) -> None:
        """Keep it."""
        self.text += text

    def say(self, line: str) -> None:
        """Keep it."""
        self.text += line.encode()

    def write_unfinished(self, text: bytes) -> int:
        """Keep it."""
        self.write(text)
        return len(text)

    def tail(self, lines: int) -> tuple[str, ...]:
        """Return the last lines."""
        return tuple(self.text.decode(errors="replace").splitlines()[-lines:])
