"""Python apps: dependencies from `requirements.txt` or `pyproject.toml`, installed by uv into `/layers/python`.

    /layers/python/bin/     python, python3: start the interpreter that the layer was made for; the packages' scripts
    /layers/python/lib/     the packages (`uv pip install --target`), compiled
    /layers/python/site/    sitecustomize.py: the host's own packages are taken off sys.path, `.pth` files work

What the app's processes get: `PATH` with `bin` in front; `PYTHONPATH` of `site`, `/app` and `lib` (so `/app` wins, as
it does for `python app.py`); `PYTHONUNBUFFERED=1`, since a log line must be seen when it is printed;
`PYTHONNOUSERSITE=1`; `PYTHONDONTWRITEBYTECODE=1`, since a release's files do not change while it runs.

The layer's key: the content of the files that name dependencies, the interpreter (path, version, platform) and the
cache's format. Packages that are not pinned are resolved when the key is new: pin them, or they stay as they were.

Reproducible: two fresh installs give the same bytes. Bytecode is made with a fixed hash seed, in the order of the
names, and is not checked against times (PEP 552, unchecked hash-based); records of where a package came from are left
out.
"""

import asyncio
import csv
import re
import shutil
from pathlib import Path

import uv

from services.builder.adapters.layers.image import HOST_PATH, Prepared
from services.builder.adapters.layers.interpreters import Interpreter, Interpreters
from services.builder.adapters.layers.requirements import Requirements, read_requirements
from services.builder.adapters.layers.sandbox import ToolFailed
from services.builder.adapters.layers.workshop import Workshop, wrapper
from services.builder.errors import BuildFailed, RegistryUnavailable

_NETWORK = re.compile(
    rb"error sending request|dns error|failed to lookup address|Could not connect|Connection re(fused|set)|timed out"
    rb"|Failed to fetch: .*|HTTP status (server error|client error \(429)|request failed after \d+ retries"
    rb"|connection closed before message completed|error decoding response body",
    re.IGNORECASE,
)
_NOT_NETWORK = re.compile(rb"HTTP status client error \(4(?!29)\d\d")
_PIP_NAMES = {
    "UV_DEFAULT_INDEX": "PIP_INDEX_URL",
    "UV_INDEX": "PIP_EXTRA_INDEX_URL",
    "UV_FIND_LINKS": "PIP_FIND_LINKS",
}
"""uv does not read pip's variables; where only pip's is set, uv gets it under its own name."""
_COMPILE = """
import compileall, os, py_compile, sys

folder, shown_as = sys.argv[1:]
files = sorted(os.path.join(place, name) for place, _, names in os.walk(folder) for name in names if name[-3:] == ".py")
parts = 4  # fixed: what a file's bytecode is may depend on those that the same process compiled before it
for part in range(parts):
    if os.fork() == 0:
        for file in files[part::parts]:
            compileall.compile_file(file, stripdir=folder, prependdir=shown_as, quiet=2,
                                    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        os._exit(0)
sys.exit(any([os.wait()[1] for _ in range(parts)]))
"""
_SITECUSTOMIZE = '''\
"""Leaves the standard library and this image's packages on sys.path: what the host has installed is not the app's."""

import os
import site
import sys

_host = {os.path.realpath(path) for path in site.getsitepackages()}
sys.path[:] = [path for path in sys.path if os.path.realpath(path) not in _host]
site.addsitedir(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
'''

ENVIRONMENT = {
    "PATH": f"/layers/python/bin:{HOST_PATH}",
    "PYTHONPATH": "/layers/python/site:/app:/layers/python/lib",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
}


async def prepare(shop: Workshop, interpreters: Interpreters) -> Prepared:
    """The dependency layer and the environment of a Python app.

    Raises:
        CannotBuild: No such interpreter, or a file that cannot be read; the text says what to change.
        BuildFailed: uv could not install the dependencies.
        RegistryUnavailable: The package index did not answer.
    """
    wanted = shop.order.description.runtime.version
    interpreter = await interpreters.for_version(wanted)
    if wanted and not interpreter.version.startswith(wanted):
        await shop.say(f"Python {wanted} is not here; {interpreter.version} of the same minor version is used")
    requirements = await asyncio.to_thread(read_requirements, shop.read)
    inputs = {
        "files": dict(requirements.inputs),
        "source": shop.order.source_digest if requirements.needs_source else None,
        "interpreter": [interpreter.implementation, interpreter.version, interpreter.platform, str(interpreter.path)],
        "site": _SITECUSTOMIZE,
    }

    async def make(folder: Path) -> None:
        await _install(shop, interpreter, requirements, folder)

    what = f"Python {interpreter.version}"
    what += f", packages of {requirements.file}" if requirements.file else ", no packages"
    return Prepared(layers=(await shop.layer("python", inputs, make, created_by=what),), env=ENVIRONMENT)


