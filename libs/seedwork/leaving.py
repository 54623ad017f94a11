"""How a process ends that may have used Pulsar's client: everything is closed by now, and its exit code is the truth.

Threads of that client abort an interpreter that goes down (ADR 12): what had worked would end with 134.
"""

import logging
import os
import sys
from typing import NoReturn


def leave(code: str | int | None) -> NoReturn:
    """End with this code, as `sys.exit` takes it; without the interpreter's own end where the client was loaded."""
    if "_pulsar" in sys.modules:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)
    sys.exit(code)
