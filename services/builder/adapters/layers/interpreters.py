"""The Python interpreters of this machine: which there are, which one an app gets, and how a missing one is fetched.

Looked for are the one that runs knarr (the one behind its virtual environment), `python3*` on PATH, and what version
managers (uv, pyenv, asdf, mise) have installed. Each is asked once what it is; a shim that starts nothing is no
interpreter. One that is not here is fetched by `uv python install` into the builder's cache.
"""

import asyncio
import os
import re
import shlex
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from services.builder.errors import CannotBuild
from services.builder.install.python_versions import Wanted, understood

_NAME = re.compile(r"(python3(\.\d+)?|python|pypy3(\.\d+)?)")
_ASK = """
import json, platform, sys, sysconfig
version = platform.python_version()
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    version += "t"
print(json.dumps([sys.implementation.name, version, sysconfig.get_platform(),
                  getattr(sys, "_base_executable", "") or sys.executable]))
"""
_ASK_TIMEOUT_S = 10.0
_OLDEST = (3, 9)
"""uv installs into no older one."""
_INSTALLED = (
    ("UV_PYTHON_INSTALL_DIR", ".local/share/uv/python", "*/bin"),
    ("PYENV_ROOT", ".pyenv", "versions/*/bin"),
    ("ASDF_DATA_DIR", ".asdf", "installs/python/*/bin"),
    ("MISE_DATA_DIR", ".local/share/mise", "installs/python/*/bin"),
)
"""Variable with the folder of a version manager, its default below HOME, and where interpreters are in it."""
_FETCH_TODO = "Ask for one of these (.python-version, requires-python, or `runtime` in .cupaas.yml)"

Fetch = Callable[[str, Path], Awaitable[None]]
"""Installs an interpreter for a request of `uv python install` into a folder; raises CannotBuild with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """One that answered."""

    path: Path
    implementation: str
    """`cpython`, `pypy`."""
    version: str
    platform: str
    """`linux-x86_64`."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """`3.11.7` as numbers."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:3])

    @property
    def released(self) -> bool:
        """Whether this is a regular release: no preview, and no build without the global lock."""
        return re.fullmatch(r"[\d.]+", self.version) is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Program names by which apps start it."""
        major, minor = self.numbers[:2]
        name = "pypy" if self.implementation == "pypy" else "python"
        return tuple(dict.fromkeys(("python", "python3", f"{name}{major}", f"{name}{major}.{minor}")))

    def __str__(self) -> str:
        """As people call it."""
        return f"{self.implementation} {self.version} ({self.path})"


class Interpreters:
    """Found once, at the first question; look again after a restart.

    Args:
        path: Where to look, as in PATH.
        own: The interpreter that certainly is there.
        fetched: Folder of interpreters that were fetched; None: none is fetched.
        environ: Names the folders of version managers; None: their interpreters are not used.
    """

    def __init__(
        self,
        path: str,
        *,
        own: Path | None = None,
        fetched: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._path = path
        self.own = own or Path(getattr(sys, "_base_executable", "") or sys.executable)
        self._fetched = fetched
        self._environ = environ
        self._found: tuple[Interpreter, ...] | None = None
        self._looking = asyncio.Lock()

    async def all(self) -> Sequence[Interpreter]:
        """Those that there are, knarr's own first."""
        async with self._looking:
            if self._found is None:
                candidates = await asyncio.to_thread(self._candidates)
                asked = await asyncio.gather(*(_ask(path) for path in candidates))
                answers = [each for each in asked if each is not None and each.numbers >= _OLDEST]
                self._found = tuple({each.path: each for each in answers}.values())
            return self._found

    async def for_version(
        self, wanted: str | None, *, file: str | None = None, fetch: Fetch | None = None
    ) -> Interpreter:
        """The best one for the version that the app asks for; without one, knarr's own.

        `3.11.7` also takes another 3.11: patch releases differ in fixes only, and a machine seldom has all of them.

        Args:
            wanted: `3.11`, `3.11.7`, `>=3.11,<3.14`, `^3.12`, `pypy3.10`.
            file: Which file asks for it.
            fetch: Installs one that is not here; None: nothing is fetched.

        Raises:
            CannotBuild: There is none; the text says what there is.
        """
        found = await self.all()
        if (chosen := choose(found, wanted)) is not None:
            return chosen
        asked = understood(wanted) if wanted else None
        if asked is None or self._fetched is None or fetch is None:
            raise _missing(found, wanted, file, asked=asked)
        try:
            await fetch(asked.request, self._fetched)
        except CannotBuild as error:
            raise _missing(found, wanted, file, asked=asked, not_fetched=error) from error
        self._found = None
        found = await self.all()
        if (chosen := choose(found, wanted)) is None:
            raise _missing(found, wanted, file, asked=asked)
        return chosen

    def _candidates(self) -> list[Path]:
        """Programs that may be interpreters, each once."""
        found = {os.path.realpath(self.own): self.own}
        folders = [Path(folder or ".") for folder in self._path.split(os.pathsep)]
        if self._environ is not None:
            home = self._environ.get("HOME", "")
            for name, default, pattern in _INSTALLED:
                root = self._environ.get(name) or (f"{home}/{default}" if home else "")
                folders += sorted(Path(root).glob(pattern)) if root else []
        if self._fetched is not None:
            folders += sorted(self._fetched.glob("*/bin"))
        for folder in folders:
            try:
                programs = sorted(each for each in folder.iterdir() if _NAME.fullmatch(each.name))
            except OSError:
                continue  # PATH may name folders that are not there
            for program in programs:
                found.setdefault(os.path.realpath(program), program)
        return list(found.values())


