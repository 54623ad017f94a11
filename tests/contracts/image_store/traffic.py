"""One of several processes that put and remove images with shared layers in one store; run by `test_layout.py`.

python traffic.py ROOT FOLDER NAME TURNS
"""

import asyncio
import sys
from pathlib import Path

from ocistore.layout import OciLayout
from ocistore.testing import put_image


async def main(root: Path, folder: Path, name: str, turns: int) -> None:
    """Leave exactly one image, in a repository of this process."""
    store = OciLayout(root)
    for turn in range(turns):
        image = await put_image(store, name, folder, {"lib.py": "shared"}, {"app.py": f"{turn % 3}"}, tags=["latest"])
        await store.copy(name, image.digest, to="everybody/last")
        if turn < turns - 1:
            await store.remove("everybody/last", image.digest)
            await store.remove(name, image.digest)
    await store.get(name, image.digest, verify=True)
    await store.close()


if __name__ == "__main__":
    Path(sys.argv[2]).mkdir()
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
