"""`make scenarios`: the scenarios in each setting, one after the other, and their rows in the README.

    python -m tests.e2e [laptop] [compose] [cluster]

Ends with 0 if all of them passed everywhere.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.table import SETTINGS


def main(settings: list[str]) -> int:
    """Run them; in containers all scenarios share one platform, so there is one worker."""
    unknown = set(settings) - set(SETTINGS)
    if unknown:
        sys.stderr.write(f"there is no setting {', '.join(sorted(unknown))}: choose from {', '.join(SETTINGS)}\n")
        return 2
    codes = []
    for setting in settings or list(SETTINGS):
        workers = ["-n", "2", "--dist", "loadgroup"] if setting == "laptop" else []
        pytest = [sys.executable, "-m", "pytest", "-p", "tests.e2e.table", str(Path(__file__).parent), *workers]
        codes.append(subprocess.run(pytest, env={**os.environ, "E2E_SETTING": setting}, check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
