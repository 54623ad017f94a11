"""`make try-apps LIST=FILE`: deploy a list of git repositories and folders, and print a table.

    python -m tests.apps LIST [--docker] [--no-warm] [--set KNARR_NAME=VALUE]

LIST is a file with one source a line, `[NAME=]PLACE[@REF][#ROOT]`, where PLACE is a folder or the URL of a git
repository; empty lines and lines that begin with `#` are skipped. Ends with 1 if an app was declared live and does not
answer, and with 0 otherwise: a refusal is an outcome, not a fault of the run.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.apps.trying import Outcome, Source, platform, try_source


def main(arguments: Sequence[str]) -> int:
    """Try each source of the list."""
    options = _options(arguments)
    lines = [line.strip() for line in options.list.read_text(encoding="utf-8").splitlines()]
    sources = [Source.parse(line) for line in lines if line and not line.startswith("#")]
    settings = {"KNARR_OBSERVE_S": str(options.observe), **dict(each.split("=", 1) for each in options.set)}
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="try-apps-") as folder:
        up = ["--runtime", "docker"] if options.docker else []
        with platform(Path(folder), up=up, **settings) as knarr:
            _say(_row("APP", "PLAN", "OUTCOME", "ANSWER", "COLD", "WARM", "REASON"))
            for source in sources:
                outcome = try_source(knarr, source, warm=not options.no_warm)
                outcomes.append(outcome)
                _say(_line(outcome))
    counted = Counter(each.verdict for each in outcomes)
    _say("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counted.most_common()))
    return int(counted["no answer"] > 0)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make try-apps", description="Deploy a list of apps and print a table.")
    parser.add_argument("list", type=Path, help="file with one source a line: [NAME=]PLACE[@REF][#ROOT]")
    parser.add_argument("--docker", action="store_true", help="run the apps as containers")
    parser.add_argument("--no-warm", action="store_true", help="do not deploy a changed line as well")
    parser.add_argument("--observe", type=float, default=1.0, help="seconds of the observe step (default 1)")
    parser.add_argument("--set", action="append", default=[], metavar="KNARR_NAME=VALUE", help="a setting")
    return parser.parse_args(arguments)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _line(outcome: Outcome) -> str:
    return _row(
        outcome.source.name,
        outcome.plan or "-",
        outcome.verdict,
        str(outcome.status or "-"),
        _seconds(outcome.cold_s),
        _seconds(outcome.warm_s),
        " ".join(outcome.reason.split())[:480],
    )


def _row(app: str, plan: str, verdict: str, answer: str, cold: str, warm: str, reason: str) -> str:  # noqa: PLR0917
    return f"{app:<40} {plan:<14} {verdict:<9} {answer:>6} {cold:>7} {warm:>7}  {reason}".rstrip()


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
