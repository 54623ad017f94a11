"""How a Python app without a Procfile is started: the framework in its source, and a server that it installs.

The source is searched for the object that a server needs (`app = FastAPI()`); nothing of it is run.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.source.plan.django import django_start
from services.source.plan.findings import Findings
from services.source.plan.procfile import shell
from services.source.plan.python_packages import PythonApp, adding
from services.source.plan.starts import Start
from services.source.plan.tree import Tree

_ROOT_FILES = (
    *("main.py", "app.py", "server.py", "application.py", "api.py", "asgi.py", "wsgi.py", "run.py", "index.py"),
    *("streamlit_app.py", "Home.py", "Hello.py", "start.py", "notebook.py", "web.py"),
)
_FOLDER_FILES = ("main.py", "app.py", "server.py", "asgi.py", "wsgi.py", "__init__.py", "api.py")
_PLAIN_FILES = ("main.py", "app.py", "start.py", "server.py", "run.py", "bot.py", "hello.py", "index.py", "src/main.py")
_NOT_THE_APP = frozenset(
    {"test", "tests", "docs", "doc", "examples", "example", "scripts", "migrations", "alembic", "tools", "benchmarks"}
)
_MAX_FILES = 120
"""Source files that are searched."""


@dataclass(frozen=True, slots=True)
class _Framework:
    """A framework whose app a server runs."""

    name: str
    package: str
    call: str
    """What makes the app, as a regular expression."""
    protocol: str = "asgi"


_FRAMEWORKS = (
    _Framework("FastAPI", "fastapi", r"FastAPI\("),
    _Framework("Litestar", "litestar", r"Litestar\("),
    _Framework("FastHTML", "python-fasthtml", r"(?:FastHTML|fast_app)\("),
    _Framework("Quart", "quart", r"Quart\("),
    _Framework("Sanic", "sanic", r"Sanic\(", "sanic"),
    _Framework("BlackSheep", "blacksheep", r"Application\("),
    _Framework("Flask", "flask", r"Flask\(", "wsgi"),
    _Framework("Dash", "dash", r"Dash\(", "wsgi"),
    _Framework("Falcon", "falcon", r"asgi\.App\("),
    _Framework("Falcon", "falcon", r"falcon\.(?:App|API)\(", "wsgi"),
    _Framework("Bottle", "bottle", r"(?:Bottle|default_app)\(", "wsgi"),
    _Framework("Pyramid", "pyramid", r"make_wsgi_app\(", "wsgi"),
    _Framework("Starlette", "starlette", r"Starlette\("),
)
_SERVERS: Mapping[str, Mapping[str, str]] = {
    "asgi": {
        "uvicorn": "uvicorn {app} --host 0.0.0.0 --port $PORT",
        "hypercorn": "hypercorn {app} --bind 0.0.0.0:$PORT",
        "granian": "granian --interface asgi --host 0.0.0.0 --port $PORT {app}",
        "daphne": "daphne -b 0.0.0.0 -p $PORT {app}",
    },
    "wsgi": {
        "gunicorn": "gunicorn --bind 0.0.0.0:$PORT {app}",
        "waitress": "waitress-serve --listen=0.0.0.0:$PORT {app}",
        "granian": "granian --interface wsgi --host 0.0.0.0 --port $PORT {app}",
        "hypercorn": "hypercorn wsgi:{app} --bind 0.0.0.0:$PORT",
        "uwsgi": "uwsgi --http-socket 0.0.0.0:$PORT --master --die-on-term --module {app}",
    },
    "sanic": {"sanic": "sanic {app} --host 0.0.0.0 --port $PORT --single-process"},
}
_FACTORY: Mapping[str, tuple[str, str]] = {
    "uvicorn": ("{app}", " --factory"),
    "granian": ("{app}", " --factory"),
    "gunicorn": ("'{app}()'", ""),
    "waitress": ("--call {app}", ""),
    "hypercorn": ("'{app}()'", ""),
    "sanic": ("{app}", " --factory"),
}
"""How each server is given a function that makes the app: the argument, and what follows the command."""
_BROUGHT = {
    **dict.fromkeys(("fastapi[standard]", "fastapi[all]", "litestar[standard]", "python-fasthtml"), "uvicorn"),
    **dict.fromkeys(("fastapi-cli", "uvicorn-worker"), "uvicorn"),
    "quart": "hypercorn",
    "sanic": "sanic",
}
"""Servers that other packages install."""
_SCREENS: Mapping[str, tuple[str, str, str]] = {
    "streamlit": (
        "Streamlit",
        r"^[ \t]*(?:import|from)[ \t]+streamlit\b",
        "streamlit run {file} --server.port $PORT --server.address 0.0.0.0 --server.headless true",
    ),
    "gradio": (
        "Gradio",
        r"^[ \t]*(?:import|from)[ \t]+gradio\b",
        "GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=$PORT python {file}",
    ),
    "chainlit": (
        "Chainlit",
        r"^[ \t]*(?:import|from)[ \t]+chainlit\b",
        "chainlit run {file} --host 0.0.0.0 --port $PORT -h",
    ),
    "marimo": ("marimo", r"marimo\.App\(", "marimo run {file} --host 0.0.0.0 --port $PORT --headless"),
    "panel": (
        "Panel",
        r"\.servable\(",
        "panel serve {file} --address 0.0.0.0 --port $PORT --allow-websocket-origin='*'",
    ),
    "shiny": ("Shiny", r"^[ \t]*(?:import|from)[ \t]+shiny\b", "shiny run {file} --host 0.0.0.0 --port $PORT"),
    "solara": ("Solara", r"^[ \t]*(?:import|from)[ \t]+solara\b", "solara run {file} --host 0.0.0.0 --port $PORT"),
    "mesop": ("Mesop", r"^[ \t]*(?:import|from)[ \t]+mesop\b", "mesop {file} --port $PORT"),
}
"""Frameworks with a program of their own: what is in the file, and the command."""
_PROGRAMS = {"aiohttp": "aiohttp", "tornado": "Tornado", "nicegui": "NiceGUI", "cherrypy": "CherryPy", "robyn": "Robyn"}
"""Frameworks whose file is run as it is."""
_BOTS = ("discord-py", "discord", "py-cord", "nextcord", "disnake", "python-telegram-bot", "aiogram", "slack-bolt")
_LISTENS = re.compile(r"PORT|listen|http\.server|socketserver|\.run\(|run_app|serve_forever|bind", re.ASCII)


def python_start(tree: Tree, app: PythonApp, findings: Findings) -> Start | None:
    """Return how the app is started, or None; a framework without a server is a refusal."""
    if start := django_start(tree, app, findings):
        return start
    texts = {file: tree.source(file) for file in _candidates(tree)}
    if start := _screen(texts, app):
        return start
    for file, source in texts.items():
        for framework in _FRAMEWORKS:
            if framework.package in app.dependencies and (reference := _reference(source, framework)):
                return _served(tree, _Found(framework, file, source, *reference), app, findings)
    return _plain(tree, app, findings)


def _candidates(tree: Tree) -> Iterator[str]:
    """Files that may hold the app, the likeliest first."""
    folders = [f"{place}{name}" for place in ("app/", "src/", "*/", "src/*/", "*/*/") for name in _FOLDER_FILES]
    named = [name for name in _ROOT_FILES if tree.has(name)]
    for pattern in folders:
        named += tree.matching(pattern)
    named += tree.matching("*.py")
    files = (name for name in dict.fromkeys(named) if _NOT_THE_APP.isdisjoint(name.split("/")[:-1]))
    for _, name in zip(range(_MAX_FILES), files, strict=False):
        yield name


def _screen(texts: Mapping[str, str], app: PythonApp) -> Start | None:
    for package, (framework, pattern, command) in _SCREENS.items():
        if package in app.dependencies:
            for file, source in texts.items():
                if re.search(pattern, source, re.MULTILINE):
                    return Start(shell(command.format(file=file)), file, framework)
    return None


_DASH_SERVER = re.compile(r"^(\w{1,60})[ \t]*=[ \t]*\w{1,60}\.server\b", re.MULTILINE)
_CALLED = re.compile(
    r"^(app|application|asgi|wsgi|server)[ \t]*=[ \t]*(?:\w{1,60}\.)?(?:create|make|get|build)_app\(", re.MULTILINE
)
_FACTORY_DEF = re.compile(
    r"^(?:async[ \t]+)?def[ \t]+((?:create|make|get|build)_app|create_application)\(", re.MULTILINE
)


def _reference(source: str, framework: _Framework) -> tuple[str, bool] | None:
    """The name of the app's variable, or of the function that makes it (then true)."""
    variable = r"^([A-Za-z_]\w{0,60})(?:,[ \t]*\w{1,60})?[ \t]*(?::[^=\n]{1,80})?=[ \t]*"
    made = rf"{variable}(?:[A-Za-z_][\w.]{{0,80}}\.)?{framework.call}"
    if match := re.search(made, source, re.MULTILINE | re.ASCII):
        server = _DASH_SERVER.search(source) if framework.name == "Dash" else None
        return (server or match)[1], False
    if called := _CALLED.search(source):
        return called[1], False
    factory = _FACTORY_DEF.search(source)
    if factory and re.search(framework.call, source):
        return factory[1], True
    return None


