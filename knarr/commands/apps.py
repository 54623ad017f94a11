"""`knarr apps …`, `knarr open` and add-ons."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from knarr.command import (
    AppName,
    LimitOption,
    OptionalAppName,
    Session,
    TimeoutOption,
    WaitOption,
    command,
    confirm,
    group,
    usage,
)
from knarr.commands.outcome import finish, running_of, running_of_all
from knarr.status import command_for, crashes_of, hold_of, notes_of, polling_of, style_of, until, words_of
from knarr.terminal import age, escape, facts, short, styled, table
from seedwork.errors import NotFound

apps = group("What is deployed, and from where.")
addons = group("Databases and caches that an app asked for.")
alone = group("Commands that stand alone.")

RepositoryOption = Annotated[
    str | None, typer.Option("--repository", metavar="OWNER/NAME", help="As the Git host names it.")
]
CloneUrlOption = Annotated[
    str | None, typer.Option("--clone-url", metavar="URL", help="Where to fetch from. [default: the one on github.com]")
]
RefOption = Annotated[str | None, typer.Option("--ref", help="The branch whose pushes are deployed.")]
RootOption = Annotated[str | None, typer.Option("--root", help="The folder of the app inside the repository.")]
BuilderOption = Annotated[
    str | None, typer.Option("--builder", help="layers, buildx or buildpacks; '' for the platform's.")
]
DockerfileOption = Annotated[
    str | None, typer.Option("--dockerfile", metavar="PATH", help="Path inside the root; '' for what is detected.")
]
DockerTargetOption = Annotated[
    str | None, typer.Option("--docker-target", metavar="STAGE", help="Stage of the Dockerfile; '' for the last one.")
]
DockerArgOption = Annotated[
    list[str] | None,
    typer.Option("--docker-arg", metavar="VAR", help="Config var that is a build argument; '' for none; repeatable."),
]
WatchOption = Annotated[
    list[str] | None,
    typer.Option("--watch", metavar="PATTERN", help="Files outside the root that count; '' for none; repeatable."),
]
ObserveOption = Annotated[
    float | None, typer.Option("--observe-s", metavar="SECONDS", help="Length of the step observe; 0: off.")
]


@command(apps, "list", examples=["knarr apps list", "knarr apps list --json"])
def list_apps(session: Session, limit: LimitOption = 200) -> None:
    """Every app: its state, its address, and what is wrong with it."""
    found = session.platform.pages("webhook", "/apps", limit=limit)
    running = running_of_all(session, [app["name"] for app in found])
    rows = [_row(known, one) for known, one in zip(found, running, strict=True)]
    session.terminal.data(
        [{**known, "running": one or None} for known, one in zip(found, running, strict=True)],
        table(
            ("APP", "STATE", "ADDRESS", "RELEASE", "COMMIT", "REPOSITORY", "NOTE"),
            rows,
            empty="There are no apps yet. Deploy a folder: `knarr deploy DIR`",
        ),
    )


def _row(known: Mapping[str, Any], running: Mapping[str, Any]) -> tuple[object, ...]:
    notes = [crashes_of(running), *notes_of(known)]
    todo = command_for(known["name"], running)
    return (
        styled(known["name"], "name"),
        styled(words_of(running), style_of(running)),
        running.get("url"),
        running.get("release"),
        short(running.get("commit")),
        known.get("repository"),
        "; ".join(note for note in (*notes, f"`{todo}`" if todo else None) if note) or None,
    )


@command(
    apps,
    "create",
    examples=[
        "knarr apps create shop --repository acme/shop",
        "knarr apps create shop-api --repository acme/shop --root api --ref release",
        "knarr apps create shop-api --repository acme/shop --root api --watch 'libs/**' --watch package.json",
        "knarr apps create notes          # no repository: deployed with `knarr deploy DIR --app notes`",
    ],
)
def create(
    session: Session,
    app: AppName,
    *,
    repository: RepositoryOption = None,
    clone_url: CloneUrlOption = None,
    ref: RefOption = None,
    root: RootOption = None,
    builder: BuilderOption = None,
    dockerfile: DockerfileOption = None,
    docker_target: DockerTargetOption = None,
    docker_arg: DockerArgOption = None,
    watch: WatchOption = None,
    observe_s: ObserveOption = None,
    webhook_secret: Annotated[
        str | None,
        typer.Option("--webhook-secret", envvar="KNARR_WEBHOOK_SECRET", help="[default: a new one, shown once]"),
    ] = None,
) -> None:
    """Make an app known. The webhook secret is shown now and never again.

    Without --ref the app follows the default branch of its repository.
    """
    if repository and not clone_url:
        clone_url = f"https://github.com/{repository}.git"
    body = _present(
        name=app,
        repository=repository,
        clone_url=clone_url,
        ref=full_ref(ref),
        root=root,
        webhook_secret=webhook_secret,
        observe_s=observe_s,
        **_settings(builder, dockerfile, docker_target, docker_arg, watch),
    )
    made = session.platform.post("webhook", "/apps", body)
    session.terminal.data(
        made,
        facts(
            {
                "app": made["name"],
                "repository": made.get("repository"),
                "ref": made.get("ref") if clone_url else None,
                "webhook secret": made.get("webhook_secret"),
                "webhook address": session.platform.url("webhook", "/github-webhook") if repository else None,
            }
        ),
    )
    if made.get("note"):
        session.terminal.say(
            f"[undo]{escape(made['note'])}[/]\n[quiet]Another branch: knarr apps update {app} --ref BRANCH[/]"
        )
    if repository:
        session.terminal.say("[quiet]The secret is shown only now. Put both into the repository's webhook settings.[/]")


@command(apps, "show", examples=["knarr apps show shop", "knarr apps show shop --json"])
def show(session: Session, app: AppName) -> None:
    """One app: where it comes from, what runs, and what is wrong with it."""
    known = session.platform.get("webhook", f"/apps/{app}")
    running = running_of(session, app)
    todo = command_for(app, running)
    session.terminal.data(
        {**known, "running": running or None},
        facts(
            {
                "app": known["name"],
                "state": styled(words_of(running), style_of(running)),
                "reason": running.get("reason"),
                "crashes": crashes_of(running),
                "next": f"`{todo}`" if todo else None,
                "address": running.get("url"),
                "release": running.get("release"),
                "commit": running.get("commit"),
                "digest": running.get("digest"),
                "drift": [f"{each.get('what')}" for each in running.get("drifts") or ()],
                "observed until": running.get("observing_until"),
                "repository": known.get("repository"),
                "clone url": known.get("clone_url"),
                "ref": known.get("ref"),
                "root": known.get("root"),
                "polling": polling_of(known),
                "automatic deployment": hold_of(known),
                **{label: _shown(known.get(name)) for name, label in _LABELS.items()},
                "id": known["id"],
            }
        ),
    )
    if not session.terminal.as_json and running.get("instances"):
        columns = ("INSTANCE", "STATE", "RESTARTS", "NEXT START", "SINCE", "NOTE")
        rows = [
            (
                each["process"],
                each["state"],
                each["restarts"],
                until(each.get("next_start")),
                age(each["since"]),
                each["note"],
            )
            for each in running["instances"]
        ]
        session.terminal.out.print()
        session.terminal.data(None, table(columns, rows, empty=""))


@command(apps, "update", examples=["knarr apps update shop --ref main", "knarr apps update shop --root services/api"])
def update(
    session: Session,
    app: AppName,
    *,
    repository: RepositoryOption = None,
    clone_url: CloneUrlOption = None,
    ref: RefOption = None,
    root: RootOption = None,
    builder: BuilderOption = None,
    dockerfile: DockerfileOption = None,
    docker_target: DockerTargetOption = None,
    docker_arg: DockerArgOption = None,
    watch: WatchOption = None,
    observe_s: ObserveOption = None,
    webhook_secret: Annotated[str | None, typer.Option("--webhook-secret", envvar="KNARR_WEBHOOK_SECRET")] = None,
) -> None:
    """Change where an app comes from and how it is built. Counts from the next deployment on."""
    body = _present(
        repository=repository,
        clone_url=clone_url,
        ref=full_ref(ref),
        root=root,
        webhook_secret=webhook_secret,
        observe_s=observe_s,
    ) | _settings(builder, dockerfile, docker_target, docker_arg, watch)
    if not body:
        raise usage("Nothing to change", todo="Name at least one option: `knarr apps update --help` lists them.")
    changed = session.platform.patch("webhook", f"/apps/{app}", body)
    shown = {name: changed.get(name) for name in ("name", "repository", "clone_url", "ref", "root")}
    session.terminal.data(changed, facts({**shown, **{name: _shown(changed.get(name)) for name in _LABELS}}))


@command(apps, "hold", examples=["knarr apps hold shop", "knarr apps hold shop --why 'freeze until Monday'"])
def hold(
    session: Session, app: AppName, why: Annotated[str, typer.Option("--why", help="Shown with the app.")] = ""
) -> None:
    """Record pushes and deploy none of them, until the app is released. A rollback does the same."""
    held = session.platform.post("webhook", f"/apps/{app}/hold", {"why": why})
    session.terminal.data(held, f"Automatic deployment of {app} is held: knarr apps release {app} ends the hold.")


@command(apps, "release", examples=["knarr apps release shop"])
def release(session: Session, app: AppName) -> None:
    """Deploy pushes again. The next poll deploys the tip of the branch, where it was pushed during the hold."""
    released = session.platform.post("webhook", f"/apps/{app}/release")
    session.terminal.data(released, f"Pushes to {app} are deployed again.")
    if waiting := released.get("waiting_commit"):
        branch = released["ref"].removeprefix("refs/heads/")
        session.terminal.say(
            f"[quiet]{short(waiting)} was pushed during the hold. A poll deploys the tip of {escape(branch)};"
            f" to deploy it now: knarr deploy --app {app} --ref {escape(branch)}[/]"
        )


@command(apps, "rebase", examples=["knarr apps rebase shop", "knarr apps rebase --all"])
def rebase(
    session: Session,
    app: OptionalAppName = None,
    every: Annotated[bool, typer.Option("--all", help="Every app that buildpacks built, one after the other.")] = False,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Put an app that buildpacks built onto the builder's current run image, without its source."""
    from knarr.commands.rebasing import rebase_all, rebase_one

    if every == (app is not None):
        raise usage("Which app is not clear", todo="Run `knarr apps rebase APP` or `knarr apps rebase --all`")
    if app is not None:
        rebase_one(session, app, wait=wait, timeout_s=timeout)
    else:
        rebase_all(session, wait=wait, timeout_s=timeout)


