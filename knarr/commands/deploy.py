"""`knarr deploy` and what deployments leave: releases, and the way back to one."""

import re
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from knarr.command import AppName, LimitOption, OfApp, Session, TimeoutOption, WaitOption, command, group, usage
from knarr.commands.outcome import finish
from knarr.commands.sagas import show_saga, show_sagas
from knarr.completion import app_names
from knarr.terminal import escape, size
from seedwork.errors import NotFound

alone = group("Commands that stand alone.")

_NAME = re.compile(r"[^a-z0-9]+")


@command(
    alone,
    "deploy",
    examples=["knarr deploy", "knarr deploy examples/hello-python --app hello", "knarr deploy --app shop --ref main"],
)
def deploy(
    session: Session,
    *,
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="The folder of the app. [default: this one]", file_okay=False)
    ] = None,
    app: Annotated[
        str | None,
        typer.Option("--app", "-a", help="The app's name. [default: the folder's]", autocompletion=app_names),
    ] = None,
    ref: Annotated[
        str | None, typer.Option("--ref", help="Not a folder: the tip of this branch or tag of its repository.")
    ] = None,
    commit: Annotated[str | None, typer.Option("--commit", help="Not a folder: this commit of its repository.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also where it is older than what is live.")] = False,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Deploy a folder, or a commit of the app's repository, and show how it goes.

    The folder needs no Git host and no repository; where it is one, what git ignores stays out. The app is made if
    it does not exist. Ctrl-C stops watching, not the deployment.
    """
    if ref or commit:
        if folder is not None or app is None:
            raise usage("--ref and --commit deploy an app's repository", todo="Name the app with --app, and no folder.")
        body = {"commit": commit} if commit else {"ref": ref}
        started = session.platform.post("webhook", f"/apps/{app}/deployments", {**body, "force": force})
    else:
        folder = (folder or Path()).resolve()
        started = upload(session, app or name_of(folder), folder)
        app = app or name_of(folder)
    if started.get("saga_id") is None:
        session.terminal.data(started, "Nothing to do.")
        return
    finish(session, started["saga_id"], wait=wait, timeout_s=timeout, app=app)


def upload(session: Session, app: str, folder: Path) -> Any:
    """Pack a folder, make the app where there is none, and send it: `{id, saga_id}`.

    A folder that cannot be packed leaves nothing behind.
    """
    from knarr.pack import Limits, pack

    with tempfile.TemporaryFile() as archive:
        packed = pack(folder, archive, Limits(**limits_of(session)))
        ensure_app(session, app)
        length = archive.tell()
        archive.seek(0)
        sizes = f"{packed.files} files, {size(packed.size_bytes)}, {size(length)} packed"
        session.terminal.say(f"[name]{app}[/] from {escape(str(folder))}  [quiet]{sizes}[/]")
        for line in packed.left_out:
            session.terminal.say(f"[quiet]  left out: {escape(line)}[/]")
        return session.platform.request(
            "POST",
            "webhook",
            f"/apps/{app}/deployments",
            content=iter(lambda: archive.read(1 << 18), b""),
            headers={"Content-Type": "application/gzip", "Content-Length": str(length)},
            timeout=600,
        )


def limits_of(session: Session) -> dict[str, int]:
    """What the platform takes; an older one does not say, and then the defaults count."""
    try:
        found: dict[str, int] = session.platform.get("webhook", "/limits")
    except NotFound:
        return {}
    return found


def ensure_app(session: Session, app: str) -> None:
    """Make the app where there is none."""
    try:
        session.platform.get("webhook", f"/apps/{app}")
    except NotFound:
        session.platform.post("webhook", "/apps", {"name": app})
        session.terminal.say(f"[quiet]New app[/] [name]{app}[/]")


def name_of(folder: Path) -> str:
    """The folder's name as an app's name: lower case, digits, hyphens.

    Raises:
        InvalidInput: Nothing of it can be used.
    """
    name = _NAME.sub("-", folder.name.lower()).strip("-")[:40].rstrip("-")
    if not name or not name[0].isalpha():
        raise usage(f"The folder's name {folder.name!r} makes no app name", todo="Name the app: --app NAME")
    return name


@command(
    alone,
    "deployments",
    examples=["knarr deployments --app shop", "knarr deployments ID --json", "knarr deployments ID --follow"],
)
def deployments(
    session: Session,
    saga_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="One deployment.", show_default=False)] = None,
    *,
    app: OfApp = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="With an ID: show its steps until it ends. Ctrl-C stops watching.")
    ] = False,
    limit: LimitOption = 20,
) -> None:
    """Deployments, newest first; with an ID, that one and its steps."""
    if follow:
        if not saga_id:
            raise usage("--follow needs the ID of a deployment", todo="Run `knarr deployments` to list them")
        found = session.platform.get("saga_coordinator", f"/sagas/{saga_id}")
        name = found["app"] if found["saga"] != "remove" else None
        finish(session, saga_id, wait=True, timeout_s=None, app=name, done=None if name else "It is done.")
    elif saga_id:
        show_saga(session, saga_id)
    else:
        show_sagas(session, limit=limit, app=app)


@command(alone, "rollback", examples=["knarr rollback shop", "knarr rollback shop --to 3"])
def rollback(
    session: Session,
    app: AppName,
    to: Annotated[
        int | None, typer.Option("--to", min=1, help="The release's number. [default: the one before]")
    ] = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Bring an earlier release back, with its image and its config, as a new release."""
    target = to if to is not None else _release_before(session, app)
    started = session.platform.post("deployer", f"/apps/{app}/releases", {"rollback_to": target})
    session.terminal.say(f"[quiet]Pushes are held and not deployed until you release them: knarr apps release {app}[/]")
    finish(session, started["saga_id"], wait=wait, timeout_s=timeout, app=app)


def _release_before(session: Session, app: str) -> int:
    live = session.platform.get("deployer", f"/apps/{app}").get("release")
    found = session.platform.pages("deployer", f"/apps/{app}/releases", limit=200)
    earlier = [
        each["number"]
        for each in found
        if live and each["number"] < live and each["state"].lower() not in {"undone", "failed"}
    ]
    if not earlier:
        raise NotFound(f"{app} has no release to go back to", todo=f"Run `knarr releases {app}` to list the releases")
    return int(max(earlier))
