"""Small repositories that other platforms got wrong in public: what must be planned for each."""

from typing import Any

from services.source.contract import HealthCheck
from tests.services.source.planning import planned, refused, said, web

PYTHON: dict[str, Any] = {"Procfile": "web: python app.py\n", "requirements.txt": "", "app.py": "PORT"}
PROJECT = '[project]\nname = "shop"\nversion = "0.1.0"\nrequires-python = ">=3.11"\ndependencies = ["markupsafe>=2"]\n'


def test_lines_end_at_lf_or_cr_lf_only() -> None:
    """U+2028 and its like are characters of a command; no process type appears from them."""
    for separator in ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\r"):
        line = f"python app.py --title 'a{separator}worker: b'"
        assert planned(PYTHON | {"Procfile": f"web: {line}\n"}).processes == {"web": ("/bin/sh", "-c", line)}


def test_process_names_that_heroku_takes_are_taken() -> None:
    """Letters of both cases, digits, `-` and `_`."""
    found = planned(PYTHON | {"Procfile": "web: a\ncelery_beat: b\nWorker-2: c\n3: d\n"})
    assert list(found.processes) == ["web", "celery_beat", "Worker-2", "3"]


def test_web_in_another_case_is_asked_about() -> None:
    """Only `web` gets traffic."""
    found = planned(PYTHON | {"Procfile": "Web: python app.py\n"})
    assert any("Is `web` meant?" in note for note in found.notes)
    assert list(found.processes) == ["Web"]


def test_an_app_json_of_another_tool_is_passed_over() -> None:
    """Expo's, React Native's, a mini program's, and any other without a key of Heroku's."""
    others: tuple[dict[str, Any], ...] = (
        {"expo": {"name": "shop", "slug": "shop"}},
        {"name": "Shop", "displayName": "Shop"},
        {"pages": ["pages/index"], "window": {}},
        {"apps": [{"script": "x"}]},
    )
    for content in others:
        found = planned(PYTHON | {"app.json": content})
        assert any(note.startswith("app.json is passed over") for note in found.notes), content


def test_an_unknown_key_of_app_json_is_named_and_the_app_is_deployed() -> None:
    """Other platforms have keys of their own; a key that is nearly right is asked about."""
    found = planned(PYTHON | {"app.json": {"name": "x", "license": "MIT", "formations": {}, "stack": "heroku-24"}})
    assert "not honoured: `license` of app.json, which is not known." in found.notes
    assert "not honoured: `formations` of app.json, which is not known. Is `formation` meant?" in found.notes
    assert "not honoured: `stack` of app.json" in found.notes


def test_scripts_of_app_json_are_run_or_named() -> None:
    """Dokku's predeploy script changes what is built; the others have no place."""
    scripts = {"postdeploy": "a", "test": "b", "dokku": {"predeploy": "touch x", "postdeploy": "c"}}
    found = planned(PYTHON | {"app.json": {"scripts": scripts}})
    assert [(step.command, step.language) for step in found.build] == [(("/bin/sh", "-c", "touch x"), "python")]
    for name in ("scripts.postdeploy", "scripts.test", "scripts.dokku.postdeploy"):
        assert any(f"not honoured: `{name}`" in note for note in found.notes)
    docker = planned({"Dockerfile": "", "app.json": {"scripts": scripts}}, builder="buildx")
    assert any("not honoured: scripts.dokku.predeploy" in note for note in docker.notes)


def test_add_ons_of_other_companies_are_named_and_the_app_is_deployed() -> None:
    """Their service is reached by a config var."""
    found = planned(PYTHON | {"app.json": {"addons": ["papertrail", "heroku-postgresql:mini"]}})
    assert [addon.kind for addon in found.addons] == ["postgres"]
    assert any("'papertrail'" in note for note in found.notes)


def test_port_among_the_config_vars_is_named() -> None:
    """The platform gives it."""
    found = planned(PYTHON | {"app.json": {"env": {"PORT": "80", "A": {"value": "1", "sync": True}}}})
    assert list(found.env) == ["A"]
    assert "not honoured: `env.PORT` of app.json: the platform gives PORT" in found.notes
    assert any("`env.A.sync`" in note for note in found.notes)


