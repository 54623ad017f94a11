"""`knarr`: every command with its family, its help, its examples."""

import sys
from importlib.metadata import version
from typing import Annotated

import structlog
import typer

from knarr.command import command, group
from knarr.commands import apps, config, deploy, running, sagas, webhook
from knarr.exit_codes import EXIT_CODES_HELP
from seedwork.leaving import leave

app = group(
    "A git push becomes a running app, or is undone.\n\n"
    "\b\nBegin here:\n"
    "  knarr up              start the platform on this machine\n"
    "  knarr deploy DIR      deploy a folder\n"
    "  knarr demo            see all of it\n\n"
    "\b\nData is on standard output, progress on standard error; --json makes the data JSON.\n"
    "Settings: KNARR_HOME, KNARR_HOST, KNARR_PORT_BASE, KNARR_TOKEN, NO_COLOR.\n\n"
    f"\b\nExit codes:\n  {EXIT_CODES_HELP.replace(chr(10), chr(10) + '  ')}"
)

command(app, "up", examples=["knarr up", "knarr up --home /srv/knarr --port-base 9700"])(running.up)
command(
    app,
    "deploy",
    examples=["knarr deploy", "knarr deploy examples/hello-python --app hello", "knarr deploy --app shop --ref main"],
)(deploy.deploy)
app.add_typer(apps.apps, name="apps")
command(app, "deployments", examples=["knarr deployments --app shop", "knarr deployments ID --json"])(
    deploy.deployments
)
command(app, "logs", examples=["knarr logs shop", "knarr logs shop --follow --lines 20"])(apps.logs)
command(app, "releases", examples=["knarr releases shop"])(deploy.releases)
command(app, "rollback", examples=["knarr rollback shop", "knarr rollback shop --to 3"])(deploy.rollback)
app.add_typer(config.config, name="config")
command(app, "scale", examples=["knarr scale shop web=2 worker=1"])(apps.scale)
command(app, "restart", examples=["knarr restart shop"])(apps.restart)
app.add_typer(apps.addons, name="addons")
command(app, "open", examples=["knarr open shop", "curl $(knarr open shop)"])(apps.open_app)
app.add_typer(sagas.sagas, name="sagas")
command(app, "dead-letters", examples=["knarr dead-letters", "knarr dead-letters --service builder --resend ID"])(
    sagas.dead_letters
)
app.add_typer(webhook.webhook, name="webhook")
app.add_typer(running.db, name="db")
app.add_typer(running.bus, name="bus")
command(app, "doctor", examples=["knarr doctor", "knarr doctor --json"])(running.doctor)
command(app, "demo", examples=["knarr demo", "make run"])(running.demo)


def _on_standard_error(*_name: str) -> structlog.PrintLogger:
    """What the libraries log while a command runs is progress, not data."""
    return structlog.PrintLogger(sys.stderr)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"knarr {version('knarr')}")
        raise typer.Exit


@app.callback()
def knarr(  # noqa: D103  its sentence would take the place of the help text
    _: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    structlog.configure(logger_factory=_on_standard_error)


def main() -> None:
    """The console script."""
    code: str | int | None = 0
    try:
        app(prog_name="knarr")
    except SystemExit as end:
        code = end.code
    leave(code)