def choose(found: Iterable[Interpreter], wanted: str | None) -> Interpreter | None:
    """The first one if it is what is asked for, else the newest that is, else one of the same minor version.

    Returns:
        None: there is none.
    """
    found = list(found)
    if not wanted:
        return found[0] if found else None
    asked = understood(wanted)
    if asked is None:
        return None
    fitting = [each for each in found if each.implementation == asked.implementation and each.released]
    return _best(fitting, asked.fits) or _best(fitting, asked.nearly_fits)


def _best(found: Sequence[Interpreter], fits: Callable[[tuple[int, ...]], bool]) -> Interpreter | None:
    good = [each for each in found if fits(each.numbers)]
    if good and good[0] is found[0]:
        return good[0]
    return max(good, key=lambda each: each.numbers, default=None)


def _missing(
    found: Sequence[Interpreter],
    wanted: str | None,
    file: str | None,
    *,
    asked: Wanted | None,
    not_fetched: CannotBuild | None = None,
) -> CannotBuild:
    there = ", ".join(sorted({f"{each.implementation} {each.version}" for each in found})) or "none"
    asks = f" ({file} asks for it)" if file else ""
    if wanted and asked is None:
        return CannotBuild(
            f"The Python version {str(wanted)[:60]!r} is not understood{asks}",
            why=f"this machine has: {there}",
            todo="Write a version such as 3.12, or a range such as >=3.11,<3.14.",
            code="no_interpreter",
        )
    request = shlex.quote(asked.request) if asked else "3.12"
    why = f"found: {there}"
    if not_fetched is not None:
        why += f"; it could not be fetched: {not_fetched.why or not_fetched.what}"
    return CannotBuild(
        f"There is no Python {wanted} on this machine{asks}" if wanted else "There is no Python on this machine",
        why=why,
        todo=f"{_FETCH_TODO}, or run `uv python install {request}` on the machine that builds and restart knarr.",
        code="no_interpreter",
    )


async def _ask(path: Path) -> Interpreter | None:
    try:
        process = await asyncio.create_subprocess_exec(
            str(path),
            *("-I", "-S", "-c", _ASK),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return None
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            answer, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        implementation, version, platform, executable = orjson.loads(answer)
    except (orjson.JSONDecodeError, ValueError, TypeError):
        return None
    path = await asyncio.to_thread(Path(executable).resolve)
    return Interpreter(path=path, implementation=implementation, version=version, platform=platform)
