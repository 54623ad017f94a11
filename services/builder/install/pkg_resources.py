"""Whether installed packages import `pkg_resources`, which setuptools has, and setuptools is not installed.

Before Python 3.12 every virtual environment had setuptools, so packages of that time import it without requiring it.
Imports nothing of knarr: the builder `buildx` runs this file inside an image, as `pkg_resources.py ENVIRONMENT`; it
ends with 0 where setuptools is needed, and with 1 where it is not.
"""

import os
import sys
from pathlib import Path

REQUIREMENT = "setuptools<81"
"""The last releases that have `pkg_resources`."""
SINCE = (3, 12)
"""From this version of Python on, virtual environments come without setuptools."""
_IMPORT = (b"import pkg_resources", b"from pkg_resources import")


def is_needed(environment: Path, python: tuple[int, ...]) -> bool:
    """Return whether setuptools has to be installed into a virtual environment.

    Args:
        environment: The folder of the environment.
        python: Version of its interpreter.
    """
    if python[:2] >= SINCE:
        return False
    for site in environment.glob("lib/*/site-packages"):
        if not (site / "pkg_resources").is_dir() and _imported(site):
            return True
    return False


def _imported(site: Path) -> bool:
    for here, _, names in os.walk(site):
        for name in names:
            if name.endswith(".py"):
                with Path(here, name).open("rb") as file:
                    head = file.read(64 * 1024)
                if any(each in head for each in _IMPORT):
                    return True
    return False


if __name__ == "__main__":
    sys.exit(0 if is_needed(Path(sys.argv[1]), sys.version_info[:2]) else 1)