async def _install(shop: Workshop, interpreter: Interpreter, requirements: Requirements, folder: Path) -> None:
    """Fill `/layers/python`."""
    lib = folder / "lib"
    if requirements.file:
        shop.note("installing dependencies")
        await _uv(shop, interpreter, requirements, lib)
        await asyncio.to_thread(_tidy, lib, folder / "bin")
        shop.note("compiling dependencies")
        await _compile(shop, interpreter, lib)
    await asyncio.to_thread(_lay_out, folder, interpreter)


async def _uv(shop: Workshop, interpreter: Interpreter, requirements: Requirements, lib: Path) -> None:
    env = shop.environment(
        {
            "UV_CACHE_DIR": str(shop.caches / "uv"),
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_NO_PROGRESS": "1",
            **{
                name: value
                for name, pip in _PIP_NAMES.items()
                if shop.sandbox.passed(name) is None and (value := shop.sandbox.passed(pip)) is not None
            },
        }
    )
    assert requirements.file is not None  # noqa: S101 - the caller looked
    options = [] if requirements.own_config else ["--no-config"]
    argv = [
        "pip",
        "install",
        *options,
        "--target",
        str(lib),
        "--python",
        str(interpreter.path),
        "-r",
        requirements.file,
    ]
    try:
        await shop.run([uv.find_uv_bin(), *argv], env=env, shown=f"uv pip install -r {requirements.file}")
    except ToolFailed as error:
        raise _explained(error, requirements.file) from error


def _explained(error: ToolFailed, file: str) -> BuildFailed | RegistryUnavailable:
    if error.says(_NETWORK) and not error.says(_NOT_NETWORK):
        return RegistryUnavailable("The Python package index did not answer", why=error.ending)
    return BuildFailed(
        f"The packages of {file} could not be installed", why=error.ending, todo="The last lines of the log say why."
    )


async def _compile(shop: Workshop, interpreter: Interpreter, lib: Path) -> None:
    """Bytecode beside the sources, so that an instance starts quickly; a file that does not compile is left alone."""
    env = shop.environment({"PYTHONHASHSEED": "0"})  # which -I would ignore
    argv = [str(interpreter.path), "-s", "-S", "-c", _COMPILE, str(lib), "/layers/python/lib"]
    try:
        await shop.run(argv, env=env, cwd=Path(env["HOME"]), shown="compile the packages")
    except ToolFailed as error:
        raise BuildFailed("The packages could not be compiled", why=error.ending) from error


def _tidy(lib: Path, bin_folder: Path) -> None:
    """Take out what differs between two installs of the same packages; scripts to where PATH finds them."""
    for name in (".lock", "bin/.lock"):
        (lib / name).unlink(missing_ok=True)
    if (lib / "bin").is_dir():
        shutil.move(lib / "bin", bin_folder)
    for cache in list(lib.rglob("__pycache__")):
        shutil.rmtree(cache)
    for dropped in ("direct_url.json", "uv_cache.json"):
        for path in lib.glob(f"*.dist-info/{dropped}"):
            path.unlink()
    for record in lib.glob("*.dist-info/RECORD"):
        _tidy_record(record)


def _tidy_record(record: Path) -> None:
    """Drop the lines of files that are gone; written anew, since the file may be a link into uv's cache."""
    with record.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row and not row[0].endswith(("/direct_url.json", "/uv_cache.json"))]
    record.unlink()
    with record.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(sorted(rows))


def _lay_out(folder: Path, interpreter: Interpreter) -> None:
    (folder / "lib").mkdir(exist_ok=True)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    for name in ("python", "python3"):
        wrapper(folder / "bin" / name, interpreter.path)
