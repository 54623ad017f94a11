"""`knarr webhook send`: try the way of a push without a Git host."""

from pathlib import Path
from typing import Annotated

import typer

from knarr.command import Session, TimeoutOption, WaitOption, command, group, usage
from knarr.commands.apps import full_ref
from knarr.commands.outcome import finish
from knarr.terminal import age, styled, table

webhook = group("What GitHub sends, sent from here.")


@command(
    webhook,
    "send",
    examples=[
        "knarr webhook send . --app shop --secret-file ~/shop.secret",
        "KNARR_WEBHOOK_SECRET=… knarr webhook send ~/code/shop --repository acme/shop --ref main",
    ],
)
def send(
    session: Session,
    *,
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The git repository.", file_okay=False)] = Path(),
    app: Annotated[
        str | None, typer.Option("--app", "-a", help="Take the repository's name and URL from this app.")
    ] = None,
    repository: Annotated[str | None, typer.Option("--repository", metavar="OWNER/NAME")] = None,
    ref: Annotated[str, typer.Option("--ref", help="The branch whose tip was pushed.")] = "main",
    secret: Annotated[
        str | None, typer.Option("--secret", envvar="KNARR_WEBHOOK_SECRET", help="The app's webhook secret.")
    ] = None,
    secret_file: Annotated[
        Path | None, typer.Option("--secret-file", help="A file that holds it.", dir_okay=False)
    ] = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Send a push, signed, as GitHub would send it for the tip of a local repository.

    knarr fetches from the app's clone URL, not from DIR: push there first.
    """
    from knarr.push import push_of

    known = session.platform.get("webhook", f"/apps/{app}") if app else {}
    full_name = repository or known.get("repository")
    if not full_name:
        raise usage(
            "Which repository?", todo="Name the app with --app, or the repository with --repository owner/name."
        )
    push = push_of(
        folder,
        full_name=full_name,
        secret=_secret(secret, secret_file),
        ref=full_ref(ref) or ref,
        clone_url=known.get("clone_url"),
    )
    answer = session.platform.request(
        "POST", "webhook", "/github-webhook", content=push.body, headers=dict(push.headers)
    )
    started = answer.get("deployments") or []
    session.terminal.say(f"[quiet]Delivery {push.delivery_id}:[/] {answer['status']}")
    if not started or answer["status"] == "ignored":
        session.terminal.data(
            answer, f"No deployment was started: {answer.get('reason') or 'the push asked for none'}."
        )
        return
    for saga_id in started:
        finish(session, saga_id, wait=wait, timeout_s=timeout, app=app)


@command(webhook, "deliveries", examples=["knarr webhook deliveries", "knarr webhook deliveries --json"])
def deliveries(session: Session, limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000)] = 20) -> None:
    """What arrived, and what became of it."""
    found = session.platform.pages("webhook", "/deliveries", limit=limit)
    rows = [
        (
            each["id"],
            each["event"],
            each.get("repository"),
            each.get("ref"),
            each["status"],
            each.get("reason"),
            age(each["received_at"]),
        )
        for each in found
    ]
    columns = ("ID", "EVENT", "REPOSITORY", "REF", "STATUS", "REASON", "AGE")
    session.terminal.data(found, table(columns, rows, empty="Nothing has arrived yet."))


@command(webhook, "redeliver", examples=["knarr webhook redeliver ID"])
def redeliver(
    session: Session,
    delivery_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
) -> None:
    """Take a delivery again, on purpose: new deployments, linked to the first ones."""
    answer = session.platform.post("webhook", f"/deliveries/{delivery_id}/redeliver")
    session.terminal.data(answer, styled(", ".join(answer.get("deployments") or [answer.get("id", "")])))


def _secret(secret: str | None, secret_file: Path | None) -> str:
    if secret_file is not None:
        try:
            secret = secret_file.expanduser().read_text().strip()
        except OSError as error:
            raise usage(f"Cannot read {secret_file}", why=str(error.strerror)) from error
    if not secret:
        raise usage(
            "Which secret?", todo="Give --secret-file, or set KNARR_WEBHOOK_SECRET: it is the app's webhook secret."
        )
    return secret
