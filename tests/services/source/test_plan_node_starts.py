"""How a Node app is built and started, or served as files; and apps of several languages."""

from typing import Any

import pytest

from tests.services.source.planning import Files, planned, said, web

START: dict[str, Any] = {"name": "shop", "scripts": {"start": "node server.js"}, "dependencies": {"ms": "^2.0.0"}}
PNPM_9 = "lockfileVersion: '9.0'\nimporters: {}\n"


def package(**fields: Any) -> dict[str, Any]:
    """A `package.json`."""
    return {"package.json": {**START, **fields}}


@pytest.mark.parametrize(
    ("scripts", "command"),
    [
        ({"build": "tsc"}, ("npm", "run", "build")),
        ({"build": "tsc", "heroku-postbuild": "x"}, ("npm", "run", "heroku-postbuild")),
        ({"build": "tsc", "gcp-build": "x"}, ("npm", "run", "gcp-build")),
        ({}, None),
    ],
)
def test_the_script_that_builds(scripts: dict[str, str], command: tuple[str, ...] | None) -> None:
    """Heroku's and Google's names go before `build`."""
    found = planned(package(scripts={"start": "node .", **scripts}) | {"index.js": ""})
    assert [step.command for step in found.build] == ([command] if command else [])


def test_the_package_manager_runs_the_build() -> None:
    """In the version that the project names."""
    found = planned(package(scripts={"start": "node .", "build": "tsc"}) | {"pnpm-lock.yaml": PNPM_9})
    assert found.build[0].command == ("pnpm", "run", "build")


@pytest.mark.parametrize(
    ("fields", "files", "command"),
    [
        ({}, {}, "node server.js"),
        ({"scripts": {"start": "next start", "prestart": "./check"}}, {}, "(./check) && next start"),
        ({"scripts": {"start": "node .", "prestart": "npm run build", "build": "tsc"}}, {}, "node ."),
        ({"scripts": {}, "main": "lib/app"}, {"lib/app.js": ""}, "node lib/app.js"),
        ({"scripts": {}, "main": "./lib/"}, {"lib/index.js": ""}, "node lib/index.js"),
        ({"scripts": {}, "main": "gone.js"}, {"server.js": ""}, "node server.js"),
        ({"scripts": {}}, {"index.js": ""}, "node index.js"),
        ({"scripts": {}}, {"app.js": ""}, "node app.js"),
        ({"scripts": {}}, {"index.mjs": ""}, "node index.mjs"),
        ({"scripts": {}}, {"src/index.js": ""}, "node src/index.js"),
    ],
)
def test_the_start_of_a_node_app(fields: dict[str, Any], files: Files, command: str) -> None:
    """Its script, `main`, or a file with a usual name; never npm in between, which keeps SIGTERM to itself."""
    assert web(planned(package(**fields) | dict(files))) == command


@pytest.mark.parametrize(
    ("start", "dev", "needs"),
    [
        ("nodemon index.js", {"nodemon": "3"}, True),
        ("ts-node src/index.ts", {"ts-node": "10"}, True),
        ("node -r ts-node/register src/index.ts", {"ts-node": "10"}, True),
        ("node --import=tsx src/index.ts", {"tsx": "4"}, True),
        ("node --require @swc-node/register index.ts", {"@swc-node/register": "1"}, True),
        ("NODE_ENV=production tsx server.ts", {"tsx": "4"}, True),
        ("cross-env A=1 tsx server.ts", {"cross-env": "7"}, True),
        ("cross-env A=1 tsx server.ts", {"tsx": "4"}, True),
        ("npx tsx server.ts", {"tsx": "4"}, True),
        ("npm run serve", {"vite": "5"}, True),
        ("./node_modules/.bin/tsx x.ts", {"tsx": "4"}, True),
        ("tsc && node dist/index.js", {"typescript": "5"}, True),
        ("concurrently 'node a.js'", {"concurrently": "9"}, True),
        ("node index.js", {"nodemon": "3", "jest": "29"}, False),
        ("node nodemon.js", {"nodemon": "3"}, False),
        ("serve -s build", {"serve": "14"}, True),
    ],
)
def test_development_packages_are_kept_where_the_start_needs_one(start: str, dev: dict[str, str], needs: bool) -> None:
    """Else they are left out of the image."""
    found = planned(package(scripts={"start": start, "serve": "vite preview --port $PORT"}, devDependencies=dev))
    assert found.packages[0].include_dev is needs
    assert ("is needed to start the app" in said(found)) is needs


def test_a_procfile_that_needs_a_development_package_has_it() -> None:
    """Workers too."""
    found = planned(package(devDependencies={"tsx": "4"}) | {"Procfile": "web: node a.js\nworker: tsx w.ts\n"})
    assert found.packages[0].include_dev


@pytest.mark.parametrize(
    ("package_name", "name"),
    [("express", "Express"), ("fastify", "Fastify"), ("koa", "Koa"), ("hono", "Hono"), ("socket.io", "Socket.IO")],
)
def test_libraries_of_servers_are_named(package_name: str, name: str) -> None:
    """The app's own script starts them."""
    assert planned(package(dependencies={package_name: "1"})).framework == name


@pytest.mark.parametrize(
    ("fields", "files", "command"),
    [
        ({"scripts": {"build": "tsc"}, "main": "dist/index.js"}, {"src/index.ts": ""}, "node dist/index.js"),
        ({"scripts": {}, "module": "index.ts"}, {"index.ts": "", "bun.lock": "{}"}, "bun index.ts"),
        ({"scripts": {}}, {"src/index.ts": "", "bun.lock": "{}"}, "bun src/index.ts"),
        ({"scripts": {}}, {"start.sh": "exec node x.js"}, "sh start.sh"),
    ],
)
def test_a_file_that_a_build_makes_and_what_bun_runs(fields: dict[str, Any], files: Files, command: str) -> None:
    """`main` need not be there before the build; Bun runs TypeScript."""
    assert web(planned(package(**fields) | dict(files))) == command
