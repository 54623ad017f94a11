"""What an app's files say of it, and what is said of files that are wrong."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.source.contract import AddOn, AppDescription, EnvVar, Runtime
from services.source.errors import AppInvalid
from services.source.plan import Capabilities, Tree, plan
from services.source.plan.formats import MAX_YAML_BYTES
from services.source.plan.tree import MAX_FILE_BYTES

REQUIREMENTS = {"requirements.txt": b"flask\n"}
PROCFILE = {"Procfile": b"web: gunicorn app:app\n"}
PYTHON = REQUIREMENTS | PROCFILE
WEB = {"web": ("/bin/sh", "-c", "gunicorn app:app")}


def describe(files: Mapping[str, bytes]) -> AppDescription:
    return plan(Tree.of(files))


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def app_json(**content: Any) -> AppDescription:
    return describe(PYTHON | {"app.json": as_json(content)})


def cupaas(text: str, **files: bytes) -> AppDescription:
    return describe({".cupaas.yml": text.encode(), "Procfile": b"web: run\n"} | files)


# --- what is understood ---------------------------------------------------------------------------------------------


def test_a_python_app_with_a_procfile() -> None:
    """Requirements say the language, the Procfile how it runs."""
    found = describe(PYTHON)
    assert (found.runtime, found.processes) == (Runtime(kind="python"), WEB)


def test_each_line_of_a_procfile_is_a_process_type_and_release_is_its_own() -> None:
    """Blank lines and comments are passed over; a command may have colons and blanks."""
    procfile = b"\xef\xbb\xbf# how it runs\r\nweb:  gunicorn app:app --bind :$PORT \r\n\n"
    procfile += b"worker: python -m jobs\nrelease: ./migrate\n"
    found = describe(REQUIREMENTS | {"Procfile": procfile})
    assert found.processes == {
        "web": ("/bin/sh", "-c", "gunicorn app:app --bind :$PORT"),
        "worker": ("/bin/sh", "-c", "python -m jobs"),
    }
    assert found.release == ("/bin/sh", "-c", "./migrate")


@pytest.mark.parametrize(
    ("files", "version"),
    [
        ({".python-version": b"3.11\n"}, "3.11"),
        ({".python-version": b"# ours\n\n 3.11.7 \n3.10\n"}, "3.11.7"),
        ({"runtime.txt": b"python-3.10.4"}, "3.10.4"),
        ({".python-version": b"3.12", "runtime.txt": b"python-3.10"}, "3.12"),
        ({".cupaas.yml": b"runtime: python:3.10", ".python-version": b"3.12"}, "3.10"),
        ({}, None),
    ],
)
def test_the_python_version(files: dict[str, bytes], version: str | None) -> None:
    """`.cupaas.yml`, then `.python-version`, then `runtime.txt`; `3.10` is not `3.1`."""
    assert describe(PYTHON | files).runtime == Runtime(kind="python", version=version)


@pytest.mark.parametrize(
    ("asked", "version"),
    [
        ("20", "20"),
        ("20.x", "20.x"),
        ("v20.1.2", "20.1.2"),
        ("^20.1", "^20.1"),
        (">=18 <23", ">=18 <23"),
        ("18 || 20", "18 || 20"),
        ("lts/iron", "20"),
        ("lts/*", None),
        ("latest", None),
        ("*", None),
    ],
)
def test_the_node_version(asked: str, version: str | None) -> None:
    """The range is passed on as it is written; the name of a release line is its number."""
    package = {"engines": {"node": asked}, "scripts": {"start": "node ."}}
    assert describe({"package.json": as_json(package)}).runtime == Runtime(kind="node", version=version)


def test_a_node_app_starts_as_npm_start_would_without_npm_in_between() -> None:
    """It would not pass SIGTERM on; `node server.js` is npm's own default; a Procfile is stronger."""
    package = {"package.json": as_json({"scripts": {"start": "next start"}})}
    assert describe(package).processes == {"web": ("/bin/sh", "-c", "next start")}
    assert describe({"package.json": b"{}", "server.js": b""}).processes == {"web": ("node", "server.js")}
    assert describe(package | PROCFILE).processes == WEB
    assert describe(package | {"Procfile": b"worker: node w.js"}).processes == {
        "web": ("/bin/sh", "-c", "next start"),
        "worker": ("/bin/sh", "-c", "node w.js"),
    }


def test_a_page_is_a_static_site() -> None:
    """It has no process of its own: the builder decides how it is served."""
    found = describe({"index.html": b"<h1>hello"})
    assert (found.runtime, found.processes, found.output) == (Runtime(kind="static"), {}, None)


