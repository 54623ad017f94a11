"""How a Python app without a Procfile is started: its framework, and a server among its packages."""

import re
from typing import Any

import pytest

from tests.services.source.planning import Files, planned, refused, web

PROJECT = '[project]\nname = "shop"\nversion = "0.1.0"\nrequires-python = ">=3.11"\ndependencies = ["markupsafe>=2"]\n'
FASTAPI = "from fastapi import FastAPI\napp = FastAPI()\n"
FLASK = "from flask import Flask\napp = Flask(__name__)\n"


@pytest.mark.parametrize(
    ("needs", "files", "command", "framework"),
    [
        ("fastapi\nuvicorn", {"main.py": FASTAPI}, "uvicorn main:app --host 0.0.0.0 --port $PORT", "FastAPI"),
        ("fastapi[standard]", {"main.py": FASTAPI}, "uvicorn main:app --host 0.0.0.0 --port $PORT", "FastAPI"),
        ("fastapi\nhypercorn", {"app.py": FASTAPI}, "hypercorn app:app --bind 0.0.0.0:$PORT", "FastAPI"),
        (
            "fastapi\ngranian",
            {"app.py": FASTAPI},
            "granian --interface asgi --host 0.0.0.0 --port $PORT app:app",
            "FastAPI",
        ),
        (
            "fastapi\nuvicorn\ngunicorn",
            {"app/main.py": FASTAPI, "app/__init__.py": ""},
            "uvicorn app.main:app --host",
            "FastAPI",
        ),
        ("fastapi\nuvicorn", {"src/main.py": FASTAPI}, "PYTHONPATH=src:. uvicorn main:app", "FastAPI"),
        ("fastapi\nuvicorn", {"src/main.py": "from src import x\n" + FASTAPI}, "uvicorn src.main:app", "FastAPI"),
        (
            "fastapi\nuvicorn",
            {"backend/main.py": "import db\n" + FASTAPI, "backend/db.py": ""},
            "PYTHONPATH=backend:. uvicorn main:app",
            "FastAPI",
        ),
        ("fastapi\nuvicorn", {"main.py": "api: FastAPI = fastapi.FastAPI(title='x')\n"}, "uvicorn main:api", "FastAPI"),
        (
            "fastapi\nuvicorn",
            {"main.py": "def create_app():\n    return FastAPI()\n"},
            "uvicorn main:create_app --host 0.0.0.0 --port $PORT --factory",
            "FastAPI",
        ),
        ("flask\ngunicorn", {"app.py": FLASK}, "gunicorn --bind 0.0.0.0:$PORT app:app", "Flask"),
        ("Flask==3.0\nwaitress", {"app.py": FLASK}, "waitress-serve --listen=0.0.0.0:$PORT app:app", "Flask"),
        (
            "flask\ngunicorn",
            {"app.py": "def create_app():\n  return Flask('x')\n"},
            "gunicorn --bind 0.0.0.0:$PORT 'app:create_app()'",
            "Flask",
        ),
        (
            "flask\ngunicorn",
            {
                "shop/__init__.py": "def create_app():\n  return Flask('x')\n",
                "wsgi.py": "from shop import create_app\napp = create_app()\n",
            },
            "gunicorn --bind 0.0.0.0:$PORT wsgi:app",
            "Flask",
        ),
        (
            "flask",
            {"app.py": FLASK + "if __name__ == '__main__':\n  app.run(port=os.environ['PORT'])\n"},
            "python app.py",
            "Flask",
        ),
        ("starlette\nuvicorn", {"main.py": "app = Starlette(routes=[])\n"}, "uvicorn main:app", "Starlette"),
        ("litestar[standard]", {"app.py": "app = Litestar([root])\n"}, "uvicorn app:app", "Litestar"),
        ("quart", {"app.py": "app = Quart(__name__)\n"}, "hypercorn app:app --bind 0.0.0.0:$PORT", "Quart"),
        ("sanic", {"server.py": "app = Sanic('x')\n"}, "sanic server:app --host 0.0.0.0 --port $PORT", "Sanic"),
        ("python-fasthtml", {"main.py": "app, rt = fast_app()\n"}, "uvicorn main:app", "FastHTML"),
        (
            "dash\ngunicorn",
            {"app.py": "app = Dash(__name__)\nserver = app.server\n"},
            "gunicorn --bind 0.0.0.0:$PORT app:server",
            "Dash",
        ),
        (
            "falcon\ngunicorn",
            {"app.py": "application = falcon.App()\n"},
            "gunicorn --bind 0.0.0.0:$PORT app:application",
            "Falcon",
        ),
        ("falcon\nuvicorn", {"app.py": "app = falcon.asgi.App()\n"}, "uvicorn app:app", "Falcon"),
        (
            "bottle\ngunicorn",
            {"app.py": "app = bottle.default_app()\n"},
            "gunicorn --bind 0.0.0.0:$PORT app:app",
            "Bottle",
        ),
        (
            "streamlit",
            {"app.py": "import streamlit as st\n"},
            "streamlit run app.py --server.port $PORT --server.address 0.0.0.0 --server.headless true",
            "Streamlit",
        ),
        (
            "streamlit\nfastapi\nuvicorn",
            {"streamlit_app.py": "import streamlit as st\n"},
            "streamlit run streamlit_app.py",
            "Streamlit",
        ),
        (
            "gradio",
            {"app.py": "import gradio as gr\ngr.Interface(f).launch()\n"},
            "GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=$PORT python app.py",
            "Gradio",
        ),
        (
            "marimo",
            {"notebook.py": "import marimo\napp = marimo.App()\n"},
            "marimo run notebook.py --host 0.0.0.0 --port $PORT --headless",
            "marimo",
        ),
        ("aiohttp", {"main.py": "web.run_app(app, port=int(os.environ['PORT']))\n"}, "python main.py", "aiohttp"),
        ("", {"main.py": "print(os.environ['PORT'])"}, "python main.py", None),
        ("", {"app.py": "PORT"}, "python app.py", None),
        ("", {"server.py": "PORT"}, "python server.py", None),
        ("", {"shop/__main__.py": ""}, "python -m shop", None),
    ],
)
def test_the_start_of_an_app_without_a_procfile(needs: str, files: Files, command: str, framework: str | None) -> None:
    """The framework's app in the source, and the server among the packages."""
    found = planned({"requirements.txt": needs, **files})
    assert command in web(found)
    assert found.framework == framework


