"""The Python interpreters of this machine: which there are, and which one an app gets.

Looked for are the one that runs knarr (the one behind its virtual environment) and `python3*` on PATH. Each is asked
once what it is; a shim that starts nothing is no interpreter.
"""

import asyncio
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from services.builder.errors import CannotBuild

_NAME = re.compile(r"(python3(\.\d+)?|python|pypy3(\.\d+)?)")
_ASK = """
import json, platform, sys, sysconfig
print(json.dumps([sys.implementation.name, platform.python_version(), sysconfig.get_platform(),
                  getattr(sys, "_base_executable", "") or sys.executable]))
"""
_ASK_TIMEOUT_S = 10.0
_OLDEST = (3, 9)
"""Older ones cannot compile for another folder."""


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

    def __str__(self) -> str:
        """As people call it."""
        return f"{self.implementation} {self.version} ({self.path})"


class Interpreters:
    """Found once, at the first question; look again after a restart.

    Args:
        path: Where to look, as in PATH.
        own: The interpreter that certainly is there.
    """

    def __init__(self, path: str, *, own: Path | None = None) -> None:
        self._path = path
        self._own = own or Path(getattr(sys, "_base_executable", "") or sys.executable)
        self._found: tuple[Interpreter, ...] | None = None
        self._looking = asyncio.Lock()

    async def all(self) -> Sequence[Interpreter]:
        """Those that there are, knarr's own first."""
        async with self._looking:
            if self._found is None:
                candidates = await asyncio.to_thread(_candidates, self._own, self._path)
                asked = await asyncio.gather(*(_ask(path) for path in candidates))
                answers = [each for each in asked if each is not None and each.numbers >= _OLDEST]
                self._found = tuple({each.path: each for each in answers}.values())
            return self._found

    async def for_version(self, wanted: str | None) -> Interpreter:
        """The one for the version that the app asks for; without one, knarr's own.

        `3.11.7` also takes another 3.11: patch releases differ in fixes only, and a machine seldom has all of them.

        Raises:
            CannotBuild: There is none; the text says what there is.
        """
        found = await self.all()
        chosen = choose(found, wanted)
        if chosen is None:
            there = ", ".join(sorted({f"{each.implementation} {each.version}" for each in found})) or "none"
            raise CannotBuild(
                f"There is no Python {wanted} on this machine" if wanted else "There is no Python on this machine",
                why=f"found: {there}",
                todo="Ask for one of these (.python-version, or `runtime` in .cupaas.yml), "
                "or install it and restart knarr.",
                code="no_interpreter",
            )
        return chosen


def choose(found: Iterable[Interpreter], wanted: str | None) -> Interpreter | None:
    """The first with exactly that version, else the newest one of the same minor version; None: there is none."""
    found = list(found)
    if not wanted:
        return found[0] if found else None
    match = re.fullmatch(r"(?:(cpython|pypy|python)[-@]?)?(\d+(?:\.\d+){0,2})(?:\.[x*])?", wanted.strip().lower())
    if match is None:
        return None
    implementation = "pypy" if match[1] == "pypy" else "cpython"
    numbers = tuple(int(part) for part in match[2].split("."))
    fitting = [each for each in found if each.implementation == implementation]
    exact = [each for each in fitting if each.numbers[: len(numbers)] == numbers]
    if exact:
        return exact[0]
    same_minor = [each for each in fitting if len(numbers) == 3 and each.numbers[:2] == numbers[:2]]
    return max(same_minor, key=lambda each: each.numbers, default=None)


def _candidates(own: Path, path: str) -> list[Path]:
    """Programs that may be interpreters, each once."""
    found = {os.path.realpath(own): own}
    for folder in path.split(os.pathsep):
        try:
            programs = sorted(each for each in Path(folder or ".").iterdir() if _NAME.fullmatch(each.name))
        except OSError:
            continue  # PATH may name folders that are not there
        for program in programs:
            found.setdefault(os.path.realpath(program), program)
    return list(found.values())


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
