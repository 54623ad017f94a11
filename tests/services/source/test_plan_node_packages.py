"""What a Node app installs, from its files: the package manager, the lock file, the version of Node."""

import re
from typing import Any

import pytest

from services.source.plan.node_locked import NODE_OF_NEWEST
from tests.services.source.planning import Files, planned, refused, said, web

START: dict[str, Any] = {"name": "shop", "scripts": {"start": "node server.js"}, "dependencies": {"ms": "^2.0.0"}}
NPM_LOCK: dict[str, Any] = {"lockfileVersion": 3, "packages": {"": {}, "node_modules/ms": {"version": "2.0.0"}}}
YARN_1 = '# yarn lockfile v1\n\nms@^2.0.0:\n  version "2.0.0"\n'
YARN_4 = '__metadata:\n  version: 8\n  cacheKey: 10c0\n\n"ms@npm:^2.0.0":\n  version: 2.0.0\n'
PNPM_9 = "lockfileVersion: '9.0'\nimporters: {}\n"


def package(**fields: Any) -> dict[str, Any]:
    """A `package.json`."""
    return {"package.json": {**START, **fields}}


@pytest.mark.parametrize(
    ("files", "tool", "version", "lock"),
    [
        ({"package-lock.json": NPM_LOCK}, "npm", None, "package-lock.json"),
        ({"npm-shrinkwrap.json": NPM_LOCK, "package-lock.json": NPM_LOCK}, "npm", None, "npm-shrinkwrap.json"),
        ({"pnpm-lock.yaml": PNPM_9}, "pnpm", None, "pnpm-lock.yaml"),
        ({"pnpm-lock.yaml": "lockfileVersion: 5.4\n"}, "pnpm", None, "pnpm-lock.yaml"),
        ({"pnpm-lock.yaml": "lockfileVersion: '6.0'\n"}, "pnpm", None, "pnpm-lock.yaml"),
        ({"yarn.lock": YARN_1}, "yarn", None, "yarn.lock"),
        ({"yarn.lock": YARN_4}, "yarn", None, "yarn.lock"),
        ({"yarn.lock": YARN_4.replace("8", "6")}, "yarn", None, "yarn.lock"),
        ({"bun.lock": "{}"}, "bun", None, "bun.lock"),
        ({"bun.lockb": b"\0bun"}, "bun", None, "bun.lockb"),
        ({"pnpm-workspace.yaml": "packages: []\n"}, "pnpm", None, None),
        ({".yarnrc.yml": "nodeLinker: node-modules\n"}, "yarn", None, None),
        ({}, "npm", None, None),
    ],
)
def test_the_lock_file_says_which_package_manager_it_is(
    files: Files, tool: str, version: str | None, lock: str
) -> None:
    """Its version is the builder's choice, which knows what writes such a lock file."""
    (found,) = planned(package() | dict(files)).packages
    assert (found.tool, found.tool_version, found.lock) == (tool, version, lock)
    assert set(files) & {"package-lock.json", "yarn.lock"} <= {*found.manifests, "package-lock.json"}