def test_every_key_of_a_health_check_is_obeyed() -> None:
    """On every process type."""
    web_checks = [
        {
            "type": "readiness",
            "name": "ready",
            "path": "/health",
            "port": 8080,
            "content": "ok",
            "httpHeaders": [{"name": "Host", "value": "shop.example.com"}],
            "attempts": 60,
            "timeout": 5,
            "wait": 2,
            "initialDelay": 70,
        },
        {"type": "liveness", "listening": True},
        {"type": "startup", "uptime": 10},
    ]
    checks = {"web": web_checks, "worker": [{"command": ["/bin/true"]}, {"command": "test -f x", "path": "/"}]}
    files = PYTHON | {"Procfile": "web: a\nworker: b\n", "app.json": {"healthchecks": checks}}
    found = planned(files).checks
    assert found["web"] == (
        HealthCheck(
            type="readiness",
            name="ready",
            path="/health",
            port=8080,
            content="ok",
            headers={"Host": "shop.example.com"},
            attempts=60,
            timeout_s=5,
            wait_s=2,
            initial_delay_s=70,
        ),
        HealthCheck(type="liveness", listening=True),
        HealthCheck(uptime_s=10),
    )
    command = HealthCheck(command=("/bin/sh", "-c", "test -f x"))
    assert found["worker"] == (HealthCheck(command=("/bin/true",)), command, HealthCheck(path="/"))


def test_wrong_values_of_a_health_check_are_errors_all_at_once() -> None:
    """A text for a number, a negative number, an object, a port that is none, and too long in all."""
    wrong = {
        "attempts": "many",
        "wait": -1,
        "timeout": {"x": 1},
        "port": 0,
        "scheme": "https",
        "listening": "yes",
        "content": 1,
        "httpHeaders": [{"name": "A\n", "value": "b"}],
        "command": [],
        "initialDelay": True,
        "type": "sometimes",
    }
    message = refused(PYTHON | {"app.json": {"healthchecks": {"web": [wrong]}}})
    for key in wrong:
        assert f"healthchecks.web[0].{key}`" in message
    long = {"attempts": 1000, "wait": 60}
    assert "may take 65000 s" in refused(PYTHON | {"app.json": {"healthchecks": {"web": [long]}}})
    for value in ({"attempts": 1.5}, {"attempts": 10**400}, {"pth": "/"}):
        assert "healthchecks.web[0]" in refused(PYTHON | {"app.json": {"healthchecks": {"web": [value]}}})


def test_keys_of_a_check_that_have_no_place_are_named() -> None:
    """A check that may fail decides nothing, and is left out."""
    checks = {"web": [{"path": "/a", "onFailure": {"url": "x"}}, {"path": "/b", "warn": True}], "cron": [{"path": "/"}]}
    found = planned(PYTHON | {"app.json": {"healthchecks": checks}})
    assert [check.path for check in found.checks["web"]] == ["/a"]
    notes = "\n".join(found.notes)
    assert "healthchecks.web[0].onFailure" in notes
    assert "healthchecks.web[1].warn" in notes
    assert "`healthchecks.cron`" in notes


def test_crons_are_kept_and_a_wrong_schedule_is_an_error() -> None:
    """Five fields, or a name for them."""
    crons = [{"command": "python job.py", "schedule": "0 3 * * *"}, {"command": "x", "schedule": "@daily"}]
    found = planned(PYTHON | {"app.json": {"cron": crons}})
    assert [each.schedule for each in found.crons] == ["0 3 * * *", "0 0 * * *"]
    for schedule in ("0 3 * *", "every day", "", "0 3 * * $(id)"):
        wrong = {"cron": [{"command": "x", "schedule": schedule}]}
        assert "cron[0].schedule" in refused(PYTHON | {"app.json": wrong})


def test_an_app_with_one_worker_and_no_web_has_one_of_it() -> None:
    """With several, the note says which command starts one."""
    found = planned(PYTHON | {"Procfile": "worker: python work.py\n"})
    assert (list(found.processes), found.formation) == (["worker"], {"worker": 1})
    several = planned(PYTHON | {"Procfile": "a: x\nb: y\n"})
    assert several.formation == {}
    assert "no `web` process: nothing runs until `knarr scale APP a=1`" in several.notes


