"""How long a command of the command line takes to start, against an interpreter that does nothing.

The ratio to `python -c pass` of the same run says more than the seconds: both grow on a busy machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from bench.figures import Figure, folder

GROUP = "Command line"
COMMANDS = (("--version",), ("--help",), ("deploy", "--help"), ("apps", "list"))
"""The last one asks a platform that is not there: everything but the answer."""


def seconds(words: Sequence[str], home: str) -> float:
    """One process from its start to its end."""
    environment = {**os.environ, "KNARR_HOME": home, "KNARR_HOST": "127.0.0.1", "KNARR_PORT_BASE": "1"}
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], env=environment, capture_output=True, check=False)
    return time.perf_counter() - began


def main() -> None:
    """Measure in turns, so that other work on the machine meets all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    bare: list[float] = []
    taken: dict[tuple[str, ...], list[float]] = {words: [] for words in COMMANDS}
    with folder() as home:
        for _ in range(runs):
            bare.append(seconds(("-c", "pass"), str(home)))
            for words in COMMANDS:
                taken[words].append(seconds(("-m", "knarr", *words), str(home)))
    nothing = statistics.median(bare)
    Figure(group=GROUP, name="python -c pass", values=bare, unit="s").tell()
    for words, values in taken.items():
        name = f"knarr {' '.join(words)}"
        target = "<= 0.3" if words == ("--version",) else ""
        Figure(group=GROUP, name=name, values=values, unit="s", target=target).tell()
        ratios = [value / nothing for value in values]
        Figure(group=GROUP, name=f"{name}: times python -c pass", values=ratios, unit="x").tell()


if __name__ == "__main__":
    main()