@pytest.mark.parametrize(
    ("fields", "files", "tool", "version", "lock"),
    [
        (
            {"packageManager": "pnpm@9.1.0+sha512.abc"},
            {"pnpm-lock.yaml": PNPM_9},
            "pnpm",
            "9.1.0+sha512.abc",
            "pnpm-lock.yaml",
        ),
        ({"packageManager": "yarn@4.1.0"}, {}, "yarn", "4.1.0", None),
        (
            {"packageManager": "yarn@1.22.22"},
            {"yarn.lock": YARN_1, "package-lock.json": NPM_LOCK},
            "yarn",
            "1.22.22",
            "yarn.lock",
        ),
        ({"devEngines": {"packageManager": {"name": "yarn", "version": "^4"}}}, {}, "yarn", "^4", None),
        ({"devEngines": {"packageManager": [{"name": "bun"}]}}, {"bun.lock": "{}"}, "bun", None, "bun.lock"),
        ({"engines": {"pnpm": ">=8"}}, {"pnpm-lock.yaml": PNPM_9}, "pnpm", ">=8", "pnpm-lock.yaml"),
        ({"engines": {"yarn": "1.x"}}, {}, "yarn", "1.x", None),
        ({"engines": {"npm": ">=10"}}, {}, "npm", None, None),
        ({"engines": {"npm": "10.2.0"}}, {}, "npm", "10.2.0", None),
    ],
)
def test_the_package_manager_that_package_json_names(
    fields: dict[str, Any], files: Files, tool: str, version: str | None, lock: str | None
) -> None:
    """It decides between two lock files, and the other one is named."""
    app = planned(package(**fields) | dict(files))
    (found,) = app.packages
    assert (found.tool, found.tool_version, found.lock) == (tool, version, lock)
    if len(files) > 1:
        assert "package-lock.json: passed over" in said(app)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            package() | {"yarn.lock": YARN_1, "package-lock.json": NPM_LOCK},
            "package-lock.json and yarn.lock are lock files of different",
        ),
        (
            package() | {"bun.lock": "{}", "pnpm-lock.yaml": PNPM_9},
            "pnpm-lock.yaml and bun.lock are lock files of different",
        ),
        (package(packageManager="pnpm@9.1.0") | {"yarn.lock": YARN_1}, "names pnpm, and yarn.lock is the lock file"),
        (package(packageManager="cnpm@1"), "`packageManager` is 'cnpm@1'"),
        (
            package(dependencies={"ms": "^2.1.3"}) | {"package-lock.json": NPM_LOCK},
            "package-lock.json does not fit package.json.*ms \\^2.1.3.*2.0.0",
        ),
        (
            package(devDependencies={"jest": "29"}) | {"package-lock.json": NPM_LOCK},
            "package.json asks for jest 29, and package-lock.json does not have it",
        ),
        (package() | {"package-lock.json": b"{"}, "package-lock.json cannot be read"),
        (package(dependencies={"lib": "workspace:*"}), "`workspace:`, which npm does not know"),
        (
            package(dependencies={"lib": "workspace:*"}) | {"yarn.lock": YARN_1},
            "`workspace:`, which yarn does not know",
        ),
        (
            package(dependencies={"lib": "catalog:"}) | {"package-lock.json": NPM_LOCK},
            "`catalog:`, which npm does not know",
        ),
        (package(engines={"node": ">=20"}) | {".nvmrc": "18"}, ".nvmrc and `engines.node` of package.json contradict"),
        (package(scripts=[]), "`scripts` is no object"),
        (package(scripts={"start": 1}), "`scripts.start` is no command"),
        (package(engines={"node": 20}), "`engines.node` is no text"),
        (package(dependencies={"ms": 2}), "'ms' is no text"),
        ({"package.json": "{"}, "package.json is no JSON"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_names(files: Files, says: str) -> None:
    """Before anything is installed."""
    assert re.search(says, refused(files))


@pytest.mark.parametrize(
    ("fields", "lock"),
    [
        ({"dependencies": {"ms": "^2.0.0"}}, "2.1.3"),
        ({"dependencies": {"ms": "npm:other@1"}}, "2.1.3"),
        ({"dependencies": {"ms": "github:a/b"}}, "2.1.3"),
        ({"dependencies": {"ms": "latest"}}, "2.1.3"),
        ({"dependencies": {"ms": ">=1 <3 || ^4"}}, "2.1.3"),
        ({"dependencies": {"ms": "1 - 2"}}, "2.1.3"),
        ({"dependencies": {"ms": "2.x"}}, "2.1.3-rc.1"),
    ],
)
def test_nothing_is_concluded_from_a_range_that_holds_or_is_not_understood(fields: dict[str, Any], lock: str) -> None:
    """Npm itself compares; a wrong refusal would be worse."""
    content = {"lockfileVersion": 3, "packages": {"node_modules/ms": {"version": lock}}}
    assert planned(package(**fields) | {"package-lock.json": content}).packages[0].lock == "package-lock.json"


@pytest.mark.parametrize(
    ("fields", "files", "version", "file"),
    [
        ({"engines": {"node": ">=18 <23"}}, {}, ">=18 <23", "package.json"),
        ({"engines": {"node": ">=18"}}, {".nvmrc": "v20.11.0\n"}, "20.11.0", ".nvmrc"),
        ({}, {".nvmrc": "lts/iron"}, "20", ".nvmrc"),
        ({}, {".nvmrc": "lts/*"}, None, None),
        ({}, {".node-version": "22\n"}, "22", ".node-version"),
        ({}, {".tool-versions": "nodejs 20.1.0\n"}, "20.1.0", ".tool-versions"),
        ({}, {"mise.toml": '[tools]\nnode = "22"\n'}, "22", "mise.toml"),
        ({"volta": {"node": "20.9.0"}}, {}, "20.9.0", "package.json"),
        ({"devEngines": {"runtime": {"name": "node", "version": "^22"}}}, {}, "^22", "package.json"),
        ({"engines": ["node >= 0.8"]}, {}, None, None),
    ],
)
def test_the_node_version_and_the_file_that_asks_for_it(
    fields: dict[str, Any], files: Files, version: str | None, file: str | None
) -> None:
    """A version file narrows the engines."""
    found = planned(package(**fields) | dict(files))
    assert (found.runtime.version, found.packages[0].version_file) == (version, file)


@pytest.mark.parametrize(
    ("fields", "files"),
    [
        ({"scripts": {"start": "node .", "postinstall": "node build.js"}}, {}),
        ({"scripts": {"start": "node .", "prepare": "husky"}}, {}),
        ({"dependencies": {"lib": "file:./lib"}}, {}),
        ({"workspaces": ["packages/*"]}, {}),
        (
            {"dependencies": {"lib": "workspace:*"}},
            {"pnpm-workspace.yaml": "packages: [lib]\n", "pnpm-lock.yaml": PNPM_9},
        ),
        ({"dependencies": {"@prisma/client": "5"}}, {"prisma/schema.prisma": ""}),
        ({"dependencies": {"patch-package": "8"}}, {"patches/ms+2.0.0.patch": ""}),
    ],
)
def test_an_installation_that_reads_the_app_itself_needs_its_source(fields: dict[str, Any], files: Files) -> None:
    """Scripts, local packages, workspaces, patches, schemas."""
    assert planned(package(**fields) | {"server.js": ""} | dict(files)).packages[0].needs_source


def test_every_file_that_decides_is_a_manifest() -> None:
    """Those of the workspace and of the package manager too."""
    files = {
        "lib/package.json": "{}",
        "packages/a/package.json": "{}",
        ".npmrc": "",
        "pnpm-workspace.yaml": "packages: []\n",
    }
    (found,) = planned(package() | files | {"pnpm-lock.yaml": PNPM_9}).packages
    assert found.manifests == (
        "pnpm-lock.yaml",
        "package.json",
        ".npmrc",
        "pnpm-workspace.yaml",
        "lib/package.json",
        "packages/a/package.json",
    )
    yarn = {".yarnrc.yml": "", ".yarn/releases/yarn-4.1.0.cjs": "", "yarn.lock": YARN_4}
    assert ".yarn/releases/yarn-4.1.0.cjs" in planned(package() | yarn).packages[0].manifests


def test_a_byte_order_mark_is_passed_over() -> None:
    """As npm does."""
    assert web(planned({"package.json": b'\xef\xbb\xbf{"scripts": {"start": "node server.js"}}'})) == "node server.js"


ASTRO: dict[str, Any] = {"dependencies": {"astro": "^6.0.0", "ms": "^2.0.0"}, "devDependencies": {"vite": "^7.0.0"}}
ASTRO_NPM: dict[str, Any] = {
    "lockfileVersion": 3,
    "packages": {
        "": {},
        "node_modules/ms": {"version": "2.0.0", "engines": {"node": ">=99"}},
        "node_modules/vite": {"version": "7.0.0", "engines": {"node": "^20.19.0 || >=22.12.0"}},
        "node_modules/astro": {"version": "6.0.0", "engines": {"node": ">=22.12.0", "npm": ">=9"}},
    },
}
ASTRO_PNPM = """lockfileVersion: '9.0'
packages:

  astro@6.0.0:
    resolution: {integrity: sha512-x}
    engines: {node: '>=22.12.0', npm: '>=9'}
    hasBin: true

  ms@2.0.0:
    resolution: {integrity: sha512-x}
    engines: {node: '>=99'}

  vite@7.0.0:
    resolution: {integrity: sha512-x}
    engines: {node: ^20.19.0 || >=22.12.0}
"""


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"package-lock.json": ASTRO_NPM}, (">=22.12.0", "package-lock.json")),
        ({"pnpm-lock.yaml": ASTRO_PNPM}, (">=22.12.0", "pnpm-lock.yaml")),
        ({"package-lock.json": ASTRO_NPM, ".nvmrc": "20"}, ("20", ".nvmrc")),
        ({"yarn.lock": YARN_1}, (None, None)),
        ({}, (NODE_OF_NEWEST, "package.json")),
    ],
)
def test_the_locked_framework_says_which_node_it_needs(files: Files, expected: tuple[str | None, str | None]) -> None:
    """Where the app names none: the narrowest range of its frameworks, not of any package."""
    (found,) = planned(package(**ASTRO) | dict(files)).packages

    assert (found.version, found.version_file) == expected


