"""Package managers of Node: which version installs, by which command, and what their failures mean."""

from pathlib import Path

import pytest

from seedwork.errors import KnarrError
from services.builder.errors import BuildFailed, CannotBuild, RegistryUnavailable
from services.builder.install.node import (
    Tool,
    can_omit_dev,
    deciding,
    headers_environment,
    install,
    tool_environment,
    tool_for,
)
from services.builder.install.node_faults import AWAY, install_failed, reasons
from services.source.contract import Packages


def packages(tool: str, *, version: str | None = None, lock: str | None = None) -> Packages:
    return Packages.model_validate({"language": "node", "tool": tool, "tool_version": version, "lock": lock})


def chosen(tool: str, lock: str, text: str, *, version: str | None = None, workspace: str = "") -> Tool:
    files = {lock: text.encode(), "pnpm-workspace.yaml": workspace.encode()}
    return tool_for(packages(tool, version=version, lock=lock), files.get)


@pytest.mark.parametrize(
    ("tool", "lock", "text", "major"),
    [
        ("pnpm", "pnpm-lock.yaml", "lockfileVersion: 5.4\n", 7),
        ("pnpm", "pnpm-lock.yaml", "lockfileVersion: '6.0'\n", 8),
        ("pnpm", "pnpm-lock.yaml", "lockfileVersion: '9.0'\n", 9),
        ("yarn", "yarn.lock", "# yarn lockfile v1\n\nms@^2.0.0:\n", 1),
        ("yarn", "yarn.lock", "# generated\n\n__metadata:\n  version: 6\n", 3),
        ("yarn", "yarn.lock", "__metadata:\n  version: 8\n  cacheKey: 10c0\n", 4),
        ("bun", "bun.lock", '{"lockfileVersion": 1}', 1),
        ("npm", "package-lock.json", '{"lockfileVersion": 3}', 0),
    ],
)
def test_the_lock_files_format_decides_the_version(tool: str, lock: str, text: str, major: int) -> None:
    """A tool that is too new would refuse the lock file or rewrite it. npm: the one of node reads all."""
    assert chosen(tool, lock, text).major == major


def test_settings_in_the_workspace_file_need_a_pnpm_that_reads_them() -> None:
    """Pnpm 9 would pass over `overrides` there, and then the lock file would not fit."""
    lock = "lockfileVersion: '9.0'\n"

    assert chosen("pnpm", "pnpm-lock.yaml", lock, workspace="packages:\n  - lib\ncatalog:\n  ms: 2.0.0\n").major == 9
    assert chosen("pnpm", "pnpm-lock.yaml", lock, workspace="overrides:\n  ms: 2.0.0\n").major == 10


@pytest.mark.parametrize(
    ("version", "expected", "has_hash"),
    [
        ("9.15.4", "9.15.4", False),
        ("9.15.4+sha512." + "ab" * 64, "9.15.4", True),
        ("9.15.4+sha256.zz", "9.15.4", False),
        ("^9.1", "^9.1", False),
        ("10", "10.33.4", False),
    ],
)
def test_the_project_names_the_version(version: str, expected: str, has_hash: bool) -> None:
    """Stronger than the lock file; a bare major number is the pinned version of it."""
    tool = chosen("pnpm", "pnpm-lock.yaml", "lockfileVersion: '6.0'\n", version=version)

    assert tool.version == expected
    assert (tool.hash is not None) is has_hash


@pytest.mark.parametrize("version", ["npm:evil@1", "https://example.org/x.tgz", "../x", "1;2", "9 --registry=x/y"])
def test_a_version_is_no_address(version: str) -> None:
    """What npm would take for another package, a URL or a file is refused."""
    with pytest.raises(CannotBuild, match="packageManager"):
        chosen("pnpm", "pnpm-lock.yaml", "", version=version)


