"""The image store in a registry that speaks the OCI distribution API: complete images in, complete images out.

    <prefix>/<repository>@sha256:<hex>      an image: its manifest, by digest
    <prefix>/<repository>:knarr-<hex>       its mark: this image is in the store
    <prefix>/<repository>:<tag>             its tags

The distribution API lists repositories and tags, never manifests. So each stored image has a tag of its own, the mark,
which `images` reads and nobody else sees; a manifest that somebody pushed without one can be read by its digest, and
is in the store once `put`, `copy` or `tag` marked it. `images` needs the catalog (`GET /v2/_catalog`).

Guaranteed: a manifest comes after its config and layers, and the registry refuses one whose blobs it does not have; so
an image is visible complete or not at all, also when we are killed. `get` hashes the manifest again, and a config that
it does not remember; `verify` hashes both and asks for the size of each layer. After `remove` a `GET` answers 404.

Not guaranteed: that bytes go at once. `remove` deletes the manifest; blobs that no manifest needs are the registry's
own garbage collection's (ADR 15), and a blob that is damaged there stays so until that one has taken it. A tag that
moves or goes takes two requests: killed between them, it names a manifest that nobody runs.
"""

import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import quote

import orjson
import structlog

from ocistore import manifest as oci
from ocistore.blobs import CHUNK_BYTES, Blobs
from ocistore.directory import damaged, no_image
from ocistore.registry import Registry
from ocistore.store import Descriptor, Image, LayerFile
from seedwork.errors import InvalidInput, Misconfigured, NotFound, Unavailable
from seedwork.messages import new_id
from seedwork.side_by_side import side_by_side