def test_a_procfile_alone_is_enough() -> None:
    """Whatever the language is: the repository brings its program along."""
    found = describe({"Procfile": b"web: ./server"})
    assert (found.runtime, found.packages) == (Runtime(kind="procfile"), ())


def test_a_dockerfile_decides_where_docker_is_unless_a_runtime_is_named() -> None:
    """The builder `buildx` builds it; a stronger file says otherwise."""
    files = PYTHON | {"Dockerfile": b"FROM python"}
    docker = Capabilities("buildx")
    found = plan(Tree.of(files), capabilities=docker)
    assert (found.runtime.kind, found.dockerfile, found.processes) == ("dockerfile", "Dockerfile", WEB)
    named = plan(Tree.of(files | {".cupaas.yml": b"runtime: python:3.11"}), capabilities=docker)
    assert (named.runtime, named.dockerfile) == (Runtime(kind="python", version="3.11"), None)


def test_without_docker_a_dockerfile_beside_a_complete_app_is_passed_over_with_a_note() -> None:
    """The app has what the builder of a laptop needs."""
    found = describe(PYTHON | {"Dockerfile": b"FROM python:3.11"})
    assert (found.runtime.kind, found.dockerfile, found.processes) == ("python", None, WEB)
    assert "Dockerfile: passed over, the builder `layers` runs without Docker" in found.notes


@pytest.mark.parametrize(
    ("files", "also"),
    [({}, ""), ({"requirements.txt": b""}, "how to start this python app"), ({"Gemfile": b""}, "a Ruby app")],
)
def test_without_docker_an_app_of_a_dockerfile_alone_is_refused(files: dict[str, bytes], also: str) -> None:
    """With what keeps it from being deployed without the file."""
    with pytest.raises(AppInvalid, match=r"built from its Dockerfile.*KNARR_BUILDER=buildx") as caught:
        describe(files | {"Dockerfile": b"FROM scratch"})
    assert also in caught.value.message
    assert "what kind of app" not in caught.value.message


def test_a_pyproject_that_only_configures_tools_makes_no_python_app() -> None:
    """Repositories of other languages have such, too."""
    node = {"package.json": b"{}", "server.js": b""}
    assert describe(node | {"pyproject.toml": b"[tool.ruff]\n"}).runtime.kind == "node"
    assert describe(PROCFILE | {"pyproject.toml": b'[project]\nname = "x"\n'}).runtime.kind == "python"
    assert describe(PROCFILE | {"pyproject.toml": b"[tool.poetry]\n"}).runtime.kind == "python"


def test_cupaas_yml_as_it_is_documented() -> None:
    """Runtime, entrypoint, services; the entrypoint is stronger than the Procfile's `web`, other types stay."""
    found = cupaas(
        'runtime: python:3.11\nentrypoint: ["python", "app.py", 8000]\nservices: [{mongodb: 6.0.2}]\n',
        Procfile=b"web: other\nworker: w\n",
    )
    assert found.runtime == Runtime(kind="python", version="3.11")
    assert found.processes == {"web": ("python", "app.py", "8000"), "worker": ("/bin/sh", "-c", "w")}
    assert found.addons == (AddOn(kind="mongodb", version="6.0.2"),)


@pytest.mark.parametrize(
    ("services", "addons"),
    [
        ("[redis]", [("redis", None)]),
        ("[redis:7, postgres: 16]", [("redis", "7"), ("postgres", "16")]),
        ("\n  - mysql: 8.10\n  - mongodb:\n", [("mysql", "8.10"), ("mongodb", None)]),
        ("", []),
        ("[]", []),
    ],
)
def test_services_are_named_with_or_without_a_version(services: str, addons: list[tuple[str, str | None]]) -> None:
    """`8.10` is not `8.1`."""
    assert [(each.kind, each.version) for each in cupaas(f"services: {services}").addons] == addons


def test_app_json_in_heroku_s_form() -> None:
    """Env, formation, health check and add-ons are read; what describes the app to people is passed over."""
    found = app_json(
        name="Shop",
        keywords=["x"],
        env={
            "COLOR": "blue",
            "SECRET": {"description": "for sessions", "generator": "secret"},
            "MAYBE": {"required": False},
            "KEY": {"value": ""},
        },
        formation={"web": {"quantity": 2, "size": "standard-1x"}},
        healthchecks={"web": [{"type": "liveness", "path": "/live"}, {"type": "startup", "path": "/health"}]},
        addons=["heroku-postgresql:mini", {"plan": "heroku-redis", "as": "CACHE", "options": {"version": "7"}}],
    )
    assert found.env == {
        "COLOR": EnvVar(value="blue"),
        "SECRET": EnvVar(generate=True),
        "MAYBE": EnvVar(required=False),
        "KEY": EnvVar(value=""),
    }
    assert found.formation == {"web": 2}
    assert found.health_path == "/health"
    assert found.addons == (AddOn(kind="postgres"), AddOn(kind="redis", version="7"))