@pytest.mark.parametrize(
    ("tool", "version", "frozen", "dev"),
    [
        ("npm", None, "npm ci --include=dev", True),
        ("npm", None, "npm ci --omit=dev", False),
        ("pnpm", "9.15.9", "pnpm install --frozen-lockfile", True),
        ("pnpm", "9.15.9", "pnpm install --frozen-lockfile --prod", False),
        ("yarn", "1.22.22", "yarn install --frozen-lockfile --production=false", True),
        ("yarn", "1.22.22", "yarn install --frozen-lockfile --production=true", False),
        ("yarn", "4.12.0", "yarn install --immutable", True),
        ("yarn", "4.12.0", "yarn workspaces focus --all --production", False),
        ("bun", "1.2.20", "bun install --frozen-lockfile", True),
        ("bun", "1.2.20", "bun install --frozen-lockfile --production", False),
    ],
)
def test_a_lock_file_is_installed_frozen(tool: str, version: str | None, frozen: str, dev: bool) -> None:
    """Each tool by its own option."""
    found = install(
        packages(tool, lock="the lock"), Tool(name=tool, version=version), dev=dev, caches="/caches", environ={}
    )

    assert found.shown == frozen


@pytest.mark.parametrize("tool", ["npm", "pnpm", "yarn", "bun"])
def test_caches_and_registry_are_those_of_the_build(tool: str) -> None:
    """No tool writes below the home of the user that runs knarr, or asks another registry than the platform's."""
    env = tool_environment(
        Tool(name=tool, version="4.1.0"), caches="/caches", environ={"npm_config_registry": "http://registry:4873/"}
    )

    assert any(value.startswith("/caches/") for value in env.values())
    if tool == "yarn":
        assert env["YARN_NPM_REGISTRY_SERVER"] == "http://registry:4873/"
        assert env["YARN_UNSAFE_HTTP_WHITELIST"] == "registry"


def test_native_packages_are_compiled_with_the_headers_beside_node(tmp_path: Path) -> None:
    """Where there are any; else node-gyp downloads them."""
    (tmp_path / "include/node").mkdir(parents=True)
    assert headers_environment(tmp_path / "bin/node") == {}

    (tmp_path / "include/node/node.h").touch()
    assert headers_environment(tmp_path / "bin/node") == {"npm_config_nodedir": str(tmp_path)}


@pytest.mark.parametrize(
    ("version", "expected"), [("1.22.22", False), ("^1", False), (">=1.22", False), ("2.4.3", True), ("4", True)]
)
def test_yarn_from_version_2_is_another_program(version: str, expected: bool) -> None:
    """In another npm package, with other options."""
    assert Tool(name="yarn", version=version).berry is expected


def test_yarn_2_and_3_cannot_leave_development_packages_out() -> None:
    """`workspaces focus` is a plugin there."""
    assert [can_omit_dev(Tool(name="yarn", version=each)) for each in ("1.22.22", "3.8.7", "4.12.0")] == [
        True,
        False,
        True,
    ]


def test_only_what_decides_the_installation_is_part_of_the_key() -> None:
    """A new script `test` or another version of the app installs nothing anew; an install script does."""
    base = {"name": "shop", "version": "1.0.0", "dependencies": {"ms": "1"}, "scripts": {"test": "a"}}

    assert deciding(base) == deciding({**base, "version": "1.0.1", "scripts": {"test": "b"}})
    for change in ({"overrides": {"ms": "2"}}, {"resolutions": {"ms": "2"}}, {"scripts": {"postinstall": "x"}}):
        assert deciding(base) != deciding({**base, **change})


NPM_OUT_OF_DATE = b"""npm error code EUSAGE
npm error
npm error `npm ci` can only install packages when your package.json and package-lock.json are in sync.
npm error
npm error Invalid: lock file's ms@2.0.0 does not satisfy ms@2.1.3
npm error
npm error Clean install a project
npm error
npm error Usage:
npm error npm ci
npm error
npm error Options:
npm error [--install-strategy <hoisted|nested|shallow|linked>]
npm error A complete log of this run can be found in: /x/_logs/debug-0.log"""
PNPM_OUT_OF_DATE = (
    b' ERR_PNPM_OUTDATED_LOCKFILE  Cannot install with "frozen-lockfile" because pnpm-lock.yaml is not up to date\n'
    b"  Failure reason:\n  specifiers in the lockfile don't match specs in package.json:\n* 1 dependencies were added"
)
BERRY_OUT_OF_DATE = (
    "➤ YN0013: │ ms@npm:2.0.0 can't be found in the cache\n"
    "➤ YN0028: │ The lockfile would have been modified by this install, which is explicitly forbidden."
).encode()


