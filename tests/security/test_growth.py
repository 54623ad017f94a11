"""Time that grows with the bytes: every expression that reads repositories, output or requests of strangers.

Eight times the bytes may take at most twice eight times the processor time. Processor time, the best of several runs
and a floor below which nothing is compared make the ratio steady on a busy machine; a quadratic expression has 64.
"""

import importlib
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import services.builder
import services.deployer
import services.source
import services.webhook

SMALL, LARGE = 8_000, 64_000
RATIO = 16
FLOOR_S = 0.002
"""Linear work on 8 kB takes less, work with its square ten times more; below it the clock and noise decide."""
SLOW_S = 1.0
"""For 8 kB; larger ones are not tried."""

UNITS = (
    *(" ", "\t", "\n", "\r\n", "a", "A", "0", "1", ".", "1.", ".1", "/", "//", "a/", "-", "--", "=", "==", ":", "::"),
    *("@", "a@", '"', '""', "'", "'''", '"""', "\\", '\\"', "#", "# ", "[", "[]", "{", "(", "<", ",", ", ", ";", "_"),
    *(
        "a ",
        " a",
        "a\n",
        " \n",
        "a: ",
        "a=",
        "x = ",
        "error ",
        "npm ERR! ",
        "at ",
        "http://",
        "git+",
        "\x1b[",
        "\x1b[0;",
    ),
    *(
        "-r ",
        "-e ",
        "egg=a",
        "egg=a[",
        "Error: ",
        ">=1,",
        "v1.2 ",
        "a-",
        "-a",
        "\u2502",
        "package main",
        "def f",
        "go1.",
    ),
    *("'a", "PORT", ".run(", "node_modules/", "=>", "b(", "${", "\0", "!", "*", "~", "^", "|", "code E", "lockfile"),
)
PREFIXES = ("", "a", "-r", "egg=a[")


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if ".migrations" not in found.name and not found.name.endswith(("__main__", "launcher", "settle_python")):
            yield importlib.import_module(found.name)


def _expressions() -> dict[str, tuple[re.Pattern[Any], list[str]]]:
    """Every expression that a module of these services has compiled, and how that module applies it."""
    found = {}
    for package in (services.source, services.builder, services.webhook, services.deployer):
        for module in _modules(package):
            text = Path(str(module.__file__)).read_text()
            for name, value in vars(module).items():
                if isinstance(value, re.Pattern):
                    used = set(re.findall(rf"\b{name}\.(\w+)\(", text))
                    anywhere = used & {"search", "finditer", "sub", "subn", "split", "findall"}
                    found[f"{module.__name__}.{name}"] = (value, ["search"] if anywhere else ["match", "fullmatch"])
    return found


EXPRESSIONS = _expressions()


def _seconds(work: Callable[[], object], runs: int) -> float:
    best = float("inf")
    for _ in range(runs):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def _grows_too_fast(work: Callable[[int], Callable[[], object]]) -> bool:
    """Whether eight times the size takes more than sixteen times as long."""
    if _seconds(work(SMALL // 2), 1) < FLOOR_S / 2:
        return False  # a quadratic expression takes some 10 ms for 4 kB
    if (small := _seconds(work(SMALL), 3)) < FLOOR_S:
        return False  # a quadratic expression takes some 30 ms for 8 kB
    return small > SLOW_S or _seconds(work(LARGE), 2) > RATIO * small


def _applied(name: str, prefix: str, unit: str) -> Callable[[int], Callable[[], object]]:
    pattern, how = EXPRESSIONS[name]
    apply = [getattr(pattern, each) for each in how]

    def work(size: int) -> Callable[[], object]:
        text = prefix + unit * (size // len(unit)) + "!"
        content = text.encode() if isinstance(pattern.pattern, bytes) else text
        return lambda: [each(content) for each in apply]

    return work


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_takes_time_that_grows_with_the_text(name: str) -> None:
    """On repetitions of everything that the formats of repositories and tools repeat."""
    slow = [(prefix, unit) for prefix in PREFIXES for unit in UNITS if _grows_too_fast(_applied(name, prefix, unit))]
    assert not slow
