"""Static sites: the files are the app, and a small server comes along as the layer `/layers/static`.

The process `web` is `python -m knarr_static` in `/app`; a site with its own `web` line keeps it. A site that is built
(`output`) is nothing but its output folder. `fallback` is the file for paths without a file: KNARR_STATIC_FALLBACK.
"""

import asyncio
import shutil
from pathlib import Path

from services.builder.adapters.layers import knarr_static
from services.builder.adapters.layers.image import HOST_PATH, Prepared
from services.builder.adapters.layers.interpreters import Interpreters
from services.builder.adapters.layers.workshop import Workshop, wrapper
from services.builder.errors import BuildFailed, CannotBuild

SERVER = Path(knarr_static.__file__)
ENVIRONMENT = {
    "PATH": f"/layers/static/bin:{HOST_PATH}",
    "PYTHONPATH": "/layers/static/lib",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
}
PROCESSES = {"web": ("python", "-m", "knarr_static")}


async def prepare(shop: Workshop, interpreters: Interpreters) -> Prepared:
    """Return the layer with the server; the app's folder becomes the site.

    Raises:
        CannotBuild: There is no Python on this machine.
        BuildFailed: The build did not make the output folder.
    """
    description = shop.order.description
    if description.output:
        await asyncio.to_thread(_only_output, shop, description.output, description.fallback)
    interpreter = await interpreters.for_version(None)
    server = await asyncio.to_thread(SERVER.read_text, encoding="utf-8")
    inputs = {"server": server, "interpreter": [interpreter.version, str(interpreter.path)]}

    async def make(folder: Path) -> None:
        await asyncio.to_thread(_lay_out, folder, interpreter.path)

    layer = await shop.layer("static", inputs, make, created_by="static file server")
    fallback = {knarr_static.FALLBACK: description.fallback} if description.fallback else {}
    return Prepared(layers=(layer,), env={**ENVIRONMENT, **fallback}, processes=PROCESSES)


def _only_output(shop: Workshop, output: str, fallback: str | None) -> None:
    """Let the output folder be all that the image has."""
    folder = shop.app / output
    if not folder.resolve().is_relative_to(shop.app.resolve()):
        raise CannotBuild(f"The output folder {output} leads out of the app", todo="Name a folder of the app.")
    if not folder.is_dir() or not any(folder.iterdir()):
        raise BuildFailed(
            f"The build made no files in {output}",
            why="the site is served from that folder",
            todo="Run the build on your machine and look where its files are; then set `output` in .cupaas.yml.",
        )
    if fallback and not (folder / fallback).is_file():
        raise BuildFailed(
            f"The build made no {output}/{fallback}",
            why="that file answers for paths without a file",
            todo="Run the build on your machine and look where its files are; then set `output` in .cupaas.yml.",
        )
    if folder == shop.app:
        return
    source = shop.scratch / "static-source"
    source.parent.mkdir(parents=True, exist_ok=True)
    site = folder.resolve().relative_to(shop.app.resolve())
    shop.app.rename(source)
    (source / site).rename(shop.app)


def _lay_out(folder: Path, python: Path) -> None:
    (folder / "lib").mkdir()
    shutil.copyfile(SERVER, folder / "lib" / SERVER.name)
    wrapper(folder / "bin" / "python", python)
