"""`knarr sagas …`: what every deployment, release and removal is made of; and dead letters."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knarr.command import LimitOption, OfApp, ReasonOption, Session, command, group, usage
from knarr.commands.outcome import running_of_all
from knarr.status import crashes_of, style_of, words_of
from knarr.terminal import age, facts, short, state, styled, table

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

sagas = group("The record of every deployment, and its verbs.")
alone = group("Commands that stand alone.")

SagaId = Annotated[
    str, typer.Argument(metavar="ID", help="The saga's id, which is the deployment's.", show_default=False)
]


@command(
    sagas,
    "list",
    examples=["knarr sagas list --app shop", "knarr sagas list --state RUNNING", "knarr sagas list --needs-attention"],
)
def list_sagas(
    session: Session,
    *,
    app: OfApp = None,
    state_: Annotated[
        str | None, typer.Option("--state", help="QUEUED, RUNNING, COMPENSATING, PAUSED, STUCK …")
    ] = None,
    commit: Annotated[str | None, typer.Option("--commit", help="Only of this commit.")] = None,
    step: Annotated[str | None, typer.Option("--step", help="Only those that are at this step.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="RFC 3339.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="RFC 3339.")] = None,
    needs_attention: Annotated[
        bool, typer.Option("--needs-attention", help="Only those that wait for a person.")
    ] = False,
    limit: LimitOption = 20,
) -> None:
    """Sagas, newest first."""
    needs = "attention" if needs_attention else None
    show_sagas(
        session, limit=limit, app=app, state=state_, commit=commit, step=step, since=since, until=until, needs=needs
    )


@command(sagas, "show", examples=["knarr sagas show 0192f0c1-2345-7abc-8def-0123456789ab"])
def show(session: Session, saga_id: SagaId) -> None:
    """One saga: its state, its steps, what it waits for."""
    show_saga(session, saga_id)


@command(sagas, "log", examples=["knarr sagas log ID", "knarr sagas log ID --json | jq '.[].type'"])
def log(session: Session, saga_id: SagaId, limit: LimitOption = 1000) -> None:
    """Everything that happened to a saga, oldest first."""
    entries = session.platform.pages("saga_coordinator", f"/sagas/{saga_id}/log", limit=limit)
    arrows = {"in": "←", "out": "→", "timer": "⏱", "operator": "☞"}
    rows = [
        (
            each["seq"],
            each["at"],
            arrows.get(each["direction"], each["direction"]),
            each["type"],
            each.get("step"),
            each.get("attempt"),
            state(each["state"]),
            _gist(each.get("payload")),
        )
        for each in entries
    ]
    columns = ("#", "TIME", "", "TYPE", "STEP", "TRY", "STATE AFTER", "PAYLOAD")
    session.terminal.data(entries, table(columns, rows, empty="The log is empty."))


def _retry(
    session: Session,
    saga_id: SagaId,
    reason: ReasonOption = "",
    force: Annotated[bool, typer.Option("--force", help="Also where it is older than the current release.")] = False,
) -> None:
    """Go on at the step that failed; of an undone saga: a new one for the same commit."""
    _act(session, saga_id, "retry", reason=reason, force=force)


def _act(session: Session, saga_id: str, verb: str, **body: Any) -> None:
    saga = session.platform.post("saga_coordinator", f"/sagas/{saga_id}/{verb}", body)
    session.terminal.data(saga, facts({"saga": saga["id"], "state": state(saga["state"]), "app": saga["app"]}))


def _verb(name: str, what: str) -> None:
    def act(session: Session, saga_id: SagaId, reason: ReasonOption = "") -> None:
        _act(session, saga_id, name, reason=reason)

    act.__doc__ = what
    command(sagas, name, examples=[f'knarr sagas {name} ID --reason "why"'])(act)


def _register_verbs() -> None:
    command(sagas, "retry", examples=['knarr sagas retry ID --reason "why"', "knarr sagas retry ID --force"])(_retry)
    for name, what in VERBS.items():
        _verb(name, what)


VERBS = {
    "cancel": "Stop a saga and undo what it did.",
    "pause": "Stop before the next step; what runs is finished.",
    "resume": "Go on after a pause.",
    "skip": "Leave out the undo step that cannot succeed; what is left over is written down.",
    "compensate": "Undo a deployment that succeeded: what it replaced comes back.",
}


@command(alone, "dead-letters", examples=["knarr dead-letters", "knarr dead-letters --service builder --resend ID"])
def dead_letters(
    session: Session,
    service: Annotated[str, typer.Option("--service", "-s", help="Whose.")] = "saga_coordinator",
    resend: Annotated[str | None, typer.Option("--resend", metavar="ID", help="Put this one on the bus again.")] = None,
    limit: LimitOption = 50,
) -> None:
    """Messages that a service could not use."""
    if resend:
        session.terminal.data(session.platform.post(service, f"/dead-letters/{resend}/resend"), "Sent again.")
        return
    found = session.platform.pages(service, "/dead-letters", limit=limit)
    rows = [
        (each["id"], each.get("type"), age(each.get("at") or each.get("created_at")), each.get("reason"))
        for each in found
    ]
    session.terminal.data(found, table(("ID", "TYPE", "AGE", "REASON"), rows, empty=f"{service} has no dead letters."))


def show_sagas(session: Session, *, limit: int, **filters: Any) -> None:
    """A list for people, or for programs."""
    found = session.platform.pages("saga_coordinator", "/sagas", limit=limit, **filters)
    now = _now_of(session, found)
    rows = [
        (
            each["id"],
            styled(each["app"], "name"),
            each["saga"],
            each.get("trigger"),
            short(each.get("commit")),
            state(each["state"]),
            each.get("reason"),
            now.get(each["id"]),
            age(each.get("created_at")),
        )
        for each in found
    ]
    columns = ("ID", "APP", "SAGA", "TRIGGER", "COMMIT", "STATE", "REASON", "NOW", "AGE")
    session.terminal.data(found, table(columns, rows, empty="There are none."))


def _now_of(session: Session, found: Sequence[Mapping[str, Any]]) -> dict[str, "Text"]:
    """By saga id: the state of its app, for the saga whose release is the current one."""
    if session.terminal.as_json:
        return {}
    apps = sorted({each["app"] for each in found if each["saga"] != "remove"})
    shown = {}
    for running in running_of_all(session, apps):
        if running.get("saga_id"):
            words = "; ".join(word for word in (words_of(running), crashes_of(running)) if word)
            shown[str(running["saga_id"])] = styled(words, style_of(running))
    return shown


def show_saga(session: Session, saga_id: str) -> None:
    """One saga and its steps."""
    if "/" in saga_id or not saga_id:
        raise usage(f"{saga_id!r} is no id", todo="Run `knarr deployments` to list the ids")
    saga = session.platform.get("saga_coordinator", f"/sagas/{saga_id}")
    waiting = saga.get("waiting_for") or {}
    waits = " ".join(str(waiting[key]) for key in ("what", "from", "note") if waiting.get(key))
    overview = facts(
        {
            "saga": saga["id"],
            "app": saga["app"],
            "kind": f"{saga['saga']} ({saga.get('definition')}), by {saga.get('trigger')}",
            "commit": saga.get("commit"),
            "state": state(saga["state"]),
            "now": _now_of(session, [saga]).get(saga["id"]),
            "reason": saga.get("reason"),
            "superseded by": saga.get("superseded_by"),
            "waits for": waits,
            "left over": saga.get("left_over"),
            "began": saga.get("created_at"),
            "changed": saga.get("updated_at"),
        }
    )
    session.terminal.data(saga, overview)
    if not session.terminal.as_json:
        session.terminal.out.print()
        session.terminal.out.print(_steps(saga))


def _steps(saga: Any) -> "Table | Text":
    rows = []
    for step in saga["steps"]:
        error = step.get("error")
        message = error.get("message") if isinstance(error, dict) else error
        rows.append((step["name"], state(step["state"]), step["attempts"], step.get("started_at"), message))
    return table(("STEP", "STATE", "TRIES", "BEGAN", "ERROR"), rows, empty="No steps.")


def _gist(payload: Any) -> str:
    import orjson

    text = orjson.dumps(payload).decode() if payload else ""
    return text if len(text) <= 120 else text[:119] + "…"


_register_verbs()
