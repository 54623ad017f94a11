"""A release row in, everything that a runtime needs to run it out: the image's facts and the unsealed config vars."""

from collections.abc import Mapping

from ocistore.store import ImageStore
from seedwork.errors import Conflict
from seedwork.unit_of_work import Database
from services.deployer import addons, configs, volumes
from services.deployer.apps import App
from services.deployer.image import ImageFacts, facts_of
from services.deployer.ports import AddOns, Release
from services.deployer.releases import KnownRelease
from services.deployer.scopes import opened
from services.deployer.vault import Vault


async def assemble(
    known: KnownRelease,
    app: App,
    *,
    db: Database,
    images: ImageStore,
    vault: Vault,
    provider: AddOns | None,
) -> Release:
    """Read what the row names.

    Raises:
        NotFound: The image is not in the store.
        CannotRun: The image's labels cannot be read.
        Conflict: The config version is gone.
        Misconfigured: The config vars were sealed with another key.
    """
    image = await images.get(known.repository, known.digest, tagged=False)
    facts = facts_of(image)
    version = await db.read(lambda conn: configs.get(conn, known.app_id, known.config_version))
    if version is None:
        raise Conflict(f"Config version {known.config_version} of {app.name} is gone", why="the app was removed")
    kinds = {each.kind for each in facts.addons}
    theirs = [each for each in await db.read(lambda conn: addons.of_app(conn, known.app_id)) if each.kind in kinds]
    kept = await db.read(lambda conn: volumes.of_app(conn, known.app_id))
    return Release(
        app_id=known.app_id,
        app=app.name,
        team=app.team,
        saga_id=known.saga_id,
        number=known.number,
        image=image,
        processes=facts.processes,
        formation=known.formation,
        env=variables(
            facts, addons.variables(theirs, vault, provider) | opened(vault.unseal(version.sealed)).seen_by("run")
        ),
        release_command=facts.release_command,
        health_path=facts.health_path,
        checks=facts.checks,
        port=facts.port,
        volumes=tuple(each.volume for each in kept if each.state == "live"),
        commit=known.commit,
        addons=addons.given(theirs, app, vault),
    )


def variables(facts: ImageFacts, config: Mapping[str, str]) -> dict[str, str]:
    """The app's declared defaults, and over them its add-ons' URLs and config vars."""
    defaults = {name: var.value for name, var in facts.env.items() if var.value is not None}
    return {**defaults, **config}


def formation_for(
    facts: ImageFacts,
    wanted: Mapping[str, int] | None,
    live: Mapping[str, int] | None,
    scaled: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return instances by process type; only types that the image has.

    Args:
        facts: Of the image.
        wanted: Asked for with this release; counts first.
        live: Of the current release; counts next.
        scaled: Numbers that persons set earlier: they count for a type that has come back.
    """
    known = {**facts.formation, **(scaled or {}), **(live or {}), **(wanted or {})}
    return {name: max(0, known[name]) for name in facts.formation}