def test_two_sources_of_python_that_differ_are_an_error() -> None:
    """2.0.1 in one file, 2.1.3 in the other."""
    lock = '[[package]]\nname = "markupsafe"\nversion = "2.1.3"\n'
    files = PYTHON | {"requirements.txt": "markupsafe==2.0.1\n", "pyproject.toml": PROJECT, "uv.lock": lock}
    message = refused(files)
    assert "uv.lock and requirements.txt do not agree" in message
    assert "markupsafe==2.0.1, uv.lock has 2.1.3" in message


def test_a_pipfile_and_a_setup_py_are_read() -> None:
    """Never an app without packages, on whatever the machine's own Python has."""
    pipfile = planned({"Procfile": "web: python app.py", "Pipfile": '[packages]\nidna = "*"\n'})
    assert (pipfile.runtime.kind, pipfile.packages[0].tool) == ("python", "pipenv")
    setup = planned({"Procfile": "web: python app.py", "setup.py": "setup(install_requires=['markupsafe==2.1.3'])"})
    assert (setup.packages[0].project, setup.packages[0].manifests) == (True, ("setup.py",))
    both = planned({"Procfile": "web: python app.py", "setup.py": "setup()", "pyproject.toml": "[build-system]\n"})
    assert both.packages[0].manifests == ("setup.py", "pyproject.toml")


def test_requires_python_is_asked_for() -> None:
    """Not left to whatever the machine has."""
    found = planned({"Procfile": "web: python app.py", "pyproject.toml": PROJECT.replace("3.11", "3.13")})
    assert (found.runtime.version, found.packages[0].version_file) == (">=3.13", "pyproject.toml")


def test_the_new_keys_of_cupaas_yml() -> None:
    """Port, storage, health check and build."""
    text = (
        "port: 18473\nstorage: [/data, {path: /var/lib/x/, size: 2G}]\nhealth: {path: /up, attempts: 5, wait: 1}\n"
        "build: {command: make all}\n"
    )
    found = planned(PYTHON | {".cupaas.yml": text})
    assert found.port == 18473
    assert [(each.path, each.size_bytes) for each in found.storage] == [("/data", None), ("/var/lib/x", 2 * 1024**3)]
    assert found.checks == {"web": (HealthCheck(path="/up", attempts=5, wait_s=1),)}
    assert [step.command for step in found.build] == [("/bin/sh", "-c", "make all")]
    assert planned(PYTHON | {".cupaas.yml": "health: /up\n"}).checks == {"web": (HealthCheck(path="/up"),)}


def test_wrong_values_of_the_new_keys_are_errors_all_at_once() -> None:
    """Each by its name."""
    text = (
        "port: 70000\nstorage: [data, /a/../b, {path: /c, size: big}]\nhealth: [{path: up}]\n"
        "build: {dockerfile: /etc/x, target: 'a b', args: [A-B], output: ../x, cmd: y}\nservice: x\n"
    )
    message = refused(PYTHON | {".cupaas.yml": text})
    for part in (
        "`port` is '70000'",
        "`storage.path` is 'data'",
        "`storage.path` is '/a/../b'",
        "`storage.size` is 'big'",
        "`health[0].path` is 'up'",
        "`build.dockerfile`",
        "`build.target`",
        "`build.args`",
        "`build.output`",
        "`build.cmd` is not known",
        "`service` is not known. Is `services` meant?",
    ):
        assert part in message


def test_the_same_decision_is_said_with_its_file() -> None:
    """What is detected, and from where."""
    found = planned(
        {"requirements.txt": "fastapi\nuvicorn\n", "main.py": "app = FastAPI()\n", ".python-version": "3.12"}
    )
    assert found.detected == (
        "Python 3.12 (.python-version): pip installs requirements.txt, not locked",
        "web: uvicorn main:app --host 0.0.0.0 --port $PORT (FastAPI, main.py)",
    )
    assert web(found) in said(found)
