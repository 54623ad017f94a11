"""Which builder an app gets: its own choice, what its description needs, else the one of the settings.

A builder that cannot work here, such as buildx without a registry, is no fault at the start: an app that wants it is
refused with the reason.
"""

from collections.abc import Awaitable, Callable, Mapping

from seedwork.errors import KnarrError
from services.builder.errors import CannotBuild
from services.builder.ports import BuildOrder, BuildOutput, Built, ImageBuilder

BuilderName = str
"""`layers`, `buildx` or `buildpacks`."""


class ChosenBuilder:
    """An `ImageBuilder` that passes each order on.

    Args:
        builders: By name; an error says why that one is not here.
        default: For apps that do not choose.

    Raises:
        KnarrError: The default one is not here.
    """

    def __init__(self, builders: Mapping[BuilderName, ImageBuilder | KnarrError], *, default: BuilderName) -> None:
        usual = builders[default]
        if isinstance(usual, KnarrError):
            raise usual
        self._builders = builders
        self._default = default

    def name_for(self, order: BuildOrder) -> BuilderName:
        """Return the name of the builder that this order gets."""
        kind = order.description.runtime.kind
        if kind == "buildpacks":
            return "buildpacks"
        wanted = order.builder or self._default
        return "buildx" if kind == "dockerfile" and wanted == "buildpacks" else wanted

    async def build(
        self,
        order: BuildOrder,
        *,
        output: BuildOutput,
        note: Callable[[str], None],
        hold: Callable[[str], Awaitable[None]],
    ) -> Built:
        """See `ImageBuilder.build`."""
        name = self.name_for(order)
        builder = self._builders[name]
        if isinstance(builder, KnarrError):
            raise CannotBuild(f"The builder {name} is not here", why=builder.what, todo=builder.todo)
        return await builder.build(order, output=output, note=note, hold=hold)

    async def stop(self, saga_id: str | None = None) -> int:
        """See `ImageBuilder.stop`: whichever of them it was."""
        return sum([await each.stop(saga_id) for each in self._builders.values() if not isinstance(each, KnarrError)])
