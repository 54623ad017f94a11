"""Runs the build steps of a description, in the app's folder, with the folders that each one keeps.

A kept folder (`.next/cache`) is moved into the app before the step and out of it afterwards, so that it is never part
of the image. It is the app's own, named by a secret; a link in its path is not followed.
"""

import asyncio
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from services.builder.adapters.layers.sandbox import ToolFailed
from services.builder.adapters.layers.workshop import Workshop
from services.builder.errors import BuildFailed, RegistryUnavailable
from services.builder.install import go, node_faults
from services.source.contract import BuildStep


async def run_step(shop: Workshop, step: BuildStep, env: Mapping[str, str]) -> None:
    """Run one step.

    Args:
        shop: The build.
        step: What to run.
        env: Variables of the step's language, `PATH` included.

    Raises:
        BuildFailed: It ended with an error.
        RegistryUnavailable: It installs packages, and their registry did not answer.
    """
    shop.note(f"running {step.name}")
    await asyncio.to_thread(_bring, shop, step)
    try:
        await shop.run(step.command, env=shop.environment({**env, **step.env}), shown=shlex.join(step.command))
    except ToolFailed as error:
        if error.says(node_faults.AWAY) or error.says(go.AWAY):
            raise RegistryUnavailable(
                f"A package registry did not answer to the build step {step.name}", why=error.ending
            ) from error
        raise BuildFailed(
            f"The build step {step.name} failed", why=error.ending, todo="The last lines of the log say why."
        ) from error
    finally:
        await asyncio.to_thread(_keep, shop, step)


def _bring(shop: Workshop, step: BuildStep) -> None:
    for name in step.caches:
        kept, place = shop.app_cache.kept("steps", name), _place(shop.app, name)
        if place is None or not kept.is_dir() or place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        kept.rename(place)


def _keep(shop: Workshop, step: BuildStep) -> None:
    for name in step.caches:
        kept, place = shop.app_cache.kept("steps", name), _place(shop.app, name)
        if place is None or not place.is_dir():
            continue
        if kept.exists():
            shutil.rmtree(kept)
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        place.rename(kept)


def _place(app: Path, name: str) -> Path | None:
    """The folder in the app; None if a link is in its way or it leads out."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts:
        return None
    path = app
    for part in parts:
        path = path / part
        if path.is_symlink():
            return None
    return path