_MARK = re.compile(r"knarr-([0-9a-f]{64})")
_LINK = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')
_PAGE = 500
_REMEMBERED = 64
"""Configs, of some ten kilobytes each: what has a digest never changes."""
_RACES = 3
"""How often a `put` begins again because a blob went after we saw it: somebody collected garbage just then."""
_MANIFESTS = (
    oci.MEDIA_MANIFEST,
    oci.MEDIA_INDEX,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_ACCEPT = ", ".join(_MANIFESTS)
_EMPTY = b"{}"

log = structlog.get_logger(__name__)


class DistributionStore:
    """An `ImageStore` in a registry.

    Raises, from every method:
        Unavailable: The registry does not answer, or answers 429 or 5xx, for longer than our patience.
        StorageFull: The registry has no room left.
        Unauthenticated, NotAllowed: It wants other credentials, or does not let them do this.
        InvalidInput: A repository name, digest or tag is none.
    """

    def __init__(self, registry: Registry, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Nothing is asked before the first use.

        Args:
            registry: Where, and how to talk to it.
            chunk_bytes: Layers above this size are sent in pieces.
        """
        self._registry = registry
        self._blobs = Blobs(registry, chunk_bytes=chunk_bytes)
        self._configs: OrderedDict[str, bytes] = OrderedDict()

    async def open(self) -> None:
        """Nothing: a registry that is away must not keep a service from starting."""

    async def close(self) -> None:
        """Give back the connections."""
        await self._registry.close()

    async def probe(self) -> None:
        """See `OpenedStore.probe`: the registry answers, and accepts our credentials."""
        await self._registry.call("GET", "v2/", repository="the image store", doing="the check", again=False)

    def reference(self, repository: str, digest: str) -> str:
        """The image's name for whoever pulls it: `host[:port]/[prefix/]repository@sha256:…`."""
        _check(repository, digest)
        return f"{self._registry.host}/{self._registry.name(repository)}@{digest}"

    # --- the port -----------------------------------------------------------------------------------------------------

    async def put(
        self, repository: str, *, config: bytes, layers: Sequence[LayerFile], tags: Sequence[str] = ()
    ) -> Image:
        """See `ImageStore.put`."""
        oci.check_repository(repository)
        checked = _check_tags(tags)
        draft = oci.draft(config, layers)
        files = {each.descriptor.digest: each for each in draft.layers}
        for race in range(1, _RACES + 1):
            there, *_ = await side_by_side(
                partial(self._tag_names, repository),
                partial(self._blobs.bring, repository, draft.config_digest, draft.config),
                *(partial(self._blobs.bring_layer, repository, each) for each in files.values()),
            )
            try:
                await self._name(repository, draft.manifest, [_mark(draft.manifest_digest), *checked])
                break
            except (InvalidInput, NotFound) as error:
                if race == _RACES or "BLOB_UNKNOWN" not in error.why:
                    raise
                log.warning("a blob went while its image was stored", repository=repository, error=error.message)
        tags_now = await self._tags_with(repository, draft.manifest_digest, new=checked, there=there)
        return oci.image(repository, draft.manifest, draft.config, tags_now)

    async def copy(self, repository: str, digest: str, *, to: str, tags: Sequence[str] = ()) -> Image:
        """See `ImageStore.copy`."""
        _check(repository, digest, to)
        checked = _check_tags(tags)
        manifest: bytes
        there: list[str]
        manifest, there = await side_by_side(partial(self._manifest, repository, digest), partial(self._tag_names, to))
        try:
            parsed = oci.read_manifest(manifest)
        except ValueError as error:
            raise damaged(f"{repository}@{digest}", error) from error
        known = bool(there) or to == repository
        layers = {each.digest: each for each in parsed.layers if each.digest != parsed.config.digest}

        async def config() -> Image:
            await self._blobs.copy(repository, parsed.config, to, expected=known)
            return await self._image(to, digest, manifest)

        image: Image
        image, *_ = await side_by_side(
            config, *(partial(self._blobs.copy, repository, each, to, expected=known) for each in layers.values())
        )
        await self._name(to, manifest, [_mark(digest), *checked])
        tags_now: tuple[str, ...]
        _, tags_now = await side_by_side(  # not beside the writing, during which distribution may answer 500
            partial(self._manifest, to, digest),
            partial(self._tags_with, to, digest, new=checked, there=there),
        )
        return replace(image, tags=tags_now)

    async def get(self, repository: str, digest: str, *, verify: bool = False, tagged: bool = True) -> Image:
        """See `ImageStore.get`."""
        _check(repository, digest)
        manifest = await self._manifest(repository, digest)
        if not tagged:
            return await self._image(repository, digest, manifest, verify=verify)
        return await self._read(repository, digest, manifest, verify=verify)

    async def tag(self, repository: str, digest: str, *, tags: Sequence[str]) -> Image:
        """See `ImageStore.tag`; it also marks an image that somebody else pushed."""
        _check(repository, digest)
        checked = _check_tags(tags)
        manifest = await self._manifest(repository, digest)
        await self._name(repository, manifest, [_mark(digest), *checked])
        for gone in set(await self._tags_of(repository, digest)) - set(checked):
            await self.untag(repository, gone)
        return await self._read(repository, digest, manifest)

    async def remove(self, repository: str, digest: str) -> bool:
        """See `ImageStore.remove`; afterwards the registry was seen to answer 404."""
        _check(repository, digest)
        path = self._registry.path(repository, f"manifests/{digest}")
        answer = await self._registry.call(
            "DELETE", path, repository=repository, doing="removing an image", okay=(202, 404)
        )
        names, there = await side_by_side(
            partial(self._tag_names, repository), partial(self._digest_of, repository, digest)
        )
        marked = _mark(digest) in names
        if marked:  # its manifest is damaged, or this registry leaves the tags of what went
            await self.untag(repository, _mark(digest))
            there = await self._digest_of(repository, digest)
        if there is not None:
            raise Unavailable(
                f"The registry {self._registry.host} still has {repository}@{digest}",
                why="it accepted the removal, and shows the image all the same",
                todo="Is there a cache in front of it?",
            )
        return marked or answer.status_code == 202

    async def images(self, prefix: str = "") -> Sequence[tuple[str, str]]:
        """See `ImageStore.images`."""
        found: list[tuple[str, str]] = []
        for repository in await self._repositories(prefix):
            marks = map(_MARK.fullmatch, await self._tag_names(repository))
            found += [(repository, f"sha256:{mark[1]}") for mark in marks if mark]
        return sorted(found)

    async def read_blob(self, repository: str, digest: str) -> AsyncIterator[bytes]:
        """See `ImageStore.read_blob`."""
        _check(repository, digest)
        async for piece in self._blobs.read(repository, digest):
            yield piece

    # --- beyond the port: what others pushed --------------------------------------------------------------------------

    async def resolve(self, repository: str, tag: str) -> str | None:
        """The digest that a tag names; None: there is no such tag."""
        oci.check_repository(repository)
        (checked,) = oci.check_tags([tag])
        return await self._digest_of(repository, checked)

    async def untag(self, repository: str, tag: str) -> None:
        """Take a tag away, and nothing else.

        By the distribution-spec `DELETE` of a tag does this, which distribution below 3.0 refuses. What works
        everywhere: the tag is moved to a manifest that was made for this, and that one is deleted, its tag with it.
        """
        oci.check_repository(repository)
        (checked,) = oci.check_tags([tag])
        config = {"mediaType": oci.MEDIA_CONFIG, "digest": oci.digest_of(_EMPTY), "size": len(_EMPTY)}
        stand_in = orjson.dumps(
            {
                "schemaVersion": 2,
                "mediaType": oci.MEDIA_MANIFEST,
                "config": config,
                "layers": [],
                "annotations": {"io.knarr.untag": new_id()},
            }
        )
        await self._blobs.bring(repository, oci.digest_of(_EMPTY), _EMPTY)
        await self._name(repository, stand_in, [checked])
        await self._registry.call(
            "DELETE",
            self._registry.path(repository, f"manifests/{oci.digest_of(stand_in)}"),
            repository=repository,
            doing=f"taking away the tag {checked}",
            okay=(202, 404),
        )

    # --- manifests ----------------------------------------------------------------------------------------------------

    async def _manifest(self, repository: str, digest: str) -> bytes:
        """Its bytes, hashed."""
        content = await self._blobs.small(repository, f"manifests/{digest}", f"reading {digest}", accept=_ACCEPT)
        if content is None:
            raise no_image(repository, digest)
        if oci.digest_of(content) != digest:
            raise damaged(f"{repository}@{digest}", f"its manifest hashes to {oci.digest_of(content)}")
        return content

    async def _read(self, repository: str, digest: str, manifest: bytes, *, verify: bool = False) -> Image:
        """The image of a manifest, with its tags."""
        image: Image
        image, tags = await side_by_side(
            partial(self._image, repository, digest, manifest, verify=verify),
            partial(self._tags_of, repository, digest),
        )
        return replace(image, tags=tags)

    async def _image(self, repository: str, digest: str, manifest: bytes, *, verify: bool = False) -> Image:
        """Without its tags; its config is read or remembered, and (`verify`) read again with a look at its layers."""
        try:
            parsed = oci.read_manifest(manifest)
            config = None if verify else self._configs.get(parsed.config.digest)
            if config is None:
                config = await self._read_config(repository, parsed.config.digest)
            if verify:
                await side_by_side(*(partial(self._check_layer, repository, each) for each in parsed.layers))
            return oci.image(repository, manifest, config, ())
        except ValueError as error:
            raise damaged(f"{repository}@{digest}", error) from error

    async def _read_config(self, repository: str, digest: str) -> bytes:
        config = await self._blobs.small(repository, f"blobs/{digest}", "reading a config")
        if config is None or oci.digest_of(config) != digest:
            raise ValueError(f"its config {digest} is missing or changed")
        self._configs[digest] = config
        if len(self._configs) > _REMEMBERED:
            self._configs.popitem(last=False)
        return config

    async def _check_layer(self, repository: str, layer: Descriptor) -> None:
        if why := await self._blobs.fault(repository, layer):
            raise ValueError(f"its layer {layer.digest}: {why}")

    async def _name(self, repository: str, manifest: bytes, tags: Iterable[str]) -> None:
        """Store the manifest under these tags, the first one first."""
        digest = oci.digest_of(manifest)
        media_type = orjson.loads(manifest).get("mediaType", oci.MEDIA_MANIFEST)
        for tag in tags:
            answer = await self._registry.call(
                "PUT",
                self._registry.path(repository, f"manifests/{tag}"),
                repository=repository,
                doing="storing a manifest",
                content=manifest,
                headers={"Content-Type": media_type},
                okay=(201,),
            )
            stored = answer.headers.get("Docker-Content-Digest", digest)
            if stored != digest:
                raise Unavailable(
                    f"The registry {self._registry.host} stored another manifest in {repository} than it was given",
                    why=f"{stored} instead of {digest}",
                    todo="Something between us and the registry changes what is sent.",
                )

    # --- tags and repositories ----------------------------------------------------------------------------------------

    async def _tags_of(self, repository: str, digest: str) -> tuple[str, ...]:
        """The image's tags, sorted, without its mark."""
        return await self._tags_among(repository, digest, await self._tag_names(repository))

    async def _tags_with(
        self, repository: str, digest: str, *, new: Sequence[str], there: Sequence[str]
    ) -> tuple[str, ...]:
        """Its tags with the `new` ones. Where its mark was not `there` before, it had none: then nothing is asked."""
        others = set(there).difference(new) if _mark(digest) in there else ()
        return tuple(sorted({*new, *await self._tags_among(repository, digest, others)}))

    async def _tags_among(self, repository: str, digest: str, names: Iterable[str]) -> tuple[str, ...]:
        asked = sorted(name for name in names if not _MARK.fullmatch(name))
        digests = await side_by_side(*(partial(self._digest_of, repository, name) for name in asked))
        return tuple(name for name, its in zip(asked, digests, strict=True) if its == digest)

    async def _digest_of(self, repository: str, named: str) -> str | None:
        """The digest of the manifest that a tag (or digest) names; None: it is not there."""
        doing = f"looking up {named}"
        answer = await self._registry.call(
            "HEAD",
            self._registry.path(repository, f"manifests/{named}"),
            repository=repository,
            doing=doing,
            headers={"Accept": _ACCEPT},
            okay=(200, 404),
        )
        if answer.status_code == 404:
            return None
        if digest := answer.headers.get("Docker-Content-Digest"):
            return digest
        content = await self._blobs.small(repository, f"manifests/{named}", doing, accept=_ACCEPT)
        return None if content is None else oci.digest_of(content)

    async def _tag_names(self, repository: str) -> list[str]:
        path = self._registry.path(repository, f"tags/list?n={_PAGE}")
        pages = self._pages(path, repository, "listing tags")
        return [name async for page in pages for name in page.get("tags") or ()]

    async def _repositories(self, prefix: str) -> list[str]:
        """Repositories whose name begins with `prefix`: that one, and what follows it in the sorted catalog.

        Distribution sorts `/` before all other characters, others by their bytes: in either order what begins with
        `prefix` follows on it without a gap, so that a large catalog is not read to its end.
        """
        first = self._registry.prefix + prefix
        found = {prefix} if oci.is_repository(prefix) else set[str]()
        query = f"?n={_PAGE}&last={quote(first)}" if first else f"?n={_PAGE}"
        async for page in self._pages(f"v2/_catalog{query}", prefix or "all apps", "listing repositories"):
            for name in page.get("repositories") or ():
                if name.startswith(first):
                    found.add(name.removeprefix(self._registry.prefix))
                elif name > first and name.replace("/", "\0") > first.replace("/", "\0"):
                    return sorted(found)
        return sorted(found)

    async def _pages(self, path: str, repository: str, doing: str) -> AsyncIterator[Mapping[str, Any]]:
        while path:
            answer = await self._registry.call("GET", path, repository=repository, doing=doing, okay=(200, 404))
            if answer.status_code == 404 and "_catalog" in path:
                raise Misconfigured(
                    f"The registry {self._registry.host} does not list its repositories",
                    why="it has no /v2/_catalog, by which knarr finds its images",
                    todo="Use a registry that has it: distribution, Harbor, Zot, GitLab …",
                )
            if answer.status_code == 404:
                return
            yield orjson.loads(answer.content)
            following = _LINK.search(answer.headers.get("Link", ""))
            path = str(answer.request.url.join(following[1])) if following else ""


def _mark(digest: str) -> str:
    return f"knarr-{digest.removeprefix('sha256:')}"


def _check_tags(tags: Sequence[str]) -> tuple[str, ...]:
    checked = oci.check_tags(tags)
    if marks := [tag for tag in checked if _MARK.fullmatch(tag)]:
        raise InvalidInput(f"{marks[0]!r} cannot be a tag", why="by such tags knarr finds its images in a registry")
    return checked


def _check(repository: str, digest: str, to: str | None = None) -> None:
    oci.check_repository(repository)
    oci.check_digest(digest)
    if to is not None:
        oci.check_repository(to)