@pytest.mark.parametrize(
    ("tool", "lock", "text", "kind", "words"),
    [
        ("npm", "package-lock.json", NPM_OUT_OF_DATE, BuildFailed, ["ms@2.0.0 does not satisfy ms@2.1.3"]),
        ("pnpm", "pnpm-lock.yaml", PNPM_OUT_OF_DATE, BuildFailed, ["ERR_PNPM_OUTDATED_LOCKFILE"]),
        ("yarn", "yarn.lock", BERRY_OUT_OF_DATE, BuildFailed, ["YN0028"]),
        ("yarn", "yarn.lock", b"error Your lockfile needs to be updated, but yarn was run", BuildFailed, ["needs to"]),
        ("bun", "bun.lock", b"error: lockfile had changes, but lockfile is frozen", BuildFailed, ["frozen"]),
        ("npm", "package-lock.json", b"npm error code ECONNREFUSED", RegistryUnavailable, []),
        ("npm", "package-lock.json", b"npm ERR! code E503\nnpm ERR! 503 Service Unavailable", RegistryUnavailable, []),
        ("pnpm", "pnpm-lock.yaml", b" ERR_PNPM_META_FETCH_FAIL  GET x: ECONNREFUSED", RegistryUnavailable, []),
        ("yarn", "yarn.lock", b"error Error: connect ECONNREFUSED 127.0.0.1:9", RegistryUnavailable, []),
        ("yarn", "yarn.lock", "➤ YN0001: │ RequestError: connect ECONNREFUSED".encode(), RegistryUnavailable, []),
        ("bun", "bun.lock", b"error: ConnectionRefused downloading package manifest ms", RegistryUnavailable, []),
    ],
)
def test_a_failure_is_told_by_the_tools_own_reason(
    tool: str, lock: str, text: bytes, kind: type[KnarrError], words: list[str]
) -> None:
    """Both files are named where they do not agree; usage text is left out."""
    error = install_failed(packages(tool, lock=lock), "exit code 1", text.split(b"\n"))

    assert type(error) is kind
    assert all(word in error.why for word in words)
    assert "Usage" not in error.message
    assert "YN0013" not in error.message
    if kind is BuildFailed:
        assert "package.json" in error.what
        assert lock in error.what


def test_reasons_are_few_and_short() -> None:
    """A tool that prints a thousand errors does not fill the event."""
    found = reasons([b"npm error " + bytes([97 + n % 26]) * 5000 for n in range(1000)])

    assert len(found) == 6
    assert max(map(len, found)) == 300


SAID = """prebuild-install warn install getaddrinfo ENOTFOUND github.com
gyp ERR! stack FetchError: request to https://nodejs.org/x failed, reason: connect ECONNREFUSED 10.0.0.1:443
gyp ERR! code ECONNREFUSED"""


def of_script(head: str, mark: str, end: str) -> str:
    """Output of a package manager around what an install script printed."""
    return "\n".join([head, *(mark + line for line in SAID.splitlines()), end])


NPM_6 = of_script(
    "> native@1.0.0 install /x/node_modules/native\n> node fail.js\n",
    "",
    "npm ERR! code ELIFECYCLE\nnpm ERR! errno 1\nnpm ERR! native@1.0.0 install: `node fail.js`\n"
    "npm ERR! Exit status 1\nnpm ERR! \nnpm ERR! Failed at the native@1.0.0 install script.",
)
NPM_10 = of_script(
    "npm error code 1\nnpm error path /x/node_modules/native\nnpm error command failed\n"
    "npm error command sh -c node fail.js",
    "npm error ",
    "npm error A complete log of this run can be found in: /x/_logs/2026-12-01T07_39_12_632Z-debug-0.log",
)
PNPM = of_script(
    ".../native@1.0.0/node_modules/native install$ node fail.js",
    ".../native@1.0.0/node_modules/native install: ",
    ".../native@1.0.0/node_modules/native install: Failed\n ELIFECYCLE  Command failed with exit code 1.",
)
YARN_1 = of_script(
    "error /x/node_modules/native: Command failed.\nExit code: 1\nCommand: node fail.js\nArguments: \n"
    "Directory: /x/node_modules/native\nOutput:",
    "",
    "",
)
BERRY = of_script(
    "➤ YN0007: │ native@npm:1.0.0 must be built because it never has been before or the last one failed",
    "➤ YN0000: │ native@npm:1.0.0 STDERR ",
    "➤ YN0009: │ native@npm:1.0.0 couldn't be built successfully (exit code 1, logs: /tmp/x/build.log)",
)
BUN = of_script("Resolved, downloaded and extracted [4]", "", '\nerror: install script from "native" exited with 1')


