"""The environment of install tools: their caches, and the platform's package index under each tool's names. Pure."""

from collections.abc import Callable, Mapping

from services.builder.install.python import Installation

INDEX_NAMES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
"""Variables that name package indexes of the platform."""
PIP_NAMES = (
    ("UV_DEFAULT_INDEX", "PIP_INDEX_URL"),
    ("UV_INDEX", "PIP_EXTRA_INDEX_URL"),
    ("UV_FIND_LINKS", "PIP_FIND_LINKS"),
    ("PDM_PYPI_URL", "PIP_INDEX_URL"),
    ("PIPENV_PYPI_MIRROR", "PIP_INDEX_URL"),
    ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"),
    ("PDM_PYPI_URL", "UV_DEFAULT_INDEX"),
    ("PIPENV_PYPI_MIRROR", "UV_DEFAULT_INDEX"),
)
"""A variable, and another one that gives it its value where only that is set: each tool has names of its own."""
PROJECT_ENVIRONMENT = {
    "SETUPTOOLS_SCM_PRETEND_VERSION": "0.0.0",
    "POETRY_DYNAMIC_VERSIONING_BYPASS": "0.0.0",
    "PDM_BUILD_SCM_VERSION": "0.0.0",
    "PBR_VERSION": "0.0.0",
}
"""A version for projects that take it from git: the history is no part of the source."""


def index_environment(passed: Callable[[str], str | None]) -> dict[str, str]:
    """Give each tool the platform's package index under the name that the tool reads.

    Args:
        passed: Value of a variable that build tools get, or None.
    """
    found: dict[str, str] = {}
    for name, other in PIP_NAMES:
        if passed(name) is None and name not in found and (value := passed(other)) is not None:
            found[name] = value
    return found


def foreign_indexes(env: Mapping[str, str], lock: bytes) -> tuple[str, ...]:
    """Names of index variables that a lock file knows nothing of: uv would take the lock file for outdated."""
    return tuple(name for name in INDEX_NAMES if name in env and env[name].rstrip("/").encode() not in lock)


def tool_environment(installation: Installation, *, venv: str, caches: str) -> dict[str, str]:
    """Return the environment of all commands, beside the index variables.

    Args:
        installation: Whose commands.
        venv: The virtual environment that they fill.
        caches: Folder for the caches of all tools.
    """
    return {
        "VIRTUAL_ENV": venv,
        "UV_PROJECT_ENVIRONMENT": venv,
        "UV_CACHE_DIR": f"{caches}/uv",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
        **({} if installation.own_config else {"UV_NO_CONFIG": "1"}),
        **(
            {"UV_INDEX_STRATEGY": "unsafe-best-match"}
            if installation.tool == "pip" and not installation.own_config
            else {}
        ),
        "PIP_CACHE_DIR": f"{caches}/pip",
        "PIP_NO_COMPILE": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
        "POETRY_VIRTUALENVS_CREATE": "false",
        "POETRY_CACHE_DIR": f"{caches}/poetry",
        "PDM_CACHE_DIR": f"{caches}/pdm",
        "PDM_CHECK_UPDATE": "0",
        "PDM_NON_INTERACTIVE": "1",
        "PDM_IGNORE_SAVED_PYTHON": "1",
        "PIPENV_CACHE_DIR": f"{caches}/pipenv",
        "PIPENV_NOSPIN": "1",
        "PIPENV_YES": "1",
        "PIPENV_VERBOSITY": "-1",
    }
