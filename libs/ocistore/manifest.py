"""What an image is made of: names checked, manifests and indexes written and read. Pure; no I/O.

The same content always gives the same bytes, hence the same digest. Specification: OCI image-spec 1.1 (manifest.md,
image-index.md, image-layout.md), distribution-spec 1.1 for names and tags.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ocistore.store import Descriptor, Image, LayerFile
from seedwork.errors import InvalidInput

MEDIA_INDEX = "application/vnd.oci.image.index.v1+json"
MEDIA_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_CONFIG = "application/vnd.oci.image.config.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_REPOSITORY_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An image that is about to be stored: its bytes except the layers."""

    manifest: bytes
    manifest_digest: str
    config: bytes
    config_digest: str
    layers: tuple[LayerFile, ...]

    @property
    def blobs(self) -> Mapping[str, int]:
        """Size in bytes of everything that the image needs, by digest."""
        return {
            self.manifest_digest: len(self.manifest),
            self.config_digest: len(self.config),
            **{layer.descriptor.digest: layer.descriptor.size_bytes for layer in self.layers},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest that was stored."""

    digest: str
    record: Mapping[str, Any]
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def blobs(self) -> frozenset[str]:
        """The digests of all that the image is made of, the manifest's own among them."""
        return frozenset([self.digest, self.config.digest, *(layer.digest for layer in self.layers)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One image of a repository's index."""

    size_bytes: int
    """Of the manifest."""
    tags: tuple[str, ...] = ()


Index = Mapping[str, Entry]
"""A repository's images by manifest digest, in the order in which they came."""


def digest_of(content: bytes) -> str:
    """`sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def is_repository(name: str) -> bool:
    """Whether it is a repository name of the distribution-spec."""
    return len(name) <= _REPOSITORY_CHARACTERS and _REPOSITORY.fullmatch(name) is not None


def check_repository(name: str) -> str:
    """The name, if it is one.

    Raises:
        InvalidInput: Not a repository name of the distribution-spec (which rules out `..`, `//` and a leading `/`).
    """
    if not is_repository(name):
        raise InvalidInput(
            f"{name[:80]!r} is no repository name",
            why="it needs lower-case letters and digits, with single '.', '_' or '-' between them, '/' between parts",
            todo=f"Choose a name of at most {_REPOSITORY_CHARACTERS} characters such as 'team/shop'.",
        )
    return name


def check_digest(digest: str) -> str:
    """The digest, if it is one.

    Raises:
        InvalidInput: Not `sha256:` and 64 lower-case hex digits.
    """
    if not _DIGEST.fullmatch(digest):
        raise InvalidInput(f"{digest[:80]!r} is no digest", todo="Give 'sha256:' and 64 lower-case hex digits.")
    return digest


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """The tags, each once.

    Raises:
        InvalidInput: One of them is no tag.
    """
    checked = tuple(dict.fromkeys(tags))
    for tag in checked:
        if not _TAG.fullmatch(tag):
            raise InvalidInput(
                f"{tag[:80]!r} is no tag",
                why="allowed are letters, digits, '_', '.' and '-', at most 128, none of the last two first",
                todo="Choose a tag such as the commit's 40 hex digits.",
            )
    return checked


def draft(config: bytes, layers: Sequence[LayerFile]) -> Draft:
    """Compose the manifest for a config and its layers.

    Raises:
        InvalidInput: The config is no image config for these layers, or a descriptor is wrong.
    """
    for layer in layers:
        check_digest(layer.descriptor.digest)
        check_digest(layer.diff_id)
    _check_config(config, [layer.diff_id for layer in layers])
    config_digest = digest_of(config)
    manifest = orjson.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MEDIA_MANIFEST,
            "config": {"mediaType": MEDIA_CONFIG, "digest": config_digest, "size": len(config)},
            "layers": [_descriptor_json(layer.descriptor) for layer in layers],
        },
        option=orjson.OPT_SORT_KEYS,
    )
    return Draft(
        manifest=manifest,
        manifest_digest=digest_of(manifest),
        config=config,
        config_digest=config_digest,
        layers=tuple(layers),
    )


def _check_config(config: bytes, diff_ids: list[str]) -> None:
    try:
        stated = orjson.loads(config)["rootfs"]["diff_ids"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise InvalidInput(
            "This is no image config", why=f"rootfs.diff_ids cannot be read ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(stated, list) or stated != diff_ids:
        raise InvalidInput(
            "The image config does not fit the layers",
            why=f"its rootfs.diff_ids are not those of the {len(diff_ids)} layers, in order",
            todo="Write the config from the same list of layers.",
        )


def _descriptor_json(descriptor: Descriptor) -> dict[str, Any]:
    record: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size_bytes,
    }
    if descriptor.annotations:
        record["annotations"] = dict(descriptor.annotations)
    return record


def read_manifest(content: bytes) -> Manifest:
    """A stored manifest.

    Raises:
        ValueError: This is no image manifest.
    """
    try:
        record = orjson.loads(content)
        return Manifest(
            digest=digest_of(content),
            record=record,
            config=_read_descriptor(record["config"]),
            layers=tuple(_read_descriptor(layer) for layer in record["layers"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no image manifest: {type(error).__name__}: {error}") from error


def _read_descriptor(record: Mapping[str, Any]) -> Descriptor:
    return Descriptor(
        media_type=record["mediaType"],
        digest=record["digest"],
        size_bytes=record["size"],
        annotations=record.get("annotations"),
    )


def image(repository: str, manifest: bytes, config: bytes, tags: Sequence[str]) -> Image:
    """Put an image together from the bytes that were stored.

    Raises:
        ValueError: The bytes are no image.
    """
    parsed = read_manifest(manifest)
    layers = {layer.digest: layer.size_bytes for layer in parsed.layers}
    return Image(
        repository=repository,
        digest=parsed.digest,
        manifest=parsed.record,
        config=orjson.loads(config),
        layers=parsed.layers,
        tags=tuple(tags),
        size_bytes=len(manifest) + len(config) + sum(layers.values()),
    )


def read_index(text: bytes) -> Index:
    """A repository's images from its `index.json`; one descriptor a tag, as the image-layout specification has it.

    Raises:
        ValueError: This is no index.
    """
    entries: dict[str, Entry] = {}
    try:
        for descriptor in orjson.loads(text)["manifests"]:
            tag = (descriptor.get("annotations") or {}).get(REF_NAME)
            known = entries.get(descriptor["digest"], Entry(size_bytes=descriptor["size"]))
            entries[descriptor["digest"]] = Entry(
                size_bytes=known.size_bytes, tags=(*known.tags, tag) if tag is not None else known.tags
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no image index: {type(error).__name__}: {error}") from error
    return entries


def write_index(index: Index) -> bytes:
    """An `index.json` from which other tools find each image by its tag."""
    manifests: list[dict[str, Any]] = []
    for digest, entry in index.items():
        descriptor = {"mediaType": MEDIA_MANIFEST, "digest": digest, "size": entry.size_bytes}
        manifests += [{**descriptor, "annotations": {REF_NAME: tag}} for tag in entry.tags] or [descriptor]
    return orjson.dumps({"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": manifests})


def with_image(index: Index, digest: str, *, size_bytes: int, tags: Sequence[str]) -> Index:
    """The index with that image under exactly these tags; a tag that another image had is taken from it."""
    taken = set(tags)
    others = {
        each: Entry(size_bytes=entry.size_bytes, tags=tuple(tag for tag in entry.tags if tag not in taken))
        for each, entry in index.items()
    }
    return {**others, digest: Entry(size_bytes=size_bytes, tags=tuple(tags))}


def without_image(index: Index, digest: str) -> Index:
    """The index without that image."""
    return {each: entry for each, entry in index.items() if each != digest}


def joined(*groups: Iterable[str]) -> tuple[str, ...]:
    """Tags of all groups in order, each once."""
    return tuple(dict.fromkeys(tag for group in groups for tag in group))
