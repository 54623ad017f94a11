"""Commands that are imported when they are called: the help of `knarr` needs a name and a sentence, not the code.

An entry names a module of `knarr.commands` and a `typer.Typer` in it: a family of that name, or a Typer that holds
commands which stand alone. A test compares the sentences with those of the commands.
"""

import importlib
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is, and its sentence in the list of commands."""

    module: str
    """In `knarr.commands`."""
    typer: str
    """Attribute of the module."""
    help: str
    hidden: bool = False

    def load(self, name: str) -> Any:
        """The command: its module is imported."""
        module = importlib.import_module(f"knarr.commands.{self.module}")
        group = typer.main.get_group(getattr(module, self.typer))
        if name in group.commands and self.typer == "alone":
            return group.commands[name]
        group.name = name
        return group


class Lazy(MutableMapping[str, Any]):
    """The commands of a group by name; reading one imports it."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self.entries = entries
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = self.entries[name].load(name)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class LazyGroup(TyperGroup):
    """A group whose help and completion import none of its commands."""

    lazy: Lazy

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  the library's signature
        """Names in the order of the entries."""
        return list(self.lazy)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  the library's signature
        """Write names and sentences."""
        rows = [(name, entry.help) for name, entry in self.lazy.entries.items() if not entry.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Names that begin with what was typed, then options."""
        from typer._click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=entry.help)
            for name, entry in self.lazy.entries.items()
            if name.startswith(incomplete) and not entry.hidden
        ]
        return [*found, *super(TyperGroup, self).shell_complete(ctx, incomplete)]


def lazy_group(entries: dict[str, Entry]) -> type[LazyGroup]:
    """The class of a group with these commands."""

    class Group(LazyGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            self.lazy = Lazy(entries)
            self.commands = self.lazy

    return Group
