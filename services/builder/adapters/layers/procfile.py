"""Anything with a Procfile: the app's own files, started with the programs of this machine.

Python is the exception: `python` and `python3` are an interpreter without packages, so that an app never runs by chance
with what the machine's own Python has installed.
"""

from services.builder.adapters.layers import python
from services.builder.adapters.layers.image import HOST_PATH, Prepared
from services.builder.adapters.layers.interpreters import Interpreters
from services.builder.adapters.layers.workshop import Workshop


async def prepare(shop: Workshop, interpreters: Interpreters) -> Prepared:
    """The layer with the interpreter."""
    await shop.say("A Procfile and no known language: the app runs with the programs of this machine")
    prepared = await python.bare(shop, interpreters)
    return Prepared(layers=prepared.layers, env={"PATH": f"/layers/python/bin:{HOST_PATH}", "PYTHONNOUSERSITE": "1"})