def test_app_json_sets_no_variable_of_the_platform_or_of_the_loader() -> None:
    """They would act on the programs that start the app; the build log names them."""
    names = ("KNARR_TOKEN", "LD_PRELOAD", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME")
    found = app_json(env={**dict.fromkeys(names, "/app/x"), "PYTHONPATH": "/app/src"})
    assert set(found.env) == {"PYTHONPATH"}
    assert [name for name in names if not any(f"env.{name}`" in note for note in found.notes)] == []


def test_an_add_on_of_both_files_is_as_cupaas_yml_says() -> None:
    """The version is the stronger file's."""
    found = cupaas("services: [{postgres: 15}]", **{"app.json": as_json({"addons": ["heroku-postgresql", "redis"]})})
    assert found.addons == (AddOn(kind="postgres", version="15"), AddOn(kind="redis"))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("runtime: cobol:85", r"'cobol:85'.*Known are python, node, go, static"),
        ("runtime: python:latest", "'latest'.*digits and dots"),
        ("runtime: static:1", "only python, node and go"),
        ("runtime: [python]", "`runtime` is missing, or is no text"),
        ("services: [{cassandra: 4}]", "'cassandra'.*Known are mongodb, postgres, mysql and redis"),
        ("services: [{redis: latest}]", "'latest'.*digits and dots"),
        ("services: [redis, redis]", "redis twice"),
        ("services: {redis: 7}", "no list"),
        ("services: [{redis: 7, mysql: 8}]", "neither a name nor one"),
        ("services: [[redis]]", "neither a name nor one"),
        ("entrypoint: []", "no command"),
        ("entrypoint: {a: b}", "no command"),
        ("entrypoint: [a, [b]]", "no command"),
        ('entrypoint: ["a\\0b"]', "zero byte"),
        ('entrypoint: ["\\ud800"]', "half a character"),
        ("runtimes: python", r"`runtimes` is not known. Is `runtime` meant\? Allowed are build, entrypoint"),
        ("- a", "no object"),
        ("just text", "no object"),
        ("a: b: c", "line 1, column"),
        ("runtime: python\nruntime: node", "'runtime' stands twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("<<: {runtime: python}", "`<<` is not known"),
        ("? [a]\n: b", "a key is no text"),
        ("--- a\n--- b", "no YAML that knarr takes"),
        ("runtime: " + "[" * 50 + "]" * 50, "levels deep"),
        ("runtime: " + "[" * 5000, "levels deep|no YAML"),
        ("!!python/object/apply:os.system [id]", "no object"),
        ("#" * (MAX_YAML_BYTES + 1), "larger than"),
    ],
)
def test_a_wrong_cupaas_yml_is_refused_by_name(text: str, says: str) -> None:
    """Each error names the file and what is allowed."""
    with pytest.raises(AppInvalid, match=says) as caught:
        cupaas(text)
    assert ".cupaas.yml" in caught.value.message


def test_a_huge_alias_tree_is_refused_at_its_first_alias() -> None:
    """Thirty lines that would become a billion nodes."""
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    with pytest.raises(AppInvalid, match="aliases"):
        cupaas("\n".join(lines))


