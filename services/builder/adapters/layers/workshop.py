"""What a language module works with during one build, and the steps that all languages share."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from services.builder.adapters.layers.cache import LayerCache, key_of
from services.builder.adapters.layers.caches import AppCache
from services.builder.adapters.layers.image import ReadyLayer
from services.builder.adapters.layers.sandbox import Sandbox
from services.builder.errors import CannotBuild
from services.builder.ports import BuildOrder, BuildOutput

_PLATFORMS_OWN = frozenset({"PATH", "HOME", "TMPDIR", "KNARR_SAGA_ID", "KNARR_BUILD_HOME"})
"""Variables of a tool that the app cannot set: by them the sandbox finds the tool and its processes."""
_FILE_BYTES = 16 * 1024 * 1024
"""Of a lock file that is read into memory; a large `package-lock.json` has 3 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """One build's folder, tools and cache.

    Below `root` it looks as inside the image: `root/app`, `root/layers/<name>`. So relative links and tools that look
    upward find during the build what they will find later.
    """

    order: BuildOrder
    root: Path
    scratch: Path
    """For homes and temporary files of tools."""
    caches: Path
    """Of package managers; shared by all builds."""
    app_cache: AppCache
    """Of this app only."""
    sandbox: Sandbox
    layers: LayerCache
    output: BuildOutput
    note: Callable[[str], None]

    @property
    def app(self) -> Path:
        """The unpacked archive."""
        return self.root / "app"

    def environment(self, extra: Mapping[str, str], *, variables: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a tool.

        Args:
            extra: What the tool needs; stronger than everything else.
            variables: Build-time variables of the app that the tool gets; None: all. A tool that installs for several
                apps gets none.
        """
        own = self.order.variables if variables is None else variables
        allowed = {name: value for name, value in own.items() if name not in _PLATFORMS_OWN}
        return {**self.sandbox.environment(self.order.saga_id, self.scratch), **allowed, **extra}

    def variables_key(self, variables: Mapping[str, str]) -> str | None:
        """Return an HMAC of build-time variables for the key of a layer that depends on them; None if there are none.

        No value may be recovered from a key.
        """
        if not variables:
            return None
        text = orjson.dumps(dict(variables), option=orjson.OPT_SORT_KEYS).decode()
        return self.app_cache.digest(f"variables:{text}")

    async def say(self, line: str) -> None:
        """A line for people in the build's log."""
        await asyncio.to_thread(self.output.say, line)

    async def run(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path | None = None, shown: str | None
    ) -> None:
        """Run a tool in the app's folder (or `cwd`); see `Sandbox.run`."""
        await self.sandbox.run(
            [str(each) for each in argv], cwd=cwd or self.app, env=env, output=self.output, shown=shown
        )

    async def layer(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path], Awaitable[None]],
        *,
        created_by: str,
        facts: Callable[[], Mapping[str, Any]] = dict,
    ) -> ReadyLayer:
        """Return the layer `/layers/<name>` for these inputs: from the cache, or made by `make(folder)`.

        `facts` is asked after `make`: what is to be known of the layer without unpacking it (JSON).
        """
        key = layer_key(name, inputs)
        async with self.layers.alone(key):
            if (found := await self.layers.get(key)) is not None:
                await self.say(f"{created_by}: nothing changed, from the cache ({key[:12]})")
                return found
            folder = self.root / "layers" / name
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
            await make(folder)
            self.note("packing dependencies")
            return await self.layers.put(
                key, folder, prefix=f"layers/{name}", created_by=created_by, facts=dict(facts())
            )

    def read(self, name: str) -> bytes | None:
        """A file of the app; see `read_file`."""
        return read_file(self.app, name)


def layer_key(name: str, inputs: Mapping[str, Any]) -> str:
    """Return the key of the layer `/layers/<name>` for these inputs."""
    return key_of({"layer": name, **inputs})


def read_file(app: Path, name: str) -> bytes | None:
    """A file below the app's folder; None if there is none. Blocks: call it in a thread.

    A link is followed inside the app's folder.

    Raises:
        CannotBuild: It leads out of the app's folder, is no file, or is larger than any such file.
    """
    path = Path(os.path.realpath(app / name))
    if not path.is_relative_to(os.path.realpath(app)):
        raise CannotBuild(f"{name} leads out of the app's folder", todo="Make it a file.")
    if not path.exists():
        return None
    if not path.is_file() or path.stat().st_size > _FILE_BYTES:
        raise CannotBuild(f"{name} is no file of at most {_FILE_BYTES} bytes")
    return path.read_bytes()


def wrapper(path: Path, program: Path) -> None:
    """Write an executable that becomes `program`: an image holds no absolute link, and finds the host's this way."""
    quoted = str(program).replace("'", "'\\''")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nexec '{quoted}' \"$@\"\n")
    path.chmod(0o755)
