"""How a Node app is built and started: its own scripts first, then what its framework does."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from services.source.contract import BuildStep
from services.source.plan.cupaas import inside
from services.source.plan.findings import Findings
from services.source.plan.node_frameworks import SERVERS, Built, framework_of
from services.source.plan.node_packages import NodeApp
from services.source.plan.package_json import PACKAGE_JSON, PackageJson
from services.source.plan.procfile import Command, shell
from services.source.plan.starts import Start
from services.source.plan.tree import Tree

_FILES = ("server.js", "index.js", "app.js", "main.js", "server.mjs", "index.mjs", "app.mjs", "server.cjs", "index.cjs")
_IN_FOLDERS = ("src/index.js", "src/server.js", "src/app.js", "src/main.js", "dist/index.js", "build/index.js")
_TYPESCRIPT = ("server.ts", "index.ts", "src/index.ts", "src/server.ts", "app.ts", "main.ts", "src/main.ts")
_BUILD_SCRIPTS = ("heroku-postbuild", "gcp-build", "build")
"""The first one that `package.json` has is run."""
_PROGRAMS: Mapping[str, str] = {
    "nest": "@nestjs/cli",
    "ng": "@angular/cli",
    "tsc": "typescript",
    "babel-node": "@babel/node",
    "vue-cli-service": "@vue/cli-service",
    "nuxi": "nuxt",
    "run-s": "npm-run-all",
    "run-p": "npm-run-all",
    "dotenv": "dotenv-cli",
    "sequelize": "sequelize-cli",
    "react-router-serve": "@react-router/serve",
    "remix-serve": "@remix-run/serve",
    "next-server": "next",
    "tsnd": "ts-node-dev",
    "eleventy": "@11ty/eleventy",
    "webpack": "webpack-cli",
    "wait-on": "wait-on",
    "conc": "concurrently",
    "swc-node": "@swc-node/register",
}
"""Programs whose package has another name."""
_RUNNERS = frozenset({"npx", "pnpx", "bunx", "cross-env", "env", "exec", "dotenv", "--", "env-cmd", "time", "sudo"})
_MODULE_FLAGS = frozenset({"-r", "--require", "--import", "--loader", "--experimental-loader"})
_MAX_SCRIPTS = 20


@dataclass(frozen=True, slots=True)
class NodeBuild:
    """How the app is built, and what is run or served."""

    steps: tuple[BuildStep, ...]
    start: Start | None
    output: str | None = None
    fallback: str | None = None
    framework: str | None = None


def node_build(tree: Tree, app: NodeApp, findings: Findings, *, has_web: bool) -> NodeBuild:
    """Return the build, and the start command or the folder that is served.

    Args:
        tree: The app.
        app: What it installs.
        findings: Where lines and refusals go.
        has_web: Whether another file says how `web` is started.
    """
    package = app.package
    built = framework_of(tree, package, findings)
    steps = _steps(app, built, findings)
    name = built.framework if built else next((name for library, name in SERVERS if package.has(library)), None)
    if has_web:
        return NodeBuild(steps, None, framework=name)
    start = _start(tree, app, built, findings, has_build=bool(steps))
    if start is None and built and built.output and (steps or tree.has_folder(built.output)):
        return NodeBuild(steps, None, built.output, built.fallback, built.framework)
    return NodeBuild(steps, start, framework=name)


def _steps(app: NodeApp, built: Built | None, findings: Findings) -> tuple[BuildStep, ...]:
    package = app.package
    name = next((each for each in _BUILD_SCRIPTS if package.scripts.get(each)), None)
    for other in ("heroku-prebuild", "heroku-cleanup"):
        if package.scripts.get(other):
            findings.note(f"not honoured: `scripts.{other}` of {PACKAGE_JSON}")
    if name is not None:
        command: Command = (app.packages.tool, "run", name)
        where, line = f"scripts.{name} of {PACKAGE_JSON}", " ".join(command)
        if name != "build" and package.scripts.get("build"):
            findings.note(f"`scripts.build` of {PACKAGE_JSON}: passed over, `{name}` is run in its place")
    elif built is not None and built.build is not None:
        command, where, line = shell(built.build), built.framework, built.build
    else:
        return ()
    findings.found(f"Build: {line} ({where})")
    return (
        BuildStep(
            name=where,
            command=command,
            language="node",
            env=dict(built.env) if built else {},
            caches=tuple(dict.fromkeys((*(built.caches if built else ()), "node_modules/.cache"))),
        ),
    )


def _start(tree: Tree, app: NodeApp, built: Built | None, findings: Findings, *, has_build: bool) -> Start | None:
    package = app.package
    script = package.scripts.get("start", "")
    if built and built.output and _is_missing_server(package, script):
        findings.note(f"`scripts.start` of {PACKAGE_JSON}: `{script[:80]}` is not needed, the build is served as files")
        return None
    framework = built.framework if built else None
    if script and not (built and built.dev_start and built.dev_start.search(script)):
        return Start(_with_prestart(package, script, findings), f"`scripts.start` of {PACKAGE_JSON}", framework)
    if script and built:
        instead = "its build is served as files" if built.output else f"`{built.start}` is run in its place"
        findings.note(f"`scripts.start` of {PACKAGE_JSON} is `{script[:80]}`, made for development: {instead}")
    if built is not None and (built.start is not None or built.output):
        return Start(shell(built.start), built.framework, framework) if built.start is not None else None
    return _start_of_file(tree, app, framework, findings, has_build=has_build)


def _start_of_file(
    tree: Tree, app: NodeApp, framework: str | None, findings: Findings, *, has_build: bool
) -> Start | None:
    package = app.package
    program = "bun" if app.packages.tool == "bun" else "node"
    if package.main:
        file = _main(tree, package.main) or (inside(package.main) if has_build else None)
        if file is not None:  # a build may make it
            return Start((program, file), f"`main` of {PACKAGE_JSON}", framework)
    more = _TYPESCRIPT if program == "bun" else ()
    if file := tree.first(*_FILES, *_IN_FOLDERS, *more):
        return Start((program, file), file, framework)
    if (file := tree.first(*_TYPESCRIPT)) and package.name:
        findings.refuse(
            f"{file} is TypeScript, and nothing says how it is started",
            todo=f"Add `scripts.start` to {PACKAGE_JSON}, for example: npm install tsx"
            f" && npm pkg set scripts.start='tsx {file}'",
        )
    return None


def _is_missing_server(package: PackageJson, script: str) -> bool:
    """Whether the script starts a file server that is no dependency: it was installed globally, or by npx."""
    match = re.match(r"(?:npx\s+)?(serve|http-server)\b", script)
    return match is not None and not package.has(match[1])


def _main(tree: Tree, main: str) -> str | None:
    name = main.removeprefix("./").rstrip("/")
    return tree.first(name, f"{name}.js", f"{name}.cjs", f"{name}.mjs", f"{name}/index.js")


def _with_prestart(package: PackageJson, script: str, findings: Findings) -> Command:
    """What `npm start` would run, without npm in between: it would not pass SIGTERM on."""
    before = package.scripts.get("prestart")
    if not before:
        return shell(script)
    if re.fullmatch(r"(?:npm|pnpm|yarn|bun)\s+(?:run\s+)?build", before) or before == package.scripts.get("build"):
        findings.note(f"`scripts.prestart` of {PACKAGE_JSON}: passed over, the build has run")
        return shell(script)
    return shell(f"({before}) && {script}")


def needs_dev(package: PackageJson, commands: Iterable[Command]) -> str | None:
    """The development package that one of the commands needs when the app runs, or None."""
    for command in commands:
        line = command[2] if command[:2] == ("/bin/sh", "-c") and len(command) == 3 else " ".join(command)
        for name in _packages_of(package, line):
            if name in package.dev_dependencies and name not in package.dependencies:
                return name
    return None


def _packages_of(package: PackageJson, line: str) -> Iterator[str]:
    """Packages whose programs or modules a command line names; scripts of the app are followed."""
    pending, seen = [line], 0
    while pending and seen < _MAX_SCRIPTS:
        seen += 1
        for segment in re.split(r"&&|\|\||[;&|()]", pending.pop(0)[:4000]):
            words = segment.replace('"', " ").replace("'", " ").split()
            script = _script_of(words)
            if script is not None and (text := package.scripts.get(script)):
                pending += [text, *filter(None, [package.scripts.get(f"pre{script}")])]
            yield from _program_of(words)


def _script_of(words: list[str]) -> str | None:
    """The script that `npm run x` or `yarn x` runs."""
    words = [word for word in words if not re.fullmatch(r"\w+=\S*", word) and word not in {"cross-env", "exec"}]
    if len(words) < 2 or words[0] not in {"npm", "pnpm", "yarn", "bun"}:
        return None
    if words[1] in {"run", "run-script"}:
        return next((word for word in words[2:] if not word.startswith("-")), None)
    return None if words[1].startswith("-") else words[1]


def _program_of(words: list[str]) -> Iterator[str]:
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if re.fullmatch(r"[A-Za-z_]\w*=.*", word) or word.startswith("-"):
            continue
        name = re.sub(r"^(?:\./)?node_modules/\.bin/", "", word)
        yield from (name, _PROGRAMS.get(name, name))
        if name == "node":
            yield from _modules(rest)
        if name not in _RUNNERS and name not in {"concurrently", "nodemon", "pnpm", "yarn", "npm", "bun"}:
            return


def _modules(arguments: list[str]) -> Iterator[str]:
    """Packages behind `node -r dotenv/config --import=tsx`."""
    for at, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        if flag in _MODULE_FLAGS:
            module = value if equals else next(iter(arguments[at + 1 :]), "")
            parts = module.split("/")
            yield "/".join(parts[:2]) if module.startswith("@") else parts[0]