@command(apps, "remove", examples=["knarr apps remove shop", "knarr apps remove shop --yes"])
def remove(
    session: Session,
    app: AppName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Stop an app and delete its releases, config and images. There is no undo."""
    if not yes:
        confirm(f"Remove {app} with its releases, config and images?", without=f"knarr apps remove {app} --yes")
    started = session.platform.delete("webhook", f"/apps/{app}")
    finish(session, started["saga_id"], wait=wait, timeout_s=timeout, done=f"{app} is removed.")


@command(alone, "open", examples=["knarr open shop", "curl $(knarr open shop)"])
def open_app(session: Session, app: AppName) -> None:
    """Print the app's address, and open it in a browser where there is one."""
    running = session.platform.get("deployer", f"/apps/{app}")
    url = running.get("url")
    if not url:
        todo = command_for(app, running) or f"knarr deploy DIR --app {app}"
        raise NotFound(
            f"{app} has no address",
            why=running.get("reason") or "no web process runs",
            todo=f"Run `{todo}`",
        )
    session.terminal.data({"url": url}, styled(url, "address"))
    if session.terminal.out.is_terminal and not session.terminal.as_json:
        import webbrowser

        webbrowser.open(url)


@command(addons, "list", examples=["knarr addons list shop"])
def list_addons(session: Session, app: AppName) -> None:
    """The add-ons of an app."""
    answer = session.platform.get("deployer", f"/apps/{app}/addons")
    found = answer["items"] if isinstance(answer, dict) and "items" in answer else answer
    rows = [(each.get("name"), each.get("kind"), each.get("version"), each.get("state")) for each in found]
    session.terminal.data(found, table(("NAME", "KIND", "VERSION", "STATE"), rows, empty=f"{app} has no add-ons."))


@command(addons, "remove", examples=["knarr addons remove shop mongodb --confirm mongodb"])
def remove_addon(
    session: Session,
    app: AppName,
    name: Annotated[str, typer.Argument(metavar="ADDON", show_default=False)],
    confirm: Annotated[str, typer.Option("--confirm", help="The add-on's name once more: its data is deleted.")] = "",
) -> None:
    """Delete an add-on with its data. There is no undo."""
    if confirm != name:
        raise usage(
            f"The data of {name} would be deleted", todo=f"Run `knarr addons remove {app} {name} --confirm {name}`"
        )
    answer = session.platform.delete("deployer", f"/apps/{app}/addons/{name}", confirm=confirm)
    session.terminal.data(answer or {"removed": name}, f"{name} is deleted.")


def full_ref(ref: str | None) -> str | None:
    """`main` as `refs/heads/main`."""
    return ref if ref is None or ref.startswith("refs/") else f"refs/heads/{ref}"


_LABELS = {
    "builder": "builder",
    "dockerfile": "Dockerfile",
    "docker_target": "Docker target",
    "docker_args": "Docker args",
    "watch": "watch",
    "observe_s": "observe",
}
"""Settings of an app by their name in the API, and what people read."""


def _settings(
    builder: str | None,
    dockerfile: str | None,
    docker_target: str | None,
    docker_args: list[str] | None,
    watch: list[str] | None,
) -> dict[str, Any]:
    """The build settings that were given; an empty one sets the default."""
    texts = {"builder": builder, "dockerfile": dockerfile, "docker_target": docker_target}
    lists = {"docker_args": docker_args, "watch": watch}
    return {name: value or None for name, value in texts.items() if value is not None} | {
        name: [each for each in values if each] or None for name, values in lists.items() if values
    }


def _shown(value: Any) -> str | None:
    """A setting as text; None: it is the default."""
    if value is None or value in ([], ()):
        return None
    return " ".join(value) if isinstance(value, list) else str(value)


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
