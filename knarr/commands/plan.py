"""`knarr plan`: what knarr detects in a folder, without deploying it and without a running platform."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from knarr.command import Session, command, group, usage
from knarr.exit_codes import Exit
from knarr.terminal import styled, visible

BUILDERS = ("layers", "buildx", "buildpacks")

alone = group("Commands that stand alone.")


@command(
    alone, "plan", examples=["knarr plan", "knarr plan examples/hello-python", "knarr plan --builder buildx --json"]
)
def plan(
    session: Session,
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="The folder of the app. [default: this one]", file_okay=False)
    ] = None,
    builder: Annotated[
        str | None,
        typer.Option("--builder", help="layers, buildx or buildpacks. [default: KNARR_BUILDER, else as `knarr up`]"),
    ] = None,
) -> None:
    """Show how a folder would be built and run, or every reason why not. Nothing is deployed."""
    from services.source.errors import AppInvalid

    used = builder or os.environ.get("KNARR_BUILDER") or _of_home(session)
    if used not in BUILDERS:
        raise usage(f"There is no builder {used!r}", todo=f"Known are {', '.join(BUILDERS)}.")
    try:
        found = _planned((folder or Path()).resolve(), used)
    except AppInvalid as error:
        _show_refusal(session, error)
        raise typer.Exit(Exit.FAULT) from error
    shown = {"builder": used, **found.model_dump(mode="json")}
    session.terminal.data(shown, styled("\n".join(visible(line) for line in _lines(found, used))))


def _of_home(session: Session) -> str:
    return "buildx" if session.home.remembered().get("runtime") == "docker" else "layers"


def _planned(folder: Path, builder: str) -> Any:
    from knarr.pack import names_in
    from seedwork.errors import NotFound
    from services.source.plan import Capabilities, plan, tree_of_folder

    if not folder.is_dir():
        raise NotFound(f"There is no folder {folder}", todo="Name the folder that holds your app.")
    return plan(tree_of_folder(folder, names_in(folder)), capabilities=Capabilities(builder))  # type: ignore[arg-type]  # a choice


def _show_refusal(session: Session, error: Any) -> None:
    reasons = list(error.reasons or (error.message,))
    shown = {"code": error.reason_code, "title": error.title, "detail": error.message, "reasons": reasons}
    lines = "\n".join(f"✗ {visible(reason)}" for reason in reasons)
    session.terminal.data({"error": shown}, styled(lines))


def _lines(found: Any, builder: str) -> list[str]:
    """The description for people: what, how it is built, what runs, what is passed over."""
    from services.source.plan.starts import shown

    kind = found.runtime.kind + (f" {found.runtime.version}" if found.runtime.version else "")
    lines = [
        f"{found.framework or kind} ({kind}), builder {builder}" if found.framework else f"{kind}, builder {builder}"
    ]
    lines += [f"  {line}" for line in found.detected]
    if found.output is not None:
        lines.append(f"  serves the files of {found.output}" + (f", else {found.fallback}" if found.fallback else ""))
    if found.release and not any(line.startswith("release:") for line in found.detected):
        lines.append(f"  release: {shown(found.release)}")
    lines += [f"  check of {name}: {_check(check)}" for name, checks in found.checks.items() for check in checks]
    lines += [f"  add-on {each.kind}{f' {each.version}' if each.version else ''}" for each in found.addons]
    lines += [f"  storage at {each.path}" for each in found.storage]
    lines += [f"  note: {line}" for line in found.notes]
    return lines


def _check(check: Any) -> str:
    if check.command:
        return f"{check.type}, runs {' '.join(check.command)}"
    return f"{check.type}, " + ("a connection" if check.listening else f"GET {check.path or '/'}")
