"""Why an install tool failed, in the words of the error: file, tool and reason."""

import pytest

from services.builder.errors import BuildFailed, RegistryUnavailable
from services.builder.install.python import Command, Installation, Tool
from services.builder.install.python_faults import explained, reason_of

SYNC = Command(arguments=("sync",))
CHECK = Command(arguments=("lock", "--check"), compares=True)
PLAIN = Installation(file="requirements.txt")
LOCKED = Installation(file="uv.lock", manifest="pyproject.toml", frozen=True, tool="uv")


UNSATISFIABLE = """Resolved 3 packages in 2ms
error: No solution found when resolving dependencies
  cause: Because there is no version of idna==99, your requirements are unsatisfiable.

hint: Try another."""
RESOLUTION = (
    "No solution found when resolving dependencies: "
    "Because there is no version of idna==99, your requirements are unsatisfiable"
)
NOT_BUILT = """error: Failed to build `mysqlclient==2.2.0`
  cause: The build backend returned an error
   [stderr]
   Traceback (most recent call last):
   Exception: Can not find valid pkg-config name.
hint: Build failures usually indicate a problem"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (UNSATISFIABLE, RESOLUTION),
        (NOT_BUILT, "Failed to build `mysqlclient==2.2.0`: Exception: Can not find valid pkg-config name"),
        ("  \u00d7 No solution found\n  \u2570\u2500\u25b6 error: it is so", "it is so"),
        ("[ProjectError]: Lockfile does not exist\nWARNING: Add '-v'", "[ProjectError]: Lockfile does not exist"),
        ("Usage: poetry install [options]\nThe option --frob does not exist", "The option --frob does not exist"),
        ("", ""),
    ],
)
def test_the_reason_is_what_failed_and_why(text: str, reason: str) -> None:
    """Neither advice nor usage texts."""
    assert reason_of(text.encode().split(b"\n")) == reason


def test_an_index_that_does_not_answer_is_worth_another_attempt() -> None:
    """A refused package is not."""
    away = [b"error: Request failed after 3 retries", b"  cause: dns error"]
    refused = [b"error: Failed to fetch: `https://x/y`", b"  cause: HTTP status client error (403 Forbidden) for url"]

    assert isinstance(explained(PLAIN, SYNC, away, "exit code 2"), RegistryUnavailable)
    assert isinstance(explained(PLAIN, SYNC, refused, "exit code 2"), BuildFailed)


OF_UV = """error: Failed to build `native==1.0`
  cause: The build backend returned an error
  cause: Call to `setuptools.build_meta.get_requires_for_build_wheel` failed (exit status: 1)

         [stderr]
         HTTPSConnectionPool(host='github.com', port=443): Max retries exceeded with url
         error: could not download libfoo from github.com: Connection refused

hint: Build failures usually indicate a problem with the package or the build environment"""
OF_PIP = """  error: subprocess-exited-with-error

  \u00d7 Getting requirements to build wheel did not run successfully.
  \u2502 exit code: 1
  \u2570\u2500> [1 lines of output]
      urllib.error.URLError: <urlopen error [Errno -2] Name or service not known>
  note: This error originates from a subprocess, and is likely not a problem with pip.
ERROR: Failed to build 'native' when getting requirements to build wheel"""
OF_POETRY = """Backend subprocess exited when trying to invoke build_wheel
error: spurious network error: failed to lookup address information: Temporary failure in name resolution
Note: This error originates from the build backend, and is likely not a problem with poetry but with native (1.0)"""
OF_PDM = """[BuildError]: Build backend raised error: Showing the last 10 lines of the build output:
Connection refused"""


@pytest.mark.parametrize("text", [OF_UV, OF_PIP, OF_POETRY, OF_PDM])
def test_a_build_backend_that_cannot_download_is_a_fault_of_the_build(text: str) -> None:
    """setup.py, cargo and others fetch what is on no package index; another attempt would not mend that."""
    assert type(explained(PLAIN, SYNC, text.encode().split(b"\n"), "exit code 1")) is BuildFailed


OF_UV_AWAY = """error: Failed to build `native==1.0`
  cause: Failed to resolve requirements from `build-system.requires`
  cause: Failed to fetch: https://index/simple/setuptools/
  cause: Connection refused (os error 111)"""
OF_PIP_AWAY = """  error: subprocess-exited-with-error

  \u00d7 installing build dependencies did not run successfully.
  \u2502 exit code: 1
      WARNING: Retrying (Retry(total=0, ...)) after connection broken by 'NewConnectionError': Connection refused
ERROR: Failed to build 'native' when installing build dependencies"""


@pytest.mark.parametrize("text", [OF_UV_AWAY, OF_PIP_AWAY])
def test_build_requirements_that_an_index_does_not_give_are_worth_another_attempt(text: str) -> None:
    """The index is away while a package's build requirements are fetched: the build itself did not begin."""
    assert type(explained(PLAIN, SYNC, text.encode().split(b"\n"), "exit code 1")) is RegistryUnavailable


def test_the_error_names_file_and_tool() -> None:
    """Where the tool printed nothing, how it ended."""
    poetry = Command(arguments=("install",), tool=Tool(program="poetry", requirement="poetry==2.1.3"))

    assert explained(PLAIN, SYNC, [], "exit code 2").message.startswith(
        "The packages of requirements.txt could not be installed: uv: exit code 2."
    )
    assert "poetry==2.1.3: exit code 1" in explained(LOCKED, poetry, [], "exit code 1").message


def test_a_comparison_that_fails_is_a_lock_that_does_not_fit() -> None:
    """The advice of the tool is left out: the error has its own."""
    stale = [b"error: The lockfile at `uv.lock` needs to be updated, but `--check` was provided."]
    error = explained(LOCKED, CHECK, stale, "exit code 1")

    assert error.what == "uv.lock does not fit pyproject.toml"
    assert error.todo == "Run `uv lock` and commit uv.lock."
    said = explained(LOCKED, SYNC, [b"Pipfile.lock is out-of-date. Run $ pipenv lock to update."], "exit code 1")
    assert said.why == "Pipfile.lock is out-of-date"
