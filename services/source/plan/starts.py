"""How an app is started, and what says so."""

from dataclasses import dataclass
from typing import Literal

from services.source.contract import BuildStep
from services.source.plan.procfile import WEB, Command


@dataclass(frozen=True, slots=True)
class Start:
    """A command that was found."""

    command: Command
    where: str
    """For people: `main.py`, `scripts.start of package.json`."""
    framework: str | None = None
    build: tuple[BuildStep, ...] = ()
    """Steps that this way of starting needs."""
    process: str = WEB


def shown(command: Command) -> str:
    """The command as people write it."""
    return command[2] if command[:2] == ("/bin/sh", "-c") and len(command) == 3 else " ".join(command)


Language = Literal["python", "node", "go"]
