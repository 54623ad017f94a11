"""`knarr releases …`: what ran, and what it is made of."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from knarr.command import AppName, LimitOption, Session, command, group, usage
from knarr.completion import app_names
from knarr.terminal import age, short, size, state, table
from seedwork.errors import NotFound


class _ListByDefault(TyperGroup):
    """`knarr releases shop` means `knarr releases list shop`."""

    default = "list"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` before words that begin with no command."""
        if args and args[0] not in self.commands and args[0] not in {"-h", "--help"}:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete names of apps as well."""
        from typer._click.shell_completion import CompletionItem

        return [*super().shell_complete(ctx, incomplete), *map(CompletionItem, app_names(ctx, incomplete))]


releases = group("What ran, newest first, and what it is made of.", cls=_ListByDefault)


@command(releases, "list", examples=["knarr releases shop", "knarr releases list shop --limit 5"])
def list_releases(session: Session, app: AppName, limit: LimitOption = 20) -> None:
    """What ran, newest first. `list` can be left out, unless an app has the name of a command."""
    found = session.platform.pages("deployer", f"/apps/{app}/releases", limit=limit)
    rows = [
        (
            each["number"],
            each.get("kind"),
            state(each["state"]),
            short(each.get("commit")),
            short(each["digest"]),
            each.get("config_version"),
            each.get("formation") or {},
            age(each.get("created_at")),
        )
        for each in found
    ]
    columns = ("RELEASE", "KIND", "STATE", "COMMIT", "DIGEST", "CONFIG", "FORMATION", "AGE")
    session.terminal.data(found, table(columns, rows, empty=f"{app} has no releases yet."))


@command(
    releases,
    "sbom",
    examples=[
        "knarr releases sbom shop",
        "knarr releases sbom shop 7 --format cyclonedx | jq .components",
        "knarr releases sbom shop --format spdx --name heroku_python/venv",
    ],
)
def sbom(
    session: Session,
    app: AppName,
    number: Annotated[
        int | None, typer.Argument(metavar="[RELEASE]", min=1, help="[default: the current one]", show_default=False)
    ] = None,
    *,
    kind: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="cyclonedx, spdx or syft: write a document of this format."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Which document, where a format has more.")] = None,
) -> None:
    """The bill of materials (SBOM) of a release: its documents, or with --format one of them as it is."""
    if kind not in {None, "cyclonedx", "spdx", "syft"}:
        raise usage(f"{kind!r} is no format", todo="Write --format cyclonedx, spdx or syft.")
    if number is None:
        number = session.platform.get("deployer", f"/apps/{app}").get("release")
    if number is None:
        raise NotFound(f"{app} has no live release", todo=f"Run `knarr releases {app}` to list the releases")
    path = f"/apps/{app}/releases/{number}/sbom"
    if kind is None and name is None:
        found = session.platform.get("deployer", path)["items"]
        rows = [(each["name"], each["format"], size(each["size_bytes"])) for each in found]
        empty = f"Release {number} of {app} has no bill of materials."
        session.terminal.data(found, table(("NAME", "FORMAT", "SIZE"), rows, empty=empty))
        return
    with session.platform.stream("deployer", f"{path}/{kind or 'cyclonedx'}", name=name) as answer:
        for piece in answer.iter_bytes():
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