@pytest.mark.parametrize(
    ("procfile", "says"),
    [
        (b"web gunicorn", "line 1 is not `type: command`"),
        (b"web: a\nw eb: b", "line 2 is not"),
        (b"web:", "line 1 is not"),
        (b"web: a\nweb: b", "line 2 has the type 'web' a second time"),
        (b"# nothing\n", "no process type"),
        (b"web: a\0b", "zero byte"),
        (b"web: \xff", "no UTF-8"),
    ],
)
def test_a_wrong_procfile_is_refused_by_line(procfile: bytes, says: str) -> None:
    """The line is named and an example given."""
    with pytest.raises(AppInvalid, match=says):
        describe({"Procfile": procfile})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"env": {"A-B": "x"}}, "'A-B'"),
        ({"env": {"A": 1}}, "`env.A` is no object"),
        ({"env": {"A": {"value": 1}}}, "`env.A` has a value of the wrong kind"),
        ({"env": {"A": {"generator": "uuid"}}}, "'uuid'.*secret"),
        ({"env": {"A": "x\0"}}, "zero byte"),
        ({"env": []}, "`env` is no object"),
        ({"formation": {"web": 2}}, "`formation.web` is no object"),
        ({"formation": {"web": {"quantity": -1}}}, "-1.*0 to 100"),
        ({"formation": {"web": {"quantity": True}}}, "True.*0 to 100"),
        ({"formation": {"worker": {"quantity": 1}}}, "'worker', which the app does not have. It has web"),
        ({"healthchecks": {"web": [{"path": "health"}]}}, "begins with `/`"),
        ({"healthchecks": {"web": [{"path": "/a b"}]}}, "begins with `/`"),
        ({"healthchecks": {"web": {"path": "/"}}}, "no list"),
        ({"healthchecks": {"web": [{"url": "/"}]}}, r"`healthchecks.web\[0\].url` is not known"),
        ({"healthchecks": {"web": [{"type": "alive"}]}}, "startup, readiness and liveness"),
        ({"addons": [{"as": "X"}]}, r"`addons\[0\].plan` is missing"),
        ({"addons": "redis"}, "no list"),
    ],
)
def test_a_wrong_app_json_is_refused_by_key(content: dict[str, Any], says: str) -> None:
    """The whole path of the key is named, and what is allowed."""
    with pytest.raises(AppInvalid, match=says) as caught:
        app_json(**content)
    assert "app.json" in caught.value.message


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "no JSON"),
        (b"[]", "no object"),
        (b'{"env": NaN}', "NaN is no JSON"),
        (b'{"env": {}, "env": {}}', "'env' twice"),
        (b'{"env": ' + b"[" * 100_000, "nested too deeply|no JSON"),
        (b'{"name": ' + b"[" * 30 + b"]" * 30 + b"}", "nested too deeply"),
        (b'{"name": ' + b"1" * 5000 + b"}", "no JSON"),
        (b"{}" + b" " * MAX_FILE_BYTES, "larger than"),
    ],
)
def test_json_that_is_none_too_large_or_too_deep_is_refused(data: bytes, says: str) -> None:
    """Before anything in it counts."""
    with pytest.raises(AppInvalid, match=says):
        describe(PYTHON | {"app.json": data})


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (REQUIREMENTS, "how to start this python app.*Add a Procfile with a line such as `web: gunicorn"),
        ({"package.json": b"{}"}, "how to start this node app.*scripts.start"),
        ({"Procfile": b"release: ./migrate"}, "how to start this app"),
        ({}, "Nothing says what kind of app this is.*Procfile"),
        (PYTHON | {".python-version": b"system"}, "'system'.*3.11"),
        (PYTHON | {"runtime.txt": b""}, "runtime.txt asks for ''"),
        (PROCFILE | {"pyproject.toml": b"[project"}, "pyproject.toml cannot be read"),
        ({"package.json": b'{"scripts": {"start": 1}}'}, "`scripts.start` is no command"),
        ({"package.json": b'{"engines": {"node": 20}}'}, "`engines.node` is no text"),
        ({"package.json": b'{"scripts": []}'}, "`scripts` is no object"),
    ],
)
def test_an_app_that_cannot_be_understood_gets_advice(files: dict[str, bytes], says: str) -> None:
    """What is missing, and the line that helps."""
    with pytest.raises(AppInvalid, match=says):
        describe(files)


def test_a_number_of_static_sites_instances_can_be_set() -> None:
    """`web` is what it has, though nobody wrote a command for it."""
    found = describe({"index.html": b"", "app.json": as_json({"formation": {"web": {"quantity": 3}}})})
    assert found.formation == {"web": 3}


READ = (
    *(".cupaas.yml", "Procfile", "app.json", "package.json", "pyproject.toml", "requirements.txt", "Pipfile"),
    *(".python-version", "runtime.txt", ".tool-versions", "mise.toml", ".nvmrc", "Dockerfile", "index.html"),
    *(
        "uv.lock",
        "poetry.lock",
        "Pipfile.lock",
        "package-lock.json",
        "yarn.lock",
        "pnpm-lock.yaml",
        "go.mod",
        "main.py",
    ),
    *("railway.json", "render.yaml", "fly.toml", "nixpacks.toml", "netlify.toml", "angular.json", "setup.cfg"),
)

CONTENTS = st.one_of(
    st.binary(max_size=60),
    st.text(alphabet='{}[]":,&*!-?|>#%@`\\ \nabcweb0123', max_size=60).map(str.encode),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["env", "web", "services", "entrypoint", "scripts", "start"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    ).map(as_json),
)


@settings(max_examples=200, deadline=None)
@given(files=st.dictionaries(st.sampled_from(READ), CONTENTS, max_size=4))
def test_whatever_the_files_are_there_is_a_description_or_an_error_of_ours(files: dict[str, bytes]) -> None:
    """And the description survives its way through a message."""
    with contextlib.suppress(AppInvalid):
        found = describe(files)
        assert AppDescription.model_validate_json(found.model_dump_json()) == found
