"""What a measurement says and where it was taken: figures as JSON lines between processes, a table for people.

A figure is the median of several runs. Beside it stand the smallest and the largest one, and the load average while it
was taken: on a machine that is shared with others, a figure without them means little.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

WORK = Path(__file__).parent.parent / "build" / "bench"
"""Where measurements keep their files: on the disk of the repository, since `/tmp` may be memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table."""

    group: str
    name: str
    values: Sequence[float]
    """One for each run."""
    unit: str
    target: str = ""
    """What DESIGN §9 asks for: "<= 3", ">= 3000"."""
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    """Of the last minute."""

    @property
    def median(self) -> float:
        """Of the runs."""
        return statistics.median(self.values)

    @property
    def shown(self) -> str:
        """The median as people read it."""
        return shown(self.median)

    @property
    def verdict(self) -> str:
        """Whether the median holds the target."""
        if not self.target:
            return ""
        relation, bound = self.target.split()
        holds = self.median <= float(bound) if relation == "<=" else self.median >= float(bound)
        return "holds" if holds else "missed"

    def tell(self) -> None:
        """Hand it to whoever started this process."""
        sys.stdout.write(orjson.dumps(asdict(self)).decode() + "\n")
        sys.stdout.flush()


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def table(figures: Sequence[Figure]) -> str:
    """As Markdown, which is readable on a terminal, too."""
    lines = [
        "| | Median | Smallest … largest | Unit | Target | | Load |",
        "|---|---:|---:|---|---:|---|---:|",
    ]
    group = ""
    for each in figures:
        if each.group != group:
            group = each.group
            lines.append(f"| **{group}** | | | | | | |")
        spread = f"{shown(min(each.values))} … {shown(max(each.values))}" if len(each.values) > 1 else ""
        target = each.target.replace("<=", "≤").replace(">=", "≥")
        cells = (each.name, shown(each.median), spread, each.unit, target, each.verdict, f"{each.load:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(value: float) -> str:
    """With about three digits that mean something."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def fsync_ms(folder: Path, times: int = 300) -> list[float]:
    """How long the machine takes to put 4 KB on its disk, as a commit does, in milliseconds."""
    taken = []
    file = folder / "fsync"
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY)
    try:
        for _ in range(times):
            os.write(descriptor, b"x" * 4096)
            began = time.perf_counter()
            os.fsync(descriptor)
            taken.append((time.perf_counter() - began) * 1000)
    finally:
        os.close(descriptor)
        file.unlink()
    return taken


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder that is gone afterwards."""
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as name:
        yield Path(name)
