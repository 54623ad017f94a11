"""Django: the WSGI module behind `manage.py`, a server for it, and `collectstatic` as a step of the build."""

import re

from services.source.contract import BuildStep
from services.source.plan.findings import Findings
from services.source.plan.procfile import shell
from services.source.plan.python_packages import PythonApp, adding
from services.source.plan.starts import Start
from services.source.plan.tree import Tree

_SETTINGS = re.compile(r"DJANGO_SETTINGS_MODULE[\"'],?\]?\s*[,=]\s*[\"']([A-Za-z_][\w.]{0,200})[\"']", re.ASCII)
_APPLICATION = re.compile(
    r"^[ \t]*(WSGI|ASGI)_APPLICATION\s*=\s*[\"']([A-Za-z_][\w.]{0,200})\.(\w{1,60})[\"']", re.MULTILINE | re.ASCII
)
_WSGI_SERVERS = {
    "gunicorn": "gunicorn --bind 0.0.0.0:$PORT {app}",
    "waitress": "waitress-serve --listen=0.0.0.0:$PORT {app}",
    "uwsgi": "uwsgi --http-socket 0.0.0.0:$PORT --master --die-on-term --module {app}",
}
_ASGI_SERVERS = {
    "uvicorn": "uvicorn {app} --host 0.0.0.0 --port $PORT",
    "daphne": "daphne -b 0.0.0.0 -p $PORT {app}",
    "hypercorn": "hypercorn {app} --bind 0.0.0.0:$PORT",
    "granian": "granian --interface asgi --host 0.0.0.0 --port $PORT {app}",
}

_ALWAYS_ROOT = re.compile(r"^STATIC_ROOT\b|^from configurations import", re.MULTILINE)
"""An assignment of the module itself, or settings in classes. One under an `if` may not happen in a build."""


def manage_file(tree: Tree, app: PythonApp) -> str | None:
    """Where `manage.py` of a Django project is, at most two folders deep; None: it is no Django project."""
    if "django" not in app.dependencies:
        return None
    found = tree.first("manage.py") or next(iter(tree.matching("*/manage.py", "*/*/manage.py")), None)
    return found if found and "django" in tree.source(found).lower() else None


def django_start(tree: Tree, app: PythonApp, findings: Findings) -> Start | None:
    """Return how a Django project is started, or None; one without a server is a refusal."""
    manage = manage_file(tree, app)
    if manage is None:
        return None
    folder = manage.removesuffix("manage.py")
    project = _project(tree, manage)
    wsgi = _module(tree, folder, project, "wsgi")
    asgi = _module(tree, folder, project, "asgi")
    servers = {**(_WSGI_SERVERS if wsgi else {}), **(_ASGI_SERVERS if asgi else {})}
    server = next((name for name in servers if name in app.dependencies), None)
    if server is None:
        if not servers:
            findings.refuse(
                f"Django is in {manage}, and no wsgi.py or asgi.py is found for it",
                todo="Add a Procfile with a line such as `web: gunicorn --bind 0.0.0.0:$PORT mysite.wsgi`.",
            )
        else:
            findings.refuse(
                f"Django is in {manage}, and no server for it is among the packages",
                why="`manage.py runserver` is made for development alone",
                todo=f"Add gunicorn: {adding('gunicorn', app)}",
            )
        return None
    command = servers[server].format(app=f"{wsgi if server in _WSGI_SERVERS else asgi}")
    command = (f"PYTHONPATH={folder.rstrip('/')}:. " if folder else "") + command
    return Start(shell(command), manage, "Django")


def collectstatic(tree: Tree, app: PythonApp, findings: Findings) -> tuple[BuildStep, ...]:
    """The step that gathers static files, where the settings have a place for them."""
    manage = manage_file(tree, app)
    if manage is None:
        return ()
    settings = _settings(tree, manage)
    if not any("django.contrib.staticfiles" in source for source in settings.values()):
        return ()
    with_root = next((file for file, source in settings.items() if _ALWAYS_ROOT.search(source)), None)
    if with_root is None:
        sometimes = next((file for file, source in settings.items() if "STATIC_ROOT" in source), None)
        why = f"{sometimes} sets STATIC_ROOT under a condition" if sometimes else "the settings have no STATIC_ROOT"
        findings.note(f"collectstatic does not run: {why}")
        return ()
    findings.found(f"Build: python {manage} collectstatic --noinput (STATIC_ROOT of {with_root})")
    unless = '[ "${DISABLE_COLLECTSTATIC:-0}" != 0 ] ||'
    return (
        BuildStep(
            name="collectstatic",
            command=shell(f"{unless} python {manage} collectstatic --noinput"),
            language="python",
        ),
    )


def _project(tree: Tree, manage: str) -> str:
    """The package of the settings module: `mysite` of `mysite.settings.production`."""
    match = _SETTINGS.search(tree.source(manage))
    return match[1].partition(".settings")[0] if match else ""


def _module(tree: Tree, folder: str, project: str, kind: str) -> str | None:
    """`mysite.wsgi:application`, or None where there is no such file."""
    for source in _settings_sources(tree, folder).values():
        for match in _APPLICATION.finditer(source):
            if match[1].lower() == kind and tree.has(f"{folder}{match[2].replace('.', '/')}.py"):
                return f"{match[2]}:{match[3]}"
    places = [project.replace(".", "/")] if project else []
    places += [name.removesuffix(f"/{kind}.py").removeprefix(folder) for name in tree.matching(f"{folder}*/{kind}.py")]
    for place in places:
        if place and tree.has(f"{folder}{place}/{kind}.py"):
            return f"{place.replace('/', '.')}.{kind}:application"
    return None


def _settings_sources(tree: Tree, folder: str) -> dict[str, str]:
    patterns = ("*/settings.py", "*/settings/*.py", "settings.py", "settings/*.py", "*/*/settings.py", "*/conf/*.py")
    names = tree.matching(*(f"{folder}{pattern}" for pattern in patterns))
    return {name: tree.source(name) for name in names[:40]}


def _settings(tree: Tree, manage: str) -> dict[str, str]:
    folder = manage.removesuffix("manage.py")
    match = _SETTINGS.search(tree.source(manage))
    named = f"{folder}{match[1].replace('.', '/')}.py" if match else ""
    found = _settings_sources(tree, folder)
    return {named: tree.source(named), **found} if named and tree.has(named) else found
