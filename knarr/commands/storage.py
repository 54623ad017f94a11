"""`knarr storage …`: folders of an app that outlive its releases."""

import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from knarr.command import AppName, Session, TimeoutOption, WaitOption, command, group, usage
from knarr.commands.outcome import finish
from knarr.terminal import escape, size, state, styled, table
from seedwork.errors import NotFound

storage = group("Folders of an app that outlive its releases.")

_SIZE = re.compile(r"(\d{1,12})\s*([KMGT]?)(i?B)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

VolumeName = Annotated[str, typer.Argument(metavar="NAME", help="The name of the volume.", show_default=False)]


@command(storage, "list", examples=["knarr storage list", "knarr storage list shop"])
def list_volumes(
    session: Session,
    app: Annotated[str | None, typer.Argument(metavar="[APP]", help="Only of this app.", show_default=False)] = None,
) -> None:
    """Volumes with their size and the bytes in them; without APP also those of apps that were removed."""
    path = f"/apps/{app}/storage" if app else "/storage"
    found = session.platform.get("deployer", path)["items"]
    rows = [
        (
            styled(each["app"], "name"),
            each["name"],
            each["path"],
            f"{size(each['used_bytes'])} of {size(each['size_bytes'])}",
            each["variable"],
            state("app removed" if each["orphan"] else each["state"]),
        )
        for each in found
    ]
    columns = ("APP", "NAME", "PATH", "USED", "VARIABLE", "STATE")
    empty = f"{app} has no storage. Add some: knarr storage add {app}" if app else "There is no storage."
    session.terminal.data(found, table(columns, rows, empty=empty))


@command(storage, "add", examples=["knarr storage add shop", "knarr storage add shop --path /app/uploads --size 5G"])
def add_volume(
    session: Session,
    app: AppName,
    *,
    path: Annotated[str, typer.Option("--path", help="Where the app finds it in a container.")] = "/data",
    wanted: Annotated[str, typer.Option("--size", help="Such as 500M or 5G.")] = "1G",
    name: Annotated[str | None, typer.Option("--name", help="[default: the last part of the path]")] = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Give an app a folder that stays. Running instances are replaced by ones that have it."""
    body = {"path": path, "name": name, "size_bytes": _bytes(wanted)}
    made = session.platform.post("deployer", f"/apps/{app}/storage", body)
    said = f"{app} has the volume {made['name']}; its path is in {made['variable']}."
    _finish(session, made, said, app=app, wait=wait, timeout=timeout)


@command(storage, "remove", examples=["knarr storage remove shop data --confirm data"])
def remove_volume(
    session: Session,
    app: AppName,
    name: VolumeName,
    *,
    confirm: Annotated[str, typer.Option("--confirm", help="The name once more: the content is deleted.")] = "",
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Delete a volume with its content. This cannot be undone. Works for an app that was removed, too."""
    known = _volume(session, app, name)
    if confirm != name:
        raise usage(
            f"The content of {name} would be deleted",
            todo=f"Confirm it: `knarr storage remove {app} {name} --confirm {name}`",
        )
    answer = session.platform.delete("deployer", f"/storage/{known['app_id']}/{name}", confirm=confirm)
    _finish(session, answer, f"The volume {name} of {app} is deleted.", app=app, wait=wait, timeout=timeout)


@command(
    storage,
    "export",
    examples=["knarr storage export shop data backup.tar", "knarr storage export shop data - | gzip > b.gz"],
)
def export_volume(
    session: Session,
    app: AppName,
    name: VolumeName,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A new tar file; `-`: standard output.", show_default=False)
    ],
) -> None:
    """Write the content of a volume to a tar archive. Stop the app first if its files must agree with each other."""
    path = f"/apps/{app}/storage/{name}/content"
    if file == "-":
        _download(session, path, sys.stdout.buffer)
        return
    target = Path(file)
    if target.exists():
        raise usage(f"{file} exists", todo="Name a new file.")
    draft = target.with_name(f".{target.name}.part")
    try:
        with draft.open("xb") as out:
            count = _download(session, path, out)
        draft.rename(target)
    finally:
        draft.unlink(missing_ok=True)
    session.terminal.data({"file": file, "size_bytes": count}, styled(f"{file}: {size(count)}"))


@command(storage, "import", examples=["knarr storage import shop data backup.tar --confirm data"])
def import_volume(
    session: Session,
    app: AppName,
    name: VolumeName,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A tar file; `-`: standard input.", show_default=False)],
    confirm: Annotated[str, typer.Option("--confirm", help="The name once more: the content is replaced.")] = "",
) -> None:
    """Replace the content of a volume by that of a tar archive. The app must be stopped."""
    if confirm != name:
        raise usage(
            f"The content of {name} would be replaced",
            todo=f"Confirm it: `knarr storage import {app} {name} {file} --confirm {name}`",
        )
    if file == "-":
        with tempfile.TemporaryFile() as spooled:
            shutil.copyfileobj(sys.stdin.buffer, spooled)
            _upload(session, app, name, spooled)
    else:
        if not Path(file).is_file():
            raise NotFound(
                f"There is no file {escape(file)}",
                todo="Name a tar file that `knarr storage export APP NAME FILE` wrote.",
            )
        with Path(file).open("rb") as source:
            _upload(session, app, name, source)
    session.terminal.data({"imported": name}, styled(f"The volume {name} of {app} has the content of {file}."))


def _volume(session: Session, app: str, name: str) -> dict[str, Any]:
    """The volume, also of an app that was removed."""
    for each in session.platform.get("deployer", "/storage")["items"]:
        if each["app"] == app and each["name"] == name:
            found: dict[str, Any] = each
            return found
    raise NotFound(f"{app} has no volume {name!r}", todo="List all volumes: `knarr storage list`")


def _finish(
    session: Session, answer: dict[str, Any], said: str, *, app: str, wait: bool, timeout: float | None
) -> None:
    if answer.get("saga_id"):
        finish(session, answer["saga_id"], wait=wait, timeout_s=timeout, app=app, done=said)
    else:
        session.terminal.data(answer, styled(said))


def _download(session: Session, path: str, out: BinaryIO) -> int:
    count = 0
    with session.platform.stream("deployer", path) as answer:
        for piece in answer.iter_bytes():
            out.write(piece)
            count += len(piece)
    return count


def _upload(session: Session, app: str, name: str, source: BinaryIO) -> None:
    length = source.seek(0, 2)
    source.seek(0)
    session.platform.request(
        "PUT",
        "deployer",
        f"/apps/{app}/storage/{name}/content",
        content=iter(lambda: source.read(1 << 18), b""),
        headers={"Content-Type": "application/x-tar", "Content-Length": str(length)},
        timeout=3600,
    )


def _bytes(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise usage(f"{text!r} is not a size", todo="Write a number and a unit, such as 500M or 5G.")
    return int(found[1]) * int(1024 ** _UNITS[found[2].upper()])
