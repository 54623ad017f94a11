"""Go, files that are served, Dockerfiles, buildpacks, files of other platforms, and languages without a builder."""

import re
from typing import Any

import pytest

from services.source.contract import BuildSettings
from services.source.errors import AppInvalid
from tests.services.source.planning import Files, planned, refused, said, web

MAIN = "package main\n\nfunc main() {}\n"
GO_MOD = "module example.com/shop\n\ngo 1.22\n"


@pytest.mark.parametrize(
    ("files", "command", "built"),
    [
        ({"main.go": MAIN}, "./bin/shop", ["."]),
        ({"cmd/server/main.go": MAIN}, "./bin/server", ["./cmd/server"]),
        ({"cmd/web/app.go": MAIN, "cmd/migrate/main.go": MAIN}, "./bin/web", ["./cmd/migrate", "./cmd/web"]),
        ({"main.go": MAIN, "cmd/tool/main.go": MAIN}, "./bin/shop", [".", "./cmd/tool"]),
        ({"server/main.go": MAIN}, "./bin/server", ["./server"]),
    ],
)
def test_the_programs_of_a_go_module(files: Files, command: str, built: list[str]) -> None:
    """At the root, below `cmd`, or in a folder with `main.go`."""
    found = planned({"go.mod": GO_MOD, **files})
    assert (found.runtime.kind, found.runtime.version, web(found)) == ("go", "1.22", command)
    assert [step.command[-1] for step in found.build] == built
    assert all(step.command[:3] == ("go", "build", "-o") for step in found.build)


@pytest.mark.parametrize(
    ("files", "version"),
    [
        ({"go.mod": "module x\n\ngo 1.21\n\ntoolchain go1.22.3\n"}, "1.22.3"),
        ({"go.mod": GO_MOD, ".tool-versions": "golang 1.23.1\n"}, "1.23.1"),
        ({"go.mod": GO_MOD, ".cupaas.yml": "runtime: go:1.24\n"}, "1.24"),
        ({"go.mod": "module x\n"}, None),
    ],
)
def test_the_go_version(files: Files, version: str | None) -> None:
    """The toolchain line goes before the language's version."""
    assert planned({"main.go": MAIN, **files}).packages[0].version == version


def test_a_procfile_names_the_program_of_a_go_module() -> None:
    """All programs are built, as Heroku does."""
    found = planned(
        {"go.mod": GO_MOD, "cmd/a/m.go": MAIN, "cmd/b/m.go": MAIN, "Procfile": "web: bin/a\nworker: bin/b\n"}
    )
    assert (found.runtime.kind, web(found)) == ("go", "bin/a")
    assert len(found.build) == 2


def test_a_program_is_found_by_its_name_as_on_heroku() -> None:
    """The folder `bin` is on its PATH."""
    found = planned({"go.mod": GO_MOD, "main.go": MAIN, "Procfile": "web: shop -v\n"})
    assert web(found) == 'PATH="$PWD/bin:$PATH"; shop -v'


def test_a_repository_of_several_apps_names_their_folders() -> None:
    """One of them is set as the app's root."""
    message = refused({"README.md": "", "api/package.json": "{}", "apps/web/requirements.txt": ""})
    assert "one of the folders api and apps/web: `knarr apps update APP --root FOLDER`" in message


