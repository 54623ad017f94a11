"""A commit in, one archive of the app's folder out, with its submodules and its LFS content.

Repositories are opened one after the other and never two at once: a submodule may be its own parent, and two sagas may
hold each other's. What cannot be fetched is named in `notes` and left as it is in the repository: an empty folder, or a
pointer. A fault that passes (`RetryableError`) ends the attempt. The digest is a function of the content alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from seedwork.archives import (
    ArchiveLimits,
    Entry,
    NormalTar,
    checked_name,
    normalise_entries,
    read_tar,
    shown_name,
)
from seedwork.errors import FinalError, InvalidInput, TooLarge
from seedwork.git import GitUrlPolicy
from seedwork.participant import Work
from seedwork.threads import in_thread
from services.source.errors import RepositoryRefused
from services.source.lfs import Pointer
from services.source.ports import LargeFiles, PackedTree, Repositories, Repository, Submodule

_MOST_SUBMODULES = 64
"""Of one app, nested ones included: each is a fetch of its own."""
_DEEPEST = 8
"""Submodules in submodules: a repository can name itself."""
_MOST_NAMED = 10
"""Files that one note names."""


@dataclass(frozen=True, slots=True)
class Packed:
    """An app's folder as an archive."""

    tar: NormalTar
    commit: str | None = None
    """40 hex digits; None: an upload."""
    notes: tuple[str, ...] = ()
    """What is missing in the archive, one line each."""
    pointers: tuple[str, ...] = ()
    """Files that are LFS pointers in the archive."""
    watched_digest: str | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """One repository's share of the archive."""

    prefix: str
    """Where it stands in the archive, with a slash at the end; empty: at the root."""
    path: Path
    content: Mapping[str, Path]
    """Files in place of LFS pointers, by name."""


