"""Refuse by name where an optional client of the production stack is not installed."""

import importlib.util

from seedwork.errors import Misconfigured


def need_extra(extra: str, *modules: str, what: str) -> None:
    """Check that the extra's modules can be imported.

    Args:
        extra: The name in `pip install 'knarr[…]'`.
        modules: Top-level packages of it.
        what: What needs it, as the beginning of a sentence: "The client of Docker engines".

    Raises:
        Misconfigured: One of them is missing; the text has the command that installs it.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise Misconfigured(
            f"{what} is not installed",
            why=f"the package {missing[0]} is missing",
            todo=f"Run `pip install 'knarr[{extra}]'`.",
        )