@pytest.mark.parametrize(
    "files",
    [
        {"Procfile": "\n".join(f"p{n}: x" for n in range(20_000))},
        {"Procfile": "x\n" * 20_000},
        {"requirements.txt": "a" + " " * 200_000 + "b\n", "Procfile": "web: x"},
        {"app.json": {"env": {}, **{f"key{n}": n for n in range(10_000)}}, "Procfile": "web: x"},
        {".python-version": "3," * 100_000, "Procfile": "web: python x"},
        {".python-version": ">=3.11" + ",>=3.1" * 30_000, "Procfile": "web: python x"},
        {"pyproject.toml": '[project]\nrequires-python = "' + ">=3," * 50_000 + '"\n', "Procfile": "web: python x"},
        {
            "requirements.txt": "streamlit\nshiny\nfastapi\n",
            "main.py": "from" + "\n" * 60_000,
            "src/app.py": "\n" * 65_000,
        },
        {"package.json": {"engines": {"node": ">=1 " * 50_000}, "scripts": {"start": "x"}}},
        {"package.json": {"scripts": {"start": "npm run a && " * 10_000 + "x", "a": "npm run start"}}},
    ],
)
def test_what_is_said_and_kept_of_a_hostile_app_is_bounded(files: Files) -> None:
    """It is part of an event, and shown to people."""
    said_of_it = ""
    try:
        found = planned(files)
        said_of_it = found.model_dump_json()
    except AppInvalid as error:
        said_of_it = error.message
    assert 0 < len(said_of_it) < 500_000


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"cmd/a/main.go": MAIN, "cmd/b/main.go": MAIN}, "has the programs a and b.*`web: bin/a`"),
        ({"lib.go": "package lib\n"}, "This Go module has no program"),
    ],
)
def test_a_go_module_without_one_program_is_refused(files: Files, says: str) -> None:
    """Nothing is guessed."""
    assert re.search(says, refused({"go.mod": GO_MOD, **files}))


@pytest.mark.parametrize(
    ("files", "output", "fallback"),
    [
        ({"index.html": ""}, None, None),
        ({"public/index.html": ""}, "public", None),
        ({"dist/index.html": "", "README.md": ""}, "dist", None),
        ({"Staticfile": "root: site\nindex_fallback: true\n", "site/index.html": ""}, "site", "index.html"),
        ({"static.json": {"root": "out/", "routes": {"/**": "index.html"}}, "out/index.html": ""}, "out", "index.html"),
        ({"netlify.toml": '[build]\npublish = "web"\n', "web/index.html": "", "x.md": ""}, "web", None),
        ({".cupaas.yml": "runtime: static\nbuild: {output: a/b, fallback: index.html}\n"}, "a/b", "index.html"),
    ],
)
def test_a_site_of_files(files: Files, output: str | None, fallback: str | None) -> None:
    """A page at the root or in a folder with a usual name, or the folder that a file names."""
    found = planned(files)
    assert (found.runtime.kind, found.output, found.fallback) == ("static", output, fallback)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {"Gemfile": "", "Procfile": "web: bundle exec puma"},
            r"a Ruby app \(Gemfile\): the builder `layers` has no Ruby",
        ),
        ({"Gemfile": "", "package.json": {"scripts": {"build": "x"}, "devDependencies": {"vite": "5"}}}, "a Ruby app"),
        (
            {
                "composer.json": "{}",
                "package.json": {"scripts": {"build": "vite build"}, "devDependencies": {"vite": "5"}},
            },
            "a PHP app",
        ),
        ({"index.php": ""}, "a PHP app"),
        ({"pom.xml": "", "Procfile": "web: java -jar target/x.jar"}, "a Java app"),
        ({"build.gradle.kts": ""}, "a Java or Kotlin app"),
        ({"Cargo.toml": ""}, "a Rust app"),
        ({"mix.exs": ""}, "an Elixir app"),
        ({"deno.json": ""}, "a Deno app"),
        ({"Shop.csproj": ""}, r"a .NET app \(Shop.csproj\)"),
        ({"src/Shop.csproj": ""}, "a .NET app"),
        ({"pubspec.yaml": ""}, "a Dart app"),
        ({"hugo.toml": "", "content/a.md": ""}, "a Hugo site.*hugo-extended"),
        ({"config.toml": "", "content/a.md": "", "themes/x/y": ""}, "a Hugo site"),
        ({"_config.yml": "", "_posts/a.md": "", "Gemfile": "", "index.html": ""}, "a Jekyll site"),
        ({"config.toml": 'base_url = "x"', "content/a.md": "", "templates/a.html": ""}, "a Zola site"),
        ({"Procfile": "web: php -S 0.0.0.0:$PORT"}, r"a PHP app \(Procfile\)"),
    ],
)
def test_a_language_without_a_builder_is_refused_by_its_right_name(files: Files, says: str) -> None:
    """With the file that shows it, and what would build it."""
    assert re.search(says, refused(files))


