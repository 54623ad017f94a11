"""`knarr`: every command with its family and its sentence. A command is imported when it is called."""

from typing import Annotated

import typer

from knarr.command import group
from knarr.exit_codes import EXIT_CODES_HELP
from knarr.lazy import Entry, lazy_group

COMMANDS = {
    "up": Entry("running", "alone", "Start the platform: six services in this process. Ctrl-C stops it."),
    "deploy": Entry("deploy", "alone", "Deploy a folder, or a commit of the app's repository, and show how it goes."),
    "plan": Entry(
        "plan", "alone", "Show how a folder would be built and run, or every reason why not. Nothing is deployed."
    ),
    "apps": Entry("apps", "apps", "What is deployed, and from where."),
    "ps": Entry("processes", "alone", "The instances of an app, or of all apps: state, restarts, next start."),
    "logs": Entry("logs", "alone", "What the app's instances print. With --json, one JSON object a line."),
    "run": Entry(
        "processes", "alone", "Run one command in the environment of the app's release; its exit code is passed on."
    ),
    "deployments": Entry("deploy", "alone", "Deployments, newest first; with an ID, that one and its steps."),
    "releases": Entry("releases", "releases", "What ran, newest first, and what it is made of."),
    "rollback": Entry(
        "deploy", "alone", "Bring an earlier release back, with its image and its config, as a new release."
    ),
    "config": Entry("config", "config", "Config vars, secrets included."),
    "scale": Entry("processes", "alone", "Run more or fewer instances of a process."),
    "restart": Entry(
        "processes", "alone", "Start the running release again: new instances first, then the old ones stop."
    ),
    "stop": Entry("processes", "alone", "Stop all instances of an app. Its releases, config and address stay."),
    "start": Entry("processes", "alone", "Start a stopped app with the instances that it had."),
    "addons": Entry("apps", "addons", "Databases and caches that an app asked for."),
    "storage": Entry("storage", "storage", "Folders of an app that outlive its releases."),
    "open": Entry("apps", "alone", "Print the app's address, and open it in a browser where there is one."),
    "sagas": Entry("sagas", "sagas", "The record of every deployment, and its verbs."),
    "tokens": Entry("tokens", "tokens", "Tokens: who may do what, for which teams, until when."),
    "dead-letters": Entry("sagas", "alone", "Messages that a service could not use."),
    "webhook": Entry("webhook", "webhook", "What GitHub sends, sent from here."),
    "db": Entry("running", "db", "The services' databases."),
    "bus": Entry("running", "bus", "The bus between the services."),
    "disk": Entry(
        "disk",
        "alone",
        "Show what the platform keeps on disks, engines and registries, or free what of it nothing needs.",
    ),
    "doctor": Entry("running", "alone", "Look at everything that knarr needs; whatever is wrong comes with a fix."),
    "demo": Entry(
        "running", "alone", "Start the platform and show a push going through it, and one that is undone. Ctrl-C stops."
    ),
}

app = group(
    "A git push becomes a running app, or is undone.\n\n"
    "\b\nBegin here:\n"
    "  knarr up              start the platform on this machine\n"
    "  knarr deploy DIR      deploy a folder\n"
    "  knarr demo            see all of it\n\n"
    "\b\nData is on standard output, progress on standard error; --json makes the data JSON.\n"
    "Settings: KNARR_HOME, KNARR_HOST, KNARR_PORT_BASE, KNARR_TOKEN, NO_COLOR.\n\n"
    f"\b\nExit codes:\n  {EXIT_CODES_HELP.replace(chr(10), chr(10) + '  ')}",
    cls=lazy_group(COMMANDS),
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"knarr {version('knarr')}")
        raise typer.Exit


@app.callback()
def knarr(  # noqa: D103  its sentence would take the place of the help text
    _: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script."""
    from seedwork.leaving import leave

    code: str | int | None = 0
    try:
        app(prog_name="knarr")
    except SystemExit as end:
        code = end.code
    leave(code)
