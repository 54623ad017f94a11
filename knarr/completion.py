"""Completion of app names in a shell: the platform is asked, and has a second to answer.

A shell shows what it gets between two keystrokes, so every failure means no names.
"""

from pathlib import Path

import typer

from knarr.home import Home
from seedwork.errors import KnarrError

TIMEOUT_S = 1.0
"""Longer, and the shell seems to hang."""


def app_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of apps that begin with what was typed."""
    from knarr.command import Session

    home = ctx.params.get("home")
    try:
        platform = Session(Home.find(Path(home) if home else None)).platform
        platform.timeout(TIMEOUT_S)
        found = platform.get("webhook", "/apps", limit=200)["items"]
    except KnarrError:
        return []
    return [each["name"] for each in found if each["name"].startswith(incomplete)]