def test_the_advice_names_the_builder_that_could_do_it() -> None:
    """Heroku's buildpacks know Ruby, and none of them Elixir."""
    assert "KNARR_BUILDER=buildpacks" in refused({"Gemfile": ""})
    assert "KNARR_BUILDER=buildpacks" in refused({"Gemfile": ""}, builder="buildx")
    assert "buildpacks" not in refused({"mix.exs": ""})


@pytest.mark.parametrize("other", ["Gemfile", "Cargo.toml", "composer.json", "pom.xml", "deno.json"])
def test_a_python_app_with_a_file_of_another_language_is_a_python_app(other: str) -> None:
    """Documentation, an extension in Rust, tools."""
    assert planned({"requirements.txt": "", "main.py": "PORT", other: "{}"}).runtime.kind == "python"
    node: dict[str, Any] = {"package.json": {"scripts": {"start": "node ."}}, other: "{}"}
    assert planned(node).runtime.kind == "node"


def test_buildpacks_decide_by_themselves() -> None:
    """Of the description only what knarr needs is kept."""
    found = planned({"Gemfile": "", "Procfile": "web: puma\nrelease: rake db:migrate\n"}, builder="buildpacks")
    assert (found.runtime.kind, found.packages, found.build) == ("buildpacks", (), ())
    assert web(found) == "puma"
    assert found.release
    own = planned({"Gemfile": "", "Dockerfile": ""}, settings=BuildSettings(builder="buildpacks"))
    assert own.runtime.kind == "buildpacks"
    named = planned(
        {"Gemfile": "", "a.Dockerfile": ""}, settings=BuildSettings(builder="buildpacks", dockerfile="a.Dockerfile")
    )
    assert named.runtime.kind == "dockerfile"


@pytest.mark.parametrize(
    ("files", "settings", "path", "target", "args"),
    [
        ({"Dockerfile": ""}, {}, "Dockerfile", None, ()),
        (
            {"deploy/Dockerfile": "", "requirements.txt": ""},
            {"dockerfile": "deploy/Dockerfile"},
            "deploy/Dockerfile",
            None,
            (),
        ),
        (
            {"a.Dockerfile": "", ".cupaas.yml": "build: {dockerfile: a.Dockerfile, target: web, args: [URL]}\n"},
            {},
            "a.Dockerfile",
            "web",
            ("URL",),
        ),
        (
            {"a.Dockerfile": "", ".cupaas.yml": "build: {dockerfile: b, target: web, args: [URL]}\n"},
            {"dockerfile": "a.Dockerfile", "docker_target": "x", "docker_args": ("Y",)},
            "a.Dockerfile",
            "x",
            ("Y",),
        ),
        (
            {"deploy/Dockerfile": "", "railway.json": {"build": {"dockerfilePath": "deploy/Dockerfile"}}},
            {},
            "deploy/Dockerfile",
            None,
            (),
        ),
    ],
)
def test_a_dockerfile_by_the_settings_or_the_files(
    files: Files, settings: dict[str, Any], path: str, target: str | None, args: tuple[str, ...]
) -> None:
    """The app's settings are stronger than its files."""
    found = planned(files, builder="buildx", settings=BuildSettings(**settings))
    assert (found.runtime.kind, found.dockerfile) == ("dockerfile", path)
    assert (found.docker_target, found.docker_args) == (target, args)


