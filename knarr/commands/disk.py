"""`knarr disk`: what the platform keeps on disks, engines and registries, and freeing what nothing needs."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from knarr.command import Session, command, group, usage
from knarr.terminal import size, table
from seedwork.errors import KnarrError

SERVICES = ("source", "builder", "registry", "deployer")
"""Those that keep more than a database; the order is that in which a reclaim makes sense: the registry's garbage is
known after the builder has deleted what it had staged.
"""
_RECLAIM_S = 2400.0

alone = group("Commands that stand alone.")


@command(alone, "disk", examples=["knarr disk", "knarr disk --reclaim", "knarr disk --reclaim --caches"])
def disk(
    session: Session,
    *,
    reclaim: Annotated[bool, typer.Option("--reclaim", help="Free now what nothing needs.")] = False,
    caches: Annotated[
        bool, typer.Option("--caches", help="With --reclaim: empty build caches too; the next builds take longer.")
    ] = False,
) -> None:
    """Show what the platform keeps on disks, engines and registries, or free what of it nothing needs."""
    if caches and not reclaim:
        raise usage("--caches goes with --reclaim", todo="Run `knarr disk --reclaim --caches`.")
    if reclaim:
        _reclaim(session, caches=caches)
    else:
        _show(session)


def _show(session: Session) -> None:
    found = _asked(session, "GET", "/disk")
    rows = [
        (
            each["what"],
            size(each["size_bytes"]),
            size(each["reclaimable_bytes"]),
            size(each["limit_bytes"]),
            each["place"],
            each["note"],
        )
        for each in found
    ]
    columns = ("WHAT", "SIZE", "RECLAIMABLE", "LIMIT", "WHERE", "NOTE")
    session.terminal.data(found, table(columns, rows, empty="Nothing is kept."))


def _reclaim(session: Session, *, caches: bool) -> None:
    found = _asked(session, "POST", "/disk/reclaim", json={"caches": caches}, timeout=_RECLAIM_S)
    rows = [(each["what"], size(each["freed_bytes"]), each["place"], each["note"]) for each in found]
    session.terminal.data(found, table(("WHAT", "FREED", "WHERE", "NOTE"), rows, empty="There was nothing to free."))


def _asked(session: Session, method: str, path: str, **options: Any) -> Sequence[dict[str, Any]]:
    """Return the items of all services; one that does not answer is an item with a note.

    Raises:
        KnarrError: None of them answers.
    """
    found: list[dict[str, Any]] = []
    faults: list[KnarrError] = []
    for service in SERVICES:
        try:
            found += session.platform.request(method, service, path, **options)["items"]
        except KnarrError as error:
            faults.append(error)
            silent = {"what": f"files of {service}", "place": service, "note": error.message}
            found.append(
                {**silent, "size_bytes": None, "reclaimable_bytes": None, "limit_bytes": None, "freed_bytes": 0}
            )
    if len(faults) == len(SERVICES):
        raise faults[0]
    return found
