"""Anything with a Procfile: the app's own files, started with what the machine has."""

from services.builder.adapters.layers.image import HOST_PATH, Prepared
from services.builder.adapters.layers.workshop import Workshop


async def prepare(shop: Workshop) -> Prepared:
    """No layer of its own."""
    await shop.say("A Procfile and no known language: the app runs with the programs of this machine")
    return Prepared(env={"PATH": HOST_PATH})