@dataclass(slots=True)
class Packer:
    """Packs one commit: of one saga, used once.

    Args:
        repositories: Where the code comes from.
        large_files: Where LFS content comes from.
        policy: The allow-list, for the addresses of submodules.
        limits: How much is taken, of all repositories together.
        work: Told what is being done.
    """

    repositories: Repositories
    large_files: LargeFiles
    policy: GitUrlPolicy
    limits: ArchiveLimits
    work: Work
    _draft: Path = field(default_factory=Path)
    _parts: list[_Part] = field(default_factory=list)
    _drafts: list[Path] = field(default_factory=list)
    _fetched: int = 0
    _large_bytes: int = 0
    _notes: list[str] = field(default_factory=list)
    _pointers: list[str] = field(default_factory=list)

    async def tree(self, repository: Repository, commit: str, root: str, draft: Path) -> PackedTree | Submodule:
        """Pack the folder of an open repository, or name the submodule that it is in."""
        self._draft = draft
        inner = await repository.submodule_at(commit, root)
        if inner is not None:
            return inner
        path = draft.with_name(f"{draft.name}.part{len(self._drafts)}")
        self._drafts.append(path)
        return await repository.pack(commit, root, path)

    async def finish(self, clone_url: str, found: PackedTree | Submodule, draft: Path) -> Packed:
        """Add submodules and LFS content to what `tree` found, and write the archive. No repository is open."""
        await self._add(clone_url, found, "", 0)
        tar = await self._written(found, draft)
        return Packed(tar, notes=tuple(self._notes), pointers=tuple(self._pointers))

    async def _add(self, clone_url: str, found: PackedTree | Submodule, prefix: str, depth: int) -> None:
        """Take a repository's share, then those of its submodules."""
        if isinstance(found, Submodule):
            await self._add_submodule(replace(found, path=""), found.path, prefix, depth)
            return
        path = self._drafts[-1]
        content = await self._large_content(clone_url, found.pointers, prefix)
        self._parts.append(_Part(prefix, path, content))
        for each in found.submodules:
            where = f"{prefix}{each.path}"
            try:
                await self._add_submodule(each, where, f"{where}/", depth)
            except TooLarge:
                raise
            except FinalError as error:
                self._notes.append(f"submodule {shown_name(where)} stays empty: {error.message}"[:500])

    async def _add_submodule(self, submodule: Submodule, shown: str, prefix: str, depth: int) -> None:
        self._fetched += 1
        if depth >= _DEEPEST or self._fetched > _MOST_SUBMODULES:
            raise TooLarge(
                f"The app has more than {_MOST_SUBMODULES} submodules, or more than {_DEEPEST} one in the other",
                why=f"{shown_name(shown)} crosses the limit",
                todo="Deploy a folder of the repository with fewer submodules: `knarr apps update APP --root FOLDER`",
                code="too_many_submodules",
            )
        if not submodule.url:
            raise InvalidInput(f"{shown_name(shown)} is a submodule", why="no address of it is in .gitmodules")
        url = self.policy.allowed(submodule.url)
        self.work.note(f"fetching the submodule {shown_name(shown)} from {url}")
        async with self.repositories.open(url) as repository:
            brought = await repository.bring(None, submodule.commit)
            found = await self.tree(repository, brought.commit, submodule.inside, self._draft)
        await self._add(url, found, prefix, depth + 1)

    async def _large_content(self, clone_url: str, pointers: Sequence[Pointer], prefix: str) -> Mapping[str, Path]:
        """Files in place of pointers; those that cannot be had are named."""
        if not pointers:
            return {}
        self._large_bytes += sum(each.size_bytes for each in pointers)
        if self._large_bytes > self.limits.max_bytes:
            raise TooLarge(
                f"The Git LFS content of the app is larger than {self.limits.max_bytes} bytes",
                todo=f"Take large files out of the repository{self.limits.or_raise('max_bytes')}.",
                code="archive_too_large",
            )
        self.work.note(f"fetching {len(pointers)} files of Git LFS")
        why = "the repository's LFS store does not have their content"
        found: Mapping[str, Path] = {}
        try:
            found = await self.large_files.bring(clone_url, pointers)
        except FinalError as error:
            why = error.message
        missing = [each for each in pointers if each.oid not in found]
        if missing:
            names = [prefix + each.name for each in missing]
            self._pointers += names
            self._notes.append(f"{named_pointers(names)}: {why}"[:1000])
        return {each.name: found[each.oid] for each in pointers if each.oid in found}

    async def _written(self, found: PackedTree | Submodule, draft: Path) -> NormalTar:
        only = self._parts[0]
        if len(self._parts) == 1 and not only.content and isinstance(found, PackedTree):
            await in_thread(lambda _: only.path.replace(draft))
            return found.tar
        return await in_thread(
            lambda stop: normalise_entries(_entries(self._parts, self.limits), draft, limits=self.limits, stop=stop)
        )

    async def clean(self) -> None:
        """Remove the shares of the repositories; the archive stays."""

        def remove() -> None:
            for path in self._drafts:
                path.unlink(missing_ok=True)

        await in_thread(lambda _: remove())


def named_pointers(names: Sequence[str]) -> str:
    """Return the beginning of a note about files that are LFS pointers."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    shown = ", ".join(shown_name(name) for name in names[:_MOST_NAMED])
    return f"these files are Git LFS pointers, without their content: {shown}{more}"


def unread_pointer(error: FinalError, packed: Packed) -> FinalError:
    """Return the error of the app's files, with the reason where a file in the root folder is a pointer."""
    names = [name for name in packed.pointers if "/" not in name]
    if not names:
        return error
    return RepositoryRefused(
        error.what,
        why=f"{error.why}; {named_pointers(names)}" if error.why else named_pointers(names),
        todo="Commit these files without Git LFS, or give knarr access to the repository's LFS store.",
        code="lfs_pointer",
    )


def _entries(parts: Sequence[_Part], limits: ArchiveLimits) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    for part in parts:
        for entry, content in read_tar(part.path, limits=limits):
            moved = replace(entry, name=checked_name(part.prefix + entry.name, limits))
            file = part.content.get(entry.name) if entry.kind == "file" else None
            if file is None:
                yield moved, content
                continue
            with ExitStack() as stack:
                opened = stack.enter_context(file.open("rb"))
                yield replace(moved, size=file.stat().st_size), iter(lambda read=opened.read: read(256 * 1024), b"")  # type: ignore[misc]
