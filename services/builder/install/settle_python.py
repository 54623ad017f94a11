"""Give a filled virtual environment the form for an image: `settle_python.py FOLDER SHOWN_AS PYTHON WORK`.

Two installs of the same packages give the same bytes: what differs between them is removed, and bytecode is made with a
fixed hash seed, in the order of names, and is not checked against times (PEP 552, unchecked hash-based).

A script of its own with the standard library only: it runs under the app's interpreter, on the builder's machine and
in steps of an image build.

    FOLDER     the virtual environment
    SHOWN_AS   where it stands in the image; bytecode names its sources there
    PYTHON     the interpreter of scripts, as a shell word that may use `$0`, the path of the script
    WORK       the folder of the build, into which no installed package may point
"""

import csv
import os
import py_compile
import re
import shutil
import sys

_PARTS = 4  # fixed: what a file's bytecode is may depend on those that the same process compiled before it
_OF_THE_INSTALLER = ("direct_url.json", "uv_cache.json", "uv_build.json")
_OF_THE_ENVIRONMENT = (
    *(".lock", ".gitignore", "CACHEDIR.TAG"),
    *("bin/.lock", "bin/activate", "bin/activate.bat", "bin/activate.csh", "bin/activate.fish", "bin/activate.nu"),
    *("bin/activate.ps1", "bin/activate.xsh", "bin/activate_this.py", "bin/deactivate.bat", "bin/pydoc.bat"),
)
_OF_SITE_PACKAGES = ("_virtualenv.py", "_virtualenv.pth", ".lock")
_SHELL_HEADER = re.compile(rb"#!/bin/sh\n'''exec' .*\n' '''\n")
_PYTHON_HEADER = re.compile(rb"#!.*\b(?:python|pypy)[0-9.]*w?(?:[ \t].*)?\r?\n")


def main() -> int:
    """Settle the environment; the exit status."""
    folder, shown_as, python, work = sys.argv[1:]
    for name in _OF_THE_ENVIRONMENT:
        _remove(os.path.join(folder, name))
    for site in _sites(folder):
        _tidy(site, work)
    _set_interpreter(os.path.join(folder, "bin"), python.encode())
    return _compile(folder, shown_as)


def _sites(folder: str) -> "list[str]":
    """Every `lib/python3.X/site-packages`."""
    lib = os.path.join(folder, "lib")
    return [os.path.join(lib, name, "site-packages") for name in sorted(os.listdir(lib))]


def _tidy(site: str, work: str) -> None:
    for name in _OF_SITE_PACKAGES:
        _remove(os.path.join(site, name))
    for here, folders, _ in os.walk(site):
        if "__pycache__" in folders:
            folders.remove("__pycache__")
            shutil.rmtree(os.path.join(here, "__pycache__"))
    for name in sorted(os.listdir(site)):
        path = os.path.join(site, name)
        if name.endswith(".pth") or name.startswith("__editable__"):
            _refuse_editable(path, work)
        if name.endswith(".dist-info") and os.path.isdir(path):
            for file in _OF_THE_INSTALLER:
                _remove(os.path.join(path, file))
            _tidy_record(os.path.join(path, "RECORD"))


def _refuse_editable(path: str, work: str) -> None:
    """End with an error where a package is a link into the build's folder."""
    if os.path.isfile(path):
        with open(path, "rb") as file:
            if work.encode() in file.read(1 << 20):
                name = os.path.basename(path)
                sys.exit(f"error: {name} points into the build: an editable install cannot be part of an image")


def _tidy_record(record: str) -> None:
    """Drop the lines of files that are gone, and hashes of scripts that change; the file may be a link into a cache."""
    if not os.path.isfile(record):
        return
    with open(record, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row and not row[0].endswith((*_OF_THE_INSTALLER, ".pyc"))]
    rows = [[row[0], "", ""] if row[0].startswith("../../../bin/") else row for row in rows]
    os.unlink(record)
    with open(record, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(sorted(rows))


def _set_interpreter(scripts: str, python: bytes) -> None:
    """Scripts find the interpreter beside them, wherever the image is unpacked."""
    for name in sorted(os.listdir(scripts)) if os.path.isdir(scripts) else ():
        path = os.path.join(scripts, name)
        if os.path.islink(path) or not os.path.isfile(path):
            continue
        with open(path, "rb") as file:
            content = file.read()
        header = _SHELL_HEADER.match(content) or _PYTHON_HEADER.match(content)
        if header is None:
            continue
        mode = os.stat(path).st_mode
        os.unlink(path)  # it may be a link into a cache
        with open(path, "wb") as file:
            file.write(b"#!/bin/sh\n'''exec' \"" + python + b'" "$0" "$@"\n\' \'\'\'\n' + content[header.end() :])
        os.chmod(path, mode)


def _compile(folder: str, shown_as: str) -> int:
    """Bytecode beside the sources, so that an instance starts quickly; a file that does not compile stays as it is."""
    files = [
        os.path.join(here, name)
        for site in _sites(folder)
        for here, _, names in os.walk(site)
        for name in names
        if name.endswith(".py")
    ]
    files.sort()
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for part in range(_PARTS):
        if os.fork() == 0:
            for path in files[part::_PARTS]:
                shown = shown_as + path[len(folder) :]
                try:
                    py_compile.compile(path, dfile=shown, doraise=True, invalidation_mode=mode)
                except (py_compile.PyCompileError, UnicodeDecodeError, OSError, RecursionError, MemoryError):
                    continue
            os._exit(0)
    return max(os.wait()[1] != 0 for _ in range(_PARTS))


def _remove(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)


if __name__ == "__main__":
    sys.exit(main())