@pytest.mark.parametrize(
    ("dependencies", "version"),
    [
        ({"nuxt": "latest"}, NODE_OF_NEWEST),
        ({"nuxt": "^4.4.8"}, NODE_OF_NEWEST),
        ({"nuxt": "^3.1.0"}, None),
        ({"next": "*"}, NODE_OF_NEWEST),
        ({"astro": ">=4"}, NODE_OF_NEWEST),
        ({"next": "^15.0.0"}, None),
        ({"ms": "latest"}, None),
    ],
)
def test_the_newest_version_of_a_framework_needs_a_current_node(
    dependencies: dict[str, str], version: str | None
) -> None:
    """Without a lock file `latest` is what the framework released last, which an old Node cannot build."""
    (found,) = planned(package(dependencies=dependencies)).packages

    assert found.version == version


def test_engines_that_are_no_texts_say_nothing() -> None:
    """A lock file is written by anybody."""
    entries = {"": {}, "node_modules/astro": {"version": "6.0.0", "engines": [">=22"]}, "node_modules/vite": 7}
    (found,) = planned(package(**{**ASTRO, "dependencies": {"astro": "*"}}) | {"pnpm-lock.yaml": "a: b\n"}).packages
    assert found.version is None
    lock = {"lockfileVersion": 3, "packages": {**entries, "node_modules/vite": {"engines": {"node": 7}}}}
    (found,) = planned(package(**{**ASTRO, "dependencies": {"astro": "*"}}) | {"package-lock.json": lock}).packages
    assert found.version is None
