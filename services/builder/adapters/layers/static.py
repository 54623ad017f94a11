"""Static sites: the files are the app, and a small server comes along as the layer `/layers/static`.

The process `web` is `python -m knarr_static` in `/app`; a site with its own `web` line keeps it.
"""

import asyncio
import shutil
from pathlib import Path

from services.builder.adapters.layers import knarr_static
from services.builder.adapters.layers.image import HOST_PATH, Prepared
from services.builder.adapters.layers.interpreters import Interpreters
from services.builder.adapters.layers.workshop import Workshop, wrapper

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
    """The layer with the server.

    Raises:
        CannotBuild: There is no Python on this machine.
    """
    interpreter = await interpreters.for_version(None)
    server = await asyncio.to_thread(SERVER.read_text, encoding="utf-8")
    inputs = {"server": server, "interpreter": [interpreter.version, str(interpreter.path)]}

    async def make(folder: Path) -> None:
        await asyncio.to_thread(_lay_out, folder, interpreter.path)

    layer = await shop.layer("static", inputs, make, created_by="static file server")
    return Prepared(layers=(layer,), env=ENVIRONMENT, processes=PROCESSES)


def _lay_out(folder: Path, python: Path) -> None:
    (folder / "lib").mkdir()
    shutil.copyfile(SERVER, folder / "lib" / SERVER.name)
    wrapper(folder / "bin" / "python", python)
