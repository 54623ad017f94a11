"""How a function becomes a command: `--home` and `--json` everywhere, errors as sentences, documented exit codes.

    @command(app, "show", examples=["knarr apps show shop"])
    def show(session: Session, app_name: AppName) -> None:
        ...

A command function gets a `Session`, prints through its terminal, and raises: a `KnarrError` for what went wrong,
`typer.Exit` for a code of its own.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer
from typer.core import TyperGroup

from knarr.completion import app_names
from knarr.exit_codes import Exit, exit_code
from knarr.home import Home
from knarr.terminal import Terminal
from seedwork.errors import InvalidInput, KnarrError

if TYPE_CHECKING:
    import structlog

    from knarr.client import Platform

P = ParamSpec("P")

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar="KNARR_HOME",
        show_envvar=True,
        help="Where the platform keeps everything. [default: .knarr beside this .venv, else ~/.knarr]",
        file_okay=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Data on standard output is one JSON document.")]
AppName = Annotated[
    str, typer.Argument(metavar="APP", help="The app's name.", show_default=False, autocompletion=app_names)
]
OptionalAppName = Annotated[
    str | None,
    typer.Argument(metavar="[APP]", help="Only of this app.", show_default=False, autocompletion=app_names),
]
OfApp = Annotated[str | None, typer.Option("--app", "-a", help="Only of this app.", autocompletion=app_names)]
ReasonOption = Annotated[str, typer.Option("--reason", "-r", help="Why; it is kept in the saga's log.")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Show the steps until it ends, or return at once.")]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Stop waiting after this long; what runs goes on."),
]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most this many.")]


@dataclass
class Session:
    """What a command works with."""

    home: Home
    terminal: Terminal = field(default_factory=Terminal)

    @cached_property
    def platform(self) -> "Platform":
        """The platform that the home, or the environment, names."""
        from knarr.client import Platform

        port_base = os.environ.get("KNARR_PORT_BASE")
        if port_base is not None and not port_base.isdecimal():
            raise usage(f"KNARR_PORT_BASE is {port_base!r}", todo="It must be a number, such as 8700.")
        return Platform.of(
            self.home,
            host=os.environ.get("KNARR_HOST"),
            port_base=int(port_base) if port_base else None,
            token=os.environ.get("KNARR_TOKEN"),
        )


def confirm(question: str, *, without: str) -> None:
    """Ask on the terminal, and go on after a yes.

    Args:
        question: What is about to happen.
        without: The command that does it without asking.

    Raises:
        InvalidInput: There is no terminal to ask on.
        typer.Exit: The answer was no.
    """
    if not sys.stdin.isatty():
        raise usage("Nothing was changed", why="there is no terminal to ask on", todo=f"Run `{without}`")
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        typer.echo("", err=True)
        agreed = False
    if not agreed:
        typer.echo(f"Nothing was changed. `{without}` does not ask.", err=True)
        raise typer.Exit(Exit.USAGE)


def usage(what: str, *, why: str = "", todo: str = "") -> InvalidInput:
    """The command was called wrongly: exit code 2."""
    return InvalidInput(what, why=why, todo=todo, code="usage")


def group(help_text: str, *, cls: type[TyperGroup] | None = None) -> typer.Typer:
    """A family of commands; alone it shows its help. `cls`: of the group, where it is not typer's own."""
    return typer.Typer(
        cls=cls,
        help=help_text,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )


def command(
    app: typer.Typer, name: str, *, examples: Sequence[str], hidden: bool = False, passes_arguments: bool = False
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[..., None]]:
    """Register a command.

    Args:
        app: The family.
        name: As people type it.
        examples: Whole lines, shown under the help text.
        hidden: Not in the list of commands.
        passes_arguments: Whether words that look like options belong to the last argument, once one was given.
    """

    def register(function: Callable[Concatenate[Session, P], None]) -> Callable[..., None]:
        @wraps(function)
        def run(*args: Any, home: Path | None = None, as_json: bool = False, **kwargs: Any) -> None:
            session = Session(Home.find(home), Terminal(as_json=as_json))
            with_errors_as_sentences(session.terminal, lambda: function(session, *args, **kwargs))

        run.__signature__ = _with_common_options(function)  # type: ignore[attr-defined]
        app.command(
            name,
            help=_help(function, examples),
            hidden=hidden,
            short_help=_first_line(function),
            context_settings={"allow_interspersed_args": False} if passes_arguments else None,
        )(run)
        return run

    return register


def logs_on_standard_error() -> None:
    """Have what the services' code logs during a command appear as progress, not as data."""
    import structlog

    structlog.configure(logger_factory=_on_standard_error)


def _on_standard_error(*_name: str) -> "structlog.PrintLogger":
    import structlog

    return structlog.PrintLogger(sys.stderr)


def with_errors_as_sentences(terminal: Terminal, work: Callable[[], None]) -> None:
    """Run; a person sees what, why and what next, the shell sees the code, nobody sees a traceback.

    Raises:
        typer.Exit: With the code of the error.
    """
    try:
        work()
    except KnarrError as error:
        terminal.error(error)
        raise typer.Exit(exit_code(error)) from error
    except KeyboardInterrupt:
        terminal.say("")
        raise typer.Exit(Exit.DETACHED) from None
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(Exit.DONE) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if "KNARR_TRACEBACK" in os.environ:
            raise
        terminal.error(
            KnarrError(
                f"This is a fault of knarr: {type(error).__name__}",
                why=str(error),
                todo="Please report it with the traceback, which KNARR_TRACEBACK=1 shows.",
            )
        )
        raise typer.Exit(Exit.FAULT) from error


def _with_common_options(function: Callable[..., None]) -> inspect.Signature:
    own = inspect.signature(function)
    common = [
        inspect.Parameter("home", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=HomeOption),
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption),
    ]
    return own.replace(parameters=[*list(own.parameters.values())[1:], *common])


def _first_line(function: Callable[..., None]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def _help(function: Callable[..., None], examples: Sequence[str]) -> str:
    """The docstring, then the examples as they are typed."""
    shown = "\n".join(f"  {line}" for line in examples)
    # A backspace alone on a line keeps the line breaks of the paragraph.
    return f"{inspect.getdoc(function) or ''}\n\n\b\nExamples:\n{shown}"