@dataclass(frozen=True, slots=True)
class _Found:
    """A framework's app in a file."""

    framework: _Framework
    file: str
    source: str
    name: str
    is_factory: bool


def _served(tree: Tree, found: _Found, app: PythonApp, findings: Findings) -> Start | None:
    framework, file = found.framework, found.file
    servers = _SERVERS[framework.protocol]
    have = app.dependencies | app.extras
    have |= {server for package, server in _BROUGHT.items() if package in have}
    server = next((name for name in servers if name in have), None)
    if server is None:
        if framework.protocol == "wsgi" and "PORT" in found.source and "__main__" in found.source:
            return Start(shell(f"python {file}"), file, framework.name)
        needed = next(iter(servers))
        findings.refuse(
            f"{framework.name} is in {file}, and no server for it is among the packages",
            why=f"a {framework.name} app is started by a server such as {' or '.join(list(servers)[:2])}",
            todo=f"Add {needed}: {adding(needed, app)}",
        )
        return None
    module, path = _module(tree, file, found.source, app)
    argument, ending = _FACTORY.get(server, ("{app}", "")) if found.is_factory else ("{app}", "")
    command = servers[server].format(app=argument.format(app=f"{module}:{found.name}")) + ending
    return Start(shell((f"PYTHONPATH={path}:. " if path else "") + command), file, framework.name)


