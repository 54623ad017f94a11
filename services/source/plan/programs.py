"""Which language a command line belongs to, by its first program."""

import re
from collections.abc import Iterator, Mapping

from services.source.plan.procfile import Command
from services.source.plan.starts import Language, shown

_PYTHON = (
    *("python", "python3", "gunicorn", "uvicorn", "hypercorn", "daphne", "granian", "waitress-serve", "uwsgi", "flask"),
    *(
        "django-admin",
        "celery",
        "rq",
        "dramatiq",
        "huey_consumer.py",
        "streamlit",
        "marimo",
        "chainlit",
        "panel",
        "shiny",
    ),
    *("fastapi", "litestar", "sanic", "jupyter", "voila", "mkdocs", "alembic", "poetry", "uv", "pipenv", "pdm", "pip"),
    *("manage.py", "newrelic-admin", "ddtrace-run", "opentelemetry-instrument", "bokeh", "solara", "mesop", "honcho"),
)
_NODE = (
    *(
        "node",
        "nodejs",
        "npm",
        "npx",
        "yarn",
        "pnpm",
        "bun",
        "bunx",
        "next",
        "nuxt",
        "nodemon",
        "tsx",
        "ts-node",
        "serve",
    ),
    *("pm2", "pm2-runtime", "nest", "remix-serve", "react-router-serve", "strapi", "forever", "http-server", "vite"),
    *("tsnd", "ts-node-dev", "babel-node", "gatsby", "astro", "medusa", "directus"),
)
_LANGUAGES: Mapping[str, Language] = {
    **dict.fromkeys(_PYTHON, "python"),
    **dict.fromkeys(_NODE, "node"),
    "go": "go",
}
_WRAPPERS = frozenset(
    {"exec", "env", "nohup", "time", "command", "sh", "bash", "/bin/sh", "/bin/bash", "-c", "-lc", "-l"}
)


def programs(command: Command) -> Iterator[str]:
    """The programs that a command starts, one for each part between `&&` and `;`."""
    for segment in re.split(r"&&|\|\||[;&|()\n]", shown(command)[:4000]):
        for word in segment.replace('"', " ").replace("'", " ").split():
            if re.fullmatch(r"[A-Za-z_]\w*=.*", word) or word in _WRAPPERS:
                continue
            if word not in {"cd", "export", "set", "echo", "test", "[", "source", "."}:
                yield word
            break


_RUNNER = re.compile(
    r"(^|&&\s?|\|\|\s?|;\s?|\bexec )"
    r"(?:(?:poetry|pipenv|pdm|hatch|rye) run |uv run (?:--(?:no-sync|frozen|locked|no-dev) )*)(?![-\s])"
)
"""Tools that run a program with the packages of the project: where the app runs, these are on PATH already."""


def without_runner(command: Command) -> Command:
    """The command without `poetry run`, `uv run` and their like, which are no part of an image."""
    if command[:2] != ("/bin/sh", "-c") or len(command) != 3:
        return command
    return (*command[:2], _RUNNER.sub(r"\1", command[2]))


def language_of(command: Command) -> Language | None:
    """The language of the first program that is known; None: none is."""
    for program in programs(command):
        name = program.removeprefix("./").removeprefix("node_modules/.bin/")
        name = re.sub(r"^(?:\S*/)?(python3?|node)(?:\.\d+)*$", r"\1", name)
        if name.endswith(".py"):
            return "python"
        if found := _LANGUAGES.get(name):
            return found
    return None