@pytest.mark.parametrize(
    ("tool", "text"),
    [("npm", NPM_6), ("npm", NPM_10), ("pnpm", PNPM), ("yarn", YARN_1), ("yarn", BERRY), ("bun", BUN)],
)
def test_an_install_script_that_fails_is_a_fault_of_the_build(tool: str, text: str) -> None:
    """What it could not download says nothing about the registry; package and last lines are named."""
    error = install_failed(packages(tool), "exit code 1", text.encode().split(b"\n"))

    assert type(error) is BuildFailed
    assert error.what == "An install script of native failed"
    assert error.why == "; ".join(SAID.splitlines())
    assert "downloads a file" in error.todo


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        ("npm", "npm error code 3\nnpm error path /x\nnpm error command failed\nnpm error command sh -c exit 3"),
        ("pnpm", ". postinstall: no\n. postinstall: Failed\n ELIFECYCLE  Command failed with exit code 3."),
        ("pnpm", ". postinstall: no\n\u2009ELIFECYCLE\u2009 Command failed with exit code 3."),
        ("yarn", "$ exit 3\nerror Command failed with exit code 3."),
        ("yarn", "➤ YN0009: │ shop@workspace:. couldn't be built successfully (exit code 3, logs: /tmp/build.log)"),
    ],
)
def test_an_install_script_of_the_app_itself_is_named_so(tool: str, text: str) -> None:
    """It has no package's name."""
    error = install_failed(packages(tool), "exit code 3", text.encode().split(b"\n"))

    assert (type(error), error.what) == (BuildFailed, "An install script of the app failed")


def test_a_script_whose_own_npm_does_not_reach_the_registry_is_worth_another_attempt() -> None:
    """`"postinstall": "npm install --prefix client"` of an app, while the registry is away."""
    text = b"npm error code ECONNREFUSED\nnpm error code 1\nnpm error path /x\nnpm error command failed"

    assert type(install_failed(packages("npm"), "exit code 1", text.split(b"\n"))) is RegistryUnavailable


def test_pnpm_sets_its_codes_between_thin_spaces() -> None:
    """Bytes that are no white space for an expression."""
    text = "\u2009ERR_PNPM_META_FETCH_FAIL\u2009 GET https://registry.example/ms: request failed".encode()

    assert type(install_failed(packages("pnpm"), "exit code 1", [text])) is RegistryUnavailable
    assert AWAY.search(text)


def test_an_answered_attempt_after_a_warning_is_no_outage() -> None:
    """Yarn 1 warns about the network and goes on; a script fails later."""
    warning = b"info There appears to be trouble with your network connection. Retrying..."
    text = warning + b"\nerror /x/node_modules/a: Command failed."

    assert type(install_failed(packages("yarn"), "exit code 1", text.split(b"\n"))) is BuildFailed


@pytest.mark.parametrize("mark", ["npm error", "npm ERR!"])
def test_a_missing_compiler_is_named(mark: str) -> None:
    """The error says what the machine that builds lacks."""
    text = f"{mark} path /x/node_modules/a\n{mark} command failed\n{mark} gyp ERR! find Python"
    error = install_failed(packages("npm"), "exit code 1", text.encode().split(b"\n"))

    assert error.what == "An install script of a failed"
    assert "C++ compiler" in error.todo
