"""Commands in: a staged image gets its permanent place and is read back; a reference goes, and the image with the last.

Safe to deliver twice and to cut off anywhere: a reference is named by its saga, an image by its content, and who brings
or removes bytes holds the lock of their repository.
"""

from collections.abc import Sequence
from functools import partial
from itertools import groupby

from sqlalchemy.ext.asyncio import AsyncConnection

from ocistore.manifest import check_repository, joined
from seedwork.errors import InvalidInput, NotFound
from seedwork.messages import Envelope
from seedwork.participant import Work
from services.deployer.contract import ReleaseDeployed, ReleaseRetired
from services.registry import errors
from services.registry.collector import Collector, collect, settle_tags
from services.registry.contract import (
    DropImages,
    ImagePublished,
    ImagesDropped,
    ImageUnpublished,
    PublishImage,
    UnpublishImage,
)
from services.registry.ports import Image, ImageStore
from services.registry.references import Published, Reference, References, number, retire

STAGING = "staging"
"""The first part of the repositories in which builder leaves images: `staging/<app_id>`."""


async def publish_image(
    command: PublishImage, *, work: Work, images: ImageStore, references: References
) -> ImagePublished:
    """Hold the image for this saga, then make sure that it is there, complete, under its commit's tag.

    Raises:
        NotFound: The staged image, or (without one) the published image, is not there or damaged.
        InvalidInput: The app's or team's name cannot name a repository.
    """
    reference = Reference(
        app_id=work.app_id,
        digest=command.digest,
        saga_id=work.saga_id,
        repository=await _repository(command, work, references),
        commit=command.commit,
    )
    async with references.taken(reference, step=work.step):
        try:
            image = await _bring(command, reference.repository, images)
        except NotFound:
            await references.drop([reference])
            raise
    published = Published(
        repository=image.repository,
        digest=image.digest,
        app_id=work.app_id,
        app=command.app,
        team=work.team,
        size_bytes=image.size_bytes,
        published_ms=0,
    )
    work.with_outcome(partial(references.record, image=published))
    return ImagePublished(
        repository=image.repository, digest=image.digest, tags=image.tags, size_bytes=image.size_bytes
    )


async def unpublish_image(
    _command: UnpublishImage, *, work: Work, images: ImageStore, references: References
) -> ImageUnpublished:
    """Drop this saga's reference; the image goes if nobody else holds it."""
    found, done = await _let_go(await references.of_saga(work.saga_id), images, references)
    return ImageUnpublished(found=found, done=done)


async def drop_images(_command: DropImages, *, work: Work, images: ImageStore, references: References) -> ImagesDropped:
    """Drop all references of the app, and every image that only it had, staged ones too."""
    found, done = await _let_go(await references.of_app(work.app_id), images, references)
    for repository in await references.repositories_of(work.app_id):
        for digest in await collect(repository, images=images, references=references):
            found, done = (*found, f"image {repository}@{digest}"), (*done, f"removed {repository}@{digest}")
    staging = f"{STAGING}/{work.app_id}"
    for repository, digest in await images.images(staging):
        if repository == staging and await images.remove(repository, digest):
            found, done = (*found, f"image {repository}@{digest}"), (*done, f"removed {repository}@{digest}")
    return ImagesDropped(found=found, done=done)


async def on_release_deployed(event: ReleaseDeployed, envelope: Envelope, conn: AsyncConnection) -> None:
    """Remember which release an image became."""
    await number(conn, app_id=envelope.appid, digest=event.digest, saga_id=envelope.correlationid, number=event.number)


async def on_release_retired(
    event: ReleaseRetired, envelope: Envelope, conn: AsyncConnection, *, collector: Collector
) -> None:
    """Drop the release's reference; the collector removes what nobody holds then."""
    await retire(conn, app_id=envelope.appid, digest=event.digest, saga_id=event.release_saga_id)
    collector.wake_after(conn)


async def _repository(command: PublishImage, work: Work, references: References) -> str:
    """The image's permanent place: `<app>` or `<team>/<app>`; an image that is published stays where it is."""
    if command.staged is None:
        places = [each.repository for each in await references.of_app(work.app_id) if each.digest == command.digest]
        if not places:
            raise errors.not_published(command.app, command.digest, "no release holds it")
        return places[-1]
    if work.team == STAGING:
        raise errors.no_repository(work.team, command.app, "'staging' is where images are built")
    try:
        return check_repository(command.app if work.team == "default" else f"{work.team}/{command.app}")
    except InvalidInput as error:
        raise errors.no_repository(work.team, command.app, error.why) from error


async def _bring(command: PublishImage, repository: str, images: ImageStore) -> Image:
    """Copy it, if it is staged; read it back in any case; let the commit's tag name it."""
    if command.staged is not None:
        tags = (command.commit,) if command.commit else ()
        try:
            return await images.copy(command.staged, command.digest, to=repository, tags=tags)
        except NotFound as error:
            raise errors.not_staged(command.staged, command.digest, error) from error
    try:
        image = await images.get(repository, command.digest, verify=True)
    except NotFound as error:
        raise errors.not_published(command.app, command.digest, error.message) from error
    if command.commit is None or command.commit in image.tags:
        return image
    return await images.tag(repository, command.digest, tags=joined(image.tags, [command.commit]))


async def _let_go(
    held: Sequence[Reference], images: ImageStore, references: References
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Remove what only these references hold, then drop them; what was found, and what was done about it."""
    found: list[str] = []
    done: list[str] = []
    for repository, group in groupby(sorted(held, key=_repository_of), key=_repository_of):
        ours = {each.key: each for each in group}
        found += [f"reference of saga {each.saga_id} to {repository}@{each.digest}" for each in ours.values()]
        async with references.locked(repository):
            others = [each for each in await references.of_repository(repository) if each.key not in ours]
            digests = sorted({each.digest for each in ours.values()})
            done += [await _remove_unheld(repository, digest, others, images) for digest in digests]
            await settle_tags(repository, others, images)
            await references.drop(list(ours.values()))
        done.append(f"dropped {len(ours)} reference{'s' if len(ours) > 1 else ''}")
    return tuple(found), tuple(done)


async def _remove_unheld(repository: str, digest: str, others: Sequence[Reference], images: ImageStore) -> str:
    holders = sum(1 for each in others if each.digest == digest)
    if holders:
        return f"kept {repository}@{digest}, which {holders} other deployment{'s hold' if holders > 1 else ' holds'}"
    if await images.remove(repository, digest):
        return f"removed {repository}@{digest}"
    return f"{repository}@{digest} was not there"


def _repository_of(reference: Reference) -> str:
    return reference.repository
