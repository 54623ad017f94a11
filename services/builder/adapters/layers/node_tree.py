"""Installed packages on disk: `node_modules` folders of an app and its workspaces, moved as one. Blocking.

A layer mirrors the app's folder (`/layers/node/packages/a/node_modules` for `/app/packages/a/node_modules`), so that
links between packages go on leading where they led. Links to folders of the app (workspaces, `file:`) are written anew.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

MODULES = "node_modules"
_KEPT_DOT_FOLDERS = frozenset({".prisma"})
"""Generated code in `node_modules`. Every other new folder with a dot is a cache of a tool."""
_STATE = (".modules.yaml", ".pnpm-workspace-state.json", ".pnpm-workspace-state-v1.json")
"""Files of pnpm with times and paths of this build; nothing reads them when the app runs."""

Snapshot = Mapping[str, tuple[int, int]]
"""Change time in ns and size in bytes by path."""


def module_folders(app: Path) -> list[Path]:
    """Return the `node_modules` folders of an app, relative to it, outermost only; links are not followed."""
    found: list[Path] = []
    for place, folders, _ in os.walk(app):
        if MODULES in folders:
            path = Path(place, MODULES)
            if not path.is_symlink():
                found.append(path.relative_to(app))
            folders.remove(MODULES)
        if ".git" in folders:
            folders.remove(".git")
    return sorted(found)


def remove(path: Path) -> None:
    """Remove a link, a file or a folder, if it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def rename(source: Path, target: Path, folders: Iterable[Path]) -> None:
    """Move these folders from one root to another of the same form; relative links stay as they are."""
    for folder in folders:
        (target / folder).parent.mkdir(parents=True, exist_ok=True)
        (source / folder).rename(target / folder)


def move(source: Path, target: Path, folders: Iterable[Path], *, app: Path) -> None:
    """Move these folders from one root to another; links out of them into the app lead to `app`, relatively.

    Args:
        source: Where they are: the app's folder, or a root that mirrors it.
        target: Where they come to.
        folders: Relative paths of `node_modules` folders.
        app: The app's folder, to which links out of the packages lead.
    """
    moved = list(folders)
    rename(source, target, moved)
    for folder in moved:
        for link in _links(target / folder):
            _lead_anew(link, source, target, moved, app)


def _links(folder: Path) -> Iterable[Path]:
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(place, name)  # noqa: PTH118 - a tree has 100,000 names
            if os.path.islink(path):  # noqa: PTH114 - likewise
                yield Path(path)


def _lead_anew(link: Path, source: Path, target: Path, moved: list[Path], app: Path) -> None:
    text = str(link.readlink())
    was_at = source / link.relative_to(target)
    led_to = Path(os.path.normpath(was_at.parent / text))
    if led_to.is_relative_to(source):
        inside = led_to.relative_to(source)
    elif led_to.is_relative_to(app):
        inside = led_to.relative_to(app)
    else:
        return
    within = any(inside.is_relative_to(folder) for folder in moved)
    if within and not Path(text).is_absolute():
        return
    leads_to = (target if within else app) / inside
    link.unlink()
    link.symlink_to(os.path.relpath(leads_to, link.parent))


def link(app: Path, layer: Path, folders: Iterable[Path]) -> None:
    """Let the app's `node_modules` be relative links into the layer's folder.

    A folder with links into the app (workspaces, `file:`) becomes a real one with a link for each package: a layer is
    shared by releases, and cannot lead back into one of them.
    """
    for folder in folders:
        remove(app / folder)
        (app / folder).parent.mkdir(parents=True, exist_ok=True)
        _link_folder(app / folder, layer / folder, os.path.realpath(layer))


def _link_folder(place: Path, packages: Path, layer: str) -> None:
    entries = sorted(packages.iterdir()) if packages.is_dir() else []
    scoped = [each for each in entries if each.name.startswith("@") and each.is_dir() and not each.is_symlink()]
    outward = {
        each for each in (*entries, *(one for scope in scoped for one in scope.iterdir())) if _is_out(each, layer)
    }
    if not outward:
        place.symlink_to(os.path.relpath(packages, place.parent))
        return
    place.mkdir()
    for each in entries:
        leads_to = Path(os.path.realpath(each)) if each in outward else each
        if each in scoped and not outward.isdisjoint(each.iterdir()):
            _link_folder(place / each.name, each, layer)
        else:
            (place / each.name).symlink_to(os.path.relpath(leads_to, os.path.realpath(place)))


def _is_out(path: Path, layer: str) -> bool:
    return path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(layer)


def copy(source: Path, target: Path, folders: Iterable[Path]) -> None:
    """Copy these folders by hard links; the tools' own files at their top are copied, since tools rewrite them."""
    for folder in folders:
        shutil.copytree(source / folder, target / folder, symlinks=True, copy_function=os.link)
        for path in (target / folder).iterdir():
            if path.is_file() and not path.is_symlink():
                path.unlink()
                shutil.copy2(source / folder / path.name, path)


def drop_state(root: Path, folders: Iterable[Path]) -> None:
    """Remove files that differ between two installations of the same packages."""
    for folder in folders:
        for name in _STATE:
            (root / folder / name).unlink(missing_ok=True)


def snapshot(root: Path, folders: Iterable[Path]) -> Snapshot:
    """Return what the files of these folders are now, folders themselves not counted."""
    found: dict[str, tuple[int, int]] = {}
    for folder in folders:
        _scan(str(root / folder), str(folder), found)
    return found


def _scan(place: str, shown: str, found: dict[str, tuple[int, int]]) -> None:
    with os.scandir(place) as entries:
        for entry in entries:
            name = f"{shown}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                _scan(entry.path, name, found)
            else:
                status = entry.stat(follow_symlinks=False)
                found[name] = (status.st_ctime_ns, status.st_size)


def changes(before: Snapshot, after: Snapshot) -> tuple[list[str], list[str]]:
    """Return the paths that are new, and those that were changed or removed."""
    return sorted(after.keys() - before.keys()), sorted(
        path for path, status in before.items() if after.get(path) != status
    )


def belongs_to_app(path: str) -> bool:
    """Whether a file that a build wrote into `node_modules` is part of the app, and no tool's cache."""
    inside = path.rpartition(f"{MODULES}/")[2] if MODULES in path else path
    first = inside.partition("/")[0]
    return not first.startswith(".") or first in _KEPT_DOT_FOLDERS


def restore(root: Path, new: Iterable[str]) -> None:
    """Remove what a build wrote into a tree."""
    for path in new:
        (root / path).unlink(missing_ok=True)