def _module(tree: Tree, file: str, source: str, app: PythonApp) -> tuple[str, str]:
    """The module of a file, and the folder that must be on the path for it; empty: the app's root."""
    parts = file.removesuffix(".py").removesuffix("/__init__").split("/")
    if len(parts) == 1:
        return parts[0], ""
    folder = parts[0]
    if folder == "src":
        if app.packages.project and not tree.has("src/__init__.py"):
            return ".".join(parts[1:]), ""
        if re.search(r"^[ \t]*(?:from|import)[ \t]+src\b", source, re.MULTILINE) or tree.has("src/__init__.py"):
            return ".".join(parts), ""
        return ".".join(parts[1:]), "src"
    if tree.has(f"{folder}/__init__.py") or re.search(
        rf"^[ \t]*(?:from|import)[ \t]+(?:\.|{re.escape(folder)}\b)", source, re.MULTILINE
    ):
        return ".".join(parts), ""
    imported = re.findall(r"^(?:from|import)[ \t]+([A-Za-z_]\w{0,60})", source, re.MULTILINE)
    siblings = any(tree.has(f"{folder}/{name}.py") or tree.has_folder(f"{folder}/{name}") for name in imported)
    return (".".join(parts[1:]), folder) if siblings else (".".join(parts), "")


def _plain(tree: Tree, app: PythonApp, findings: Findings) -> Start | None:
    """A file that is run as it is, a package with `__main__.py`, or the project's own command."""
    file = tree.first(*_PLAIN_FILES)
    framework = next((name for package, name in _PROGRAMS.items() if package in app.dependencies), None)
    if file is not None:
        source = tree.source(file)
        is_bot = any(package in app.dependencies for package in _BOTS) and not _LISTENS.search(source)
        if is_bot:
            return Start(shell(f"python {file}"), file, "bot", process="worker")
        if source and "PORT" not in source and not framework:
            findings.note(f"{file} does not mention PORT: a web app listens on the port in that variable")
        return Start(shell(f"python {file}"), file, framework)
    modules = [
        name for name in tree.matching("*/__main__.py", "src/*/__main__.py") if name.split("/")[0] not in _NOT_THE_APP
    ]
    if len(modules) == 1:
        module, path = _module(tree, modules[0].removesuffix("/__main__.py") + "/__init__.py", "", app)
        return Start(shell((f"PYTHONPATH={path}:. " if path else "") + f"python -m {module}"), modules[0], framework)
    if len(app.scripts) == 1 and app.packages.project:
        return Start((app.scripts[0],), "`project.scripts` of pyproject.toml", framework)
    return None