def test_a_dockerfile_that_is_named_and_not_there_is_refused() -> None:
    """And one that leads out of the app."""
    assert "There is no x/Dockerfile" in refused(
        {".cupaas.yml": "build: {dockerfile: x/Dockerfile}\n"}, builder="buildx"
    )
    assert "without `..`" in refused({".cupaas.yml": "build: {dockerfile: ../Dockerfile}\n"}, builder="buildx")


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"railway.json": {"deploy": {"startCommand": "python app.py --port $PORT"}}}, "python app.py --port $PORT"),
        ({"railway.toml": '[deploy]\nstartCommand = "./run"\n'}, "./run"),
        ({"railpack.json": {"deploy": {"startCommand": "./run"}}}, "./run"),
        ({"nixpacks.toml": '[start]\ncmd = "./run"\n'}, "./run"),
        ({"render.yaml": "services:\n  - type: web\n    startCommand: gunicorn app:app\n"}, "gunicorn app:app"),
        ({"fly.toml": '[processes]\napp = "./run"\nworker = "./work"\n'}, "./run"),
        ({"railway.json": {"deploy": {"startCommand": "./run"}}, "Procfile": "web: ./mine\n"}, "./mine"),
        ({"railway.json": {"deploy": {"startCommand": "./run"}}, ".cupaas.yml": "entrypoint: ./own\n"}, "./own"),
    ],
)
def test_the_start_command_of_another_platform_s_file_is_taken(files: Files, command: str) -> None:
    """Weaker than the Procfile, stronger than what the language does."""
    assert web(planned({"requirements.txt": "", "app.py": "PORT", **files})) == command


def test_health_path_and_release_of_another_platform_s_file_are_taken() -> None:
    """The rest is named."""
    deploy = {"startCommand": "./run", "healthcheckPath": "/up", "preDeployCommand": ["./migrate"], "cronSchedule": "x"}
    found = planned({"requirements.txt": "", "railway.json": {"deploy": deploy, "build": {"buildCommand": "make"}}})
    assert found.checks["web"][0].path == "/up"
    assert found.release == ("/bin/sh", "-c", "./migrate")
    assert "not honoured: `deploy.cronSchedule` of railway.json" in found.notes
    assert any("the build command of railway.json, `make`" in note for note in found.notes)


@pytest.mark.parametrize(
    "files",
    [
        {"render.yaml": "a: &x [1]\nb: *x\n"},
        {"railway.json": "{"},
        {"fly.toml": "a = = 1"},
        {"render.yaml": "#" * 20_000},
        {"nixpacks.toml": ".".join(["a"] * 5000) + " = 1"},
    ],
)
def test_a_file_of_another_platform_that_cannot_be_read_is_passed_over(files: Files) -> None:
    """It is not knarr's, and the app runs without it."""
    found = planned({"requirements.txt": "", "Procfile": "web: ./run", **files})
    assert f"{next(iter(files))} is passed over" in said(found)


def test_packages_of_the_system_are_named_as_not_installed() -> None:
    """A list of them does nothing in silence otherwise."""
    found = planned({"requirements.txt": "", "Procfile": "web: ./run", "Aptfile": "ffmpeg\n", "apt.txt": "# none\n"})
    assert any(note.startswith("not honoured: Aptfile") for note in found.notes)
    assert not any("apt.txt" in note for note in found.notes)


def test_all_reasons_are_in_one_message() -> None:
    """Files that are wrong, a version that cannot be, and locks that disagree, at once."""
    message = refused(
        {
            "package.json": {"dependencies": {"ms": "2"}, "engines": {"node": "20"}},
            ".nvmrc": "18",
            "yarn.lock": "# yarn lockfile v1",
            "package-lock.json": {},
            ".cupaas.yml": "runtimes: node\nport: x\n",
            "app.json": {"env": {"A-B": "x"}},
        }
    )
    assert "for 5 reasons: (1)" in message
    for part in ("`runtimes` is not known", "`port` is 'x'", "'A-B'", "contradict", "yarn.lock"):
        assert part in message


def test_an_app_of_which_nothing_is_known_is_told_what_was_seen() -> None:
    """The names of its files, and those of other platforms that knarr does not read."""
    message = refused({"README.md": "", "docker-compose.yml": "", "docs/x.md": ""})
    assert "its folder has README.md and docker-compose.yml; knarr does not read docker-compose.yml" in message


def test_a_link_that_leads_out_is_named() -> None:
    """A manifest that is a link is followed inside the root only."""
    assert "Procfile is a link that leads to no file" in refused({"requirements.txt": ""}, links={"Procfile": "../x"})
    found = planned({"requirements.txt": "", "conf/Procfile": "web: ./run"}, links={"Procfile": "conf/Procfile"})
    assert web(found) == "./run"
