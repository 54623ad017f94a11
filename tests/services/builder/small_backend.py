"""A build backend (PEP 517) for tests: a wheel of the folder `src`, with the script `shop`."""

import base64
import hashlib
import zipfile
from pathlib import Path

INFO = "shop-1.0.dist-info"


def _row(file: "tuple[str, str]") -> str:
    path, text = file
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    return f"{path},sha256={digest},{len(text.encode())}\n"


def build_wheel(wheel_directory: str, config_settings: object = None, metadata_directory: object = None) -> str:
    """Write the wheel; return its name."""
    name = "shop-1.0-py3-none-any.whl"
    content = {str(path.relative_to("src")): path.read_text() for path in sorted(Path("src").rglob("*.py"))}
    content[f"{INFO}/METADATA"] = "Metadata-Version: 2.1\nName: shop\nVersion: 1.0\nRequires-Dist: greet==1.0\n"
    content[f"{INFO}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content[f"{INFO}/entry_points.txt"] = "[console_scripts]\nshop = shop.main:main\n"
    content[f"{INFO}/RECORD"] = "".join(map(_row, content.items())) + f"{INFO}/RECORD,,\n"
    with zipfile.ZipFile(Path(wheel_directory, name), "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    Path("build").mkdir(exist_ok=True)  # as other backends do
    return name
