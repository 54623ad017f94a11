"""`knarr up`, `knarr demo`, `knarr doctor`, `knarr db`, `knarr bus`: the platform itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from knarr.command import Session, command, group, logs_on_standard_error
from knarr.exit_codes import Exit
from knarr.home import DEFAULT_PORT_BASE, Address, port_of
from knarr.terminal import facts, styled
from seedwork.chassis.service_ports import SERVICE_PORTS

if TYPE_CHECKING:
    from rich.table import Table

alone = group("Commands that stand alone.")
db = group("The services' databases.")
bus = group("The bus between the services.")

HostOption = Annotated[
    str,
    typer.Option(
        "--host", envvar="KNARR_HOST", help="The address to listen on; others than loopback need a proxy with TLS."
    ),
]
PortBaseOption = Annotated[
    int,
    typer.Option(
        "--port-base", envvar="KNARR_PORT_BASE", min=0, max=65_000, help="The services take this plus 1 to 6."
    ),
]
LogFileOption = Annotated[
    Path | None, typer.Option("--log-file", help="JSON lines. [default: knarr.log in the home]", dir_okay=False)
]


@command(alone, "up", examples=["knarr up", "knarr up --runtime docker", "knarr up --home /srv/knarr --port-base 9700"])
def up(  # noqa: PLR0917  options of a command line
    session: Session,
    host: HostOption = "127.0.0.1",
    port_base: PortBaseOption = DEFAULT_PORT_BASE,
    test_endpoints: Annotated[
        bool | None,
        typer.Option(
            "--test-endpoints/--no-test-endpoints",
            help="Routes that put messages on the bus. [default: KNARR_TEST_ENDPOINTS, else off]",
        ),
    ] = None,
    log_file: LogFileOption = None,
    runtime: Annotated[
        Literal["process", "docker"] | None,
        typer.Option(
            "--runtime",
            help="What runs the apps: processes of this user, or containers of this machine's Docker engine; "
            "it is remembered in the home. [default: KNARR_RUNTIME, else as before, else process]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Start the platform: six services in this process. Ctrl-C stops it.

    Apps that ran before run again. Everything is kept in the home.
    """
    from knarr.up import Options, is_loopback, next_steps, program, serve

    options = Options(
        home=session.home,
        host=host,
        port_base=port_base,
        test_endpoints=test_endpoints,
        log_file=log_file,
        runtime=runtime,
    )

    def ready(address: Address) -> None:
        session.terminal.data(
            {
                "pid": address.pid,
                "home": str(session.home.path),
                "log": str(log_file or session.home.log),
                "services": {name: f"http://{address.host}:{port_of(name, port_base)}" for name in SERVICE_PORTS},
            }
        )
        session.terminal.err.print(_addresses(address))
        if not is_loopback(host):
            session.terminal.say(
                "[undo]Reachable from other machines, over plain HTTP: put a proxy with TLS in front.[/]"
            )
        knarr = program()
        steps = [
            (f"{knarr} deploy DIR", "deploy a folder"),
            (f"{knarr} apps list", "what runs"),
            (f"{knarr} doctor", "is everything well?"),
        ]
        session.terminal.say(
            f"\n[quiet]home[/] {session.home.path}   [quiet]log[/] {log_file or session.home.log}"
            f"\n\nIn another terminal:\n{next_steps(session.home, steps)}\n\n[quiet]Ctrl-C stops.[/]\n"
        )

    serve(options, session.terminal, ready=ready)


def _addresses(address: Address) -> "Table":
    pages = {"webhook": "/github-webhook"}
    table = facts(
        {
            name: f"http://{address.host}:{port_of(name, address.port_base)}{pages.get(name, '/docs')}"
            for name in SERVICE_PORTS
        }
    )
    table.title = "[good]knarr is ready[/]\n"
    table.title_justify = "left"
    return table


@command(alone, "demo", examples=["knarr demo", "make run"])
def demo(
    session: Session,
    host: HostOption = "127.0.0.1",
    port_base: PortBaseOption = DEFAULT_PORT_BASE,
) -> None:
    """Start the platform and show a push going through it, and one that is undone. Ctrl-C stops."""
    from knarr.demo import run

    run(session, host=host, port_base=port_base)


@command(alone, "doctor", examples=["knarr doctor", "knarr doctor --json"])
def doctor(session: Session) -> None:
    """Look at everything that knarr needs; whatever is wrong comes with a fix."""
    from knarr.doctor import examine

    marks = {"ok": ("✓", "good"), "note": ("·", "undo"), "wrong": ("✗", "bad")}
    findings = []
    for finding in examine(session.home, session.platform):
        findings.append(finding)
        if not session.terminal.as_json:
            mark, style = marks[finding.state]
            line = styled(mark, style).append_text(styled(f" {finding.name:<17} {finding.detail}"))
            if finding.fix:
                line.append_text(styled(f"\n    → {finding.fix}", "quiet"))
            session.terminal.out.print(line)
    session.terminal.data([finding.as_dict() for finding in findings])
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(Exit.FAULT)


@command(db, "upgrade", examples=["knarr db upgrade", "knarr db upgrade --service builder"])
def upgrade(
    session: Session,
    service: Annotated[
        list[str] | None, typer.Option("--service", "-s", help="Only this one; may be repeated.")
    ] = None,
) -> None:
    """Bring each service's database to the newest schema. Services do it themselves where it is a file of theirs."""
    import asyncio

    from knarr.databases import upgrade_all

    logs_on_standard_error()
    done = asyncio.run(upgrade_all(session.home, service or list(SERVICE_PORTS)))
    session.terminal.data(done, facts(done))


@command(db, "reseal", examples=["knarr db reseal", "knarr db reseal --service deployer"])
def reseal(
    session: Session,
    service: Annotated[
        list[str] | None, typer.Option("--service", "-s", help="Only this one; may be repeated.")
    ] = None,
) -> None:
    """After a new key was put before the old one: seal with it what the old one has sealed. Services may run."""
    import asyncio

    from knarr.resealing import SERVICES, reseal_all

    logs_on_standard_error()
    done = asyncio.run(reseal_all(session.home, service or list(SERVICES)))
    session.terminal.data(done, facts({name: f"{count} values" for name, count in done.items()}))


@command(bus, "setup", examples=["knarr bus setup", "knarr bus setup --partitions 4"])
def setup(
    session: Session,
    partitions: Annotated[
        int,
        typer.Option("--partitions", min=1, max=64, help="Of each topic; more can be added later, never taken away."),
    ] = 1,
) -> None:
    """Make the topics and subscriptions that the services need, and register the schemas. Safe to repeat."""
    import asyncio

    from knarr.buses import set_up

    logs_on_standard_error()
    made = asyncio.run(set_up(session.home, partitions=partitions))
    session.terminal.data({"changed": made}, styled("\n".join(made) or "Nothing was missing."))


@command(bus, "dead-letters", examples=["knarr bus dead-letters", "knarr bus dead-letters --resend ID"])
def letters(
    session: Session,
    resend: Annotated[str | None, typer.Option("--resend", help="Send this message to its topic again.")] = None,
) -> None:
    """Messages on the bus that no service could even read; `knarr dead-letters` has those that one could not handle."""
    import asyncio

    from knarr import buses

    logs_on_standard_error()
    found = [asyncio.run(buses.resend(session.home, resend))] if resend else asyncio.run(buses.letters(session.home))
    rows = [{"id": each.id, "topic": each.topic, "error": each.error} for each in found]
    session.terminal.data(
        rows, styled("\n".join(f"{each.id}  {each.topic}  {each.error}" for each in found) or "None.")
    )