def test_the_framework_of_an_app_with_a_procfile_is_named_too() -> None:
    """Its command stays the Procfile's."""
    found = planned(
        {"requirements.txt": "fastapi\n", "main.py": FASTAPI, "Procfile": "web: uvicorn main:app --port $PORT"}
    )
    assert (found.framework, web(found)) == ("FastAPI", "uvicorn main:app --port $PORT")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {"requirements.txt": "fastapi\n", "main.py": FASTAPI},
            "no server for it is among the packages.*echo uvicorn >> requirements.txt",
        ),
        ({"pyproject.toml": PROJECT.replace("markupsafe>=2", "fastapi"), "main.py": FASTAPI}, "uv add uvicorn"),
        ({"Pipfile": '[packages]\nflask = "*"\n', "app.py": FLASK}, "pipenv install gunicorn"),
        ({"requirements.txt": "flask\n", "app.py": FLASK}, "echo gunicorn >> requirements.txt"),
        (
            {
                "requirements.txt": "django\n",
                "manage.py": "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'site.settings')\nimport django",
                "site/wsgi.py": "",
            },
            "runserver. is made for development.*echo gunicorn",
        ),
        ({"requirements.txt": "django\ngunicorn\n", "manage.py": "import django"}, "no wsgi.py or asgi.py"),
        ({"requirements.txt": "requests\n"}, "Nothing says how to start this python app"),
    ],
)
def test_what_is_missing_is_advised_by_name(files: Files, says: str) -> None:
    """With the command of the project's own tool."""
    assert re.search(says, refused(files), re.DOTALL)


DJANGO: dict[str, Any] = {
    "requirements.txt": "django\ngunicorn\n",
    "manage.py": "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'mysite.settings')\nfrom django.core import x\n",
    "mysite/settings.py": "INSTALLED_APPS = ['django.contrib.staticfiles']\nSTATIC_ROOT = 'static'\n",
    "mysite/wsgi.py": "application = get_wsgi_application()",
}


def test_django_is_served_by_gunicorn_and_gathers_its_static_files_in_the_build() -> None:
    """With Heroku's switch; migrations are a line of the Procfile, never run by themselves."""
    found = planned(DJANGO)
    assert web(found) == "gunicorn --bind 0.0.0.0:$PORT mysite.wsgi:application"
    (step,) = found.build
    assert step.language == "python"
    assert step.command[2] == ('[ "${DISABLE_COLLECTSTATIC:-0}" != 0 ] || python manage.py collectstatic --noinput')
    assert (found.framework, found.release) == ("Django", None)


