"""A process that dies by SIGKILL at the n-th step of a change to an image store; run by `test_layout.py`.

    python crash.py ROOT FOLDER CHANGE N

Every call that changes the disk counts as a step: the process is killed just before the N-th. Leaves with 0 when the
change needs fewer steps than that.
"""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ocistore.layout import OciLayout
from ocistore.testing import put_image

STEPS = ("rename", "link", "unlink", "mkdir", "rmdir", "symlink", "fsync", "fchmod", "pwrite")
"""Functions of `os` by which a store changes the disk; pathlib and shutil go through them too."""


def kill_before(number: int) -> None:
    """Count the steps of this process from here on."""
    steps = 0

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **options)

        return run

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


async def change(root: Path, folder: Path, what: str, number: int) -> None:
    """Do `what` to the store that `prepare` made, dying on the way."""
    store = OciLayout(root)
    await store.open()
    images = dict(await store.images())
    kill_before(number)
    if what == "put":
        await put_image(store, "shop", folder, {"lib.py": "shared"}, {"app.py": "new"}, tags=["new"])
    elif what == "put-first":
        await put_image(store, "cafe", folder, {"lib.py": "shared"}, {"app.py": "new"}, tags=["new"])
    elif what == "copy":
        await store.copy("shop", images["shop"], to="cafe", tags=["old"])
    else:
        await store.remove("shop", images["shop"])


async def prepare(root: Path, folder: Path) -> None:
    """A store with two images that share a layer."""
    store = OciLayout(root)
    await put_image(store, "shop", folder, {"lib.py": "shared"}, {"app.py": "old"}, tags=["old"])
    await put_image(store, "other", folder, {"lib.py": "shared"}, {"app.py": "other"})
    await store.close()


def main(root: Path, folder: Path, what: str) -> int:
    """Die at each step in turn, each time in a store of its own; how many steps there were."""
    number = 0
    while True:
        number += 1
        store, files = root / str(number), folder / str(number)
        files.mkdir(parents=True)
        pid = os.fork()
        if pid == 0:
            asyncio.run(prepare(store, files))
            asyncio.run(change(store, files, what, number))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            shutil.rmtree(store)
            return number - 1 if os.WEXITSTATUS(status) == 0 else -1


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))  # noqa: T201  it is a script