@pytest.mark.parametrize(
    ("change", "command", "steps"),
    [
        ({"mysite/settings.py": "INSTALLED_APPS = ['django.contrib.staticfiles']\n"}, "mysite.wsgi:application", 0),
        ({"mysite/settings.py": "STATIC_ROOT = 'x'\n"}, "mysite.wsgi:application", 0),
        (
            {"mysite/settings.py": "'django.contrib.staticfiles'\nif not DEBUG:\n    STATIC_ROOT = 'x'\n"},
            "mysite.wsgi",
            0,
        ),
        (
            {"mysite/settings.py": "", "mysite/settings/base.py": "'django.contrib.staticfiles'\nSTATIC_ROOT = 1"},
            "mysite.wsgi",
            1,
        ),
        ({"mysite/settings.py": "WSGI_APPLICATION = 'other.wsgi.app'\n", "other/wsgi.py": ""}, "other.wsgi:app", 0),
        ({"requirements.txt": "django\nuvicorn\n", "mysite/asgi.py": ""}, "uvicorn mysite.asgi:application --host", 1),
        ({"requirements.txt": "django\ndaphne\n", "mysite/asgi.py": ""}, "daphne -b 0.0.0.0 -p $PORT mysite.asgi", 1),
        ({"Procfile": "web: gunicorn mysite.wsgi\nrelease: python manage.py migrate\n"}, "gunicorn mysite.wsgi", 1),
        ({"Procfile": "web: python manage.py collectstatic && gunicorn mysite.wsgi\n"}, "gunicorn mysite.wsgi", 0),
    ],
)
def test_django_in_its_variants(change: dict[str, str], command: str, steps: int) -> None:
    """Settings in a package, an ASGI server, a Procfile of its own."""
    found = planned(DJANGO | change)
    assert command in web(found)
    assert len(found.build) == steps
    assert found.framework == "Django"


def test_django_below_a_folder() -> None:
    """`manage.py` is found two folders deep, as Heroku's buildpack does."""
    files = {name if name == "requirements.txt" else f"backend/{name}": text for name, text in DJANGO.items()}
    found = planned(files)
    assert web(found) == "PYTHONPATH=backend:. gunicorn --bind 0.0.0.0:$PORT mysite.wsgi:application"
    assert "python backend/manage.py collectstatic" in found.build[0].command[2]


def test_a_bot_is_a_worker_and_one_of_it_runs() -> None:
    """It has no port, and a release without `web` would run nothing."""
    found = planned({"requirements.txt": "discord.py\n", "bot.py": "client.start(token)\n"})
    assert list(found.processes) == ["worker"]
    assert found.formation == {"worker": 1}


def test_tests_and_scripts_are_not_the_app() -> None:
    """An app object in a folder of tests is not what is deployed."""
    files = {"tests/app.py": FASTAPI, "examples/main.py": FASTAPI, "shop/app.py": FASTAPI, "shop/__init__.py": ""}
    assert "shop.app:app" in web(planned({"requirements.txt": "fastapi\nuvicorn\n", **files}))


@pytest.mark.parametrize("procfile", ["web: python app.py", "web: gunicorn app:app", "web: FOO=1 exec python3.11 -m x"])
def test_a_procfile_that_starts_python_makes_a_python_app(procfile: str) -> None:
    """Never one that runs on whatever Python the machine has."""
    found = planned({"Procfile": procfile})
    assert found.runtime.kind == "python"
    assert found.packages[0].manifests == ()


def test_mkdocs_is_built_and_served_as_files() -> None:
    """Where its package is installed; an app that has a page of documentation too stays an app."""
    site: dict[str, Any] = {"requirements.txt": "mkdocs\n", "mkdocs.yml": "site_name: x\nsite_dir: out\n"}
    found = planned(site)
    assert (found.runtime.kind, found.output, found.framework) == ("static", "out", "MkDocs")
    assert found.build[0].command == ("mkdocs", "build", "--config-file", "mkdocs.yml", "--site-dir", "out")
    assert planned(site | {"main.py": "PORT"}).runtime.kind == "python"


@pytest.mark.parametrize(
    ("line", "runs"),
    [
        ("poetry run gunicorn app:app", "gunicorn app:app"),
        ("uv run --no-sync uvicorn app:app", "uvicorn app:app"),
        ("pipenv run python a.py && exec pipenv run python b.py", "python a.py && exec python b.py"),
        ("uv run --with x python a.py", "uv run --with x python a.py"),
        ("echo poetry run x", "echo poetry run x"),
    ],
)
def test_the_runner_of_a_tool_is_left_out_of_a_command(line: str, runs: str) -> None:
    """The tool is no part of an image, whose packages are on PATH."""
    found = planned({"requirements.txt": "", "Procfile": f"web: {line}\nrelease: {line}\n"})
    assert web(found) == runs
    assert found.release == ("/bin/sh", "-c", runs)
