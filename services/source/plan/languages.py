"""Which language an app is written in, and the plan for each: packages, build, start."""

from services.source.contract import Packages
from services.source.plan.context import Context, Result
from services.source.plan.cupaas import CUPAAS, RuntimeKind
from services.source.plan.django import collectstatic
from services.source.plan.findings import Findings, listed
from services.source.plan.foreign import named_files
from services.source.plan.go import GO_MOD, read_go
from services.source.plan.node_packages import NodeApp, read_node
from services.source.plan.node_start import NodeBuild, needs_dev, node_build
from services.source.plan.package_json import PACKAGE_JSON
from services.source.plan.procfile import PROCFILE, WEB, shell
from services.source.plan.programs import language_of, programs, without_runner
from services.source.plan.python_packages import PythonApp, is_python, read_python
from services.source.plan.python_start import python_start
from services.source.plan.refusals import foreign_language, language_of_program, refuse_generator, refuse_language
from services.source.plan.starts import Start, shown
from services.source.plan.static import INDEX, MKDOCS, mkdocs_step, static_site

_START_SCRIPT = "start.sh"
_PLAIN_PYTHON = ("main.py", "app.py", "server.py", "manage.py", "bot.py", "wsgi.py", "asgi.py", "streamlit_app.py")


def of_kind(kind: RuntimeKind, context: Context) -> Result:
    """Return the plan of the kind that `.cupaas.yml` names."""
    match kind:
        case "python":
            return _python(context)
        case "node":
            return _node(context)
        case "go":
            return _go(context)
        case "static":
            return _static(context)
        case "buildpacks":
            context.findings.refuse(
                f"{CUPAAS} asks for buildpacks: the builder is `{context.capabilities.builder}`",
                todo="On a machine with a Docker engine, set KNARR_BUILDER=buildpacks.",
            )
            return Result(kind="buildpacks", is_open=True)
        case _:
            return _procfile(context)


def by_language(context: Context) -> Result:
    """Return the plan of the language that the commands and the files show."""
    tree = context.tree
    if (program := _program_language(context)) is not None:
        return _of_program(program, context)
    has_node, has_python = tree.has(PACKAGE_JSON), is_python(tree)
    if tree.first(GO_MOD, "go.work") or (tree.has("main.go") and not has_python and not has_node):
        return _go(context)
    if not has_python and not (has_node and _node_starts(context)):
        if refuse_generator(tree, context.capabilities, context.findings):
            return Result(kind="static")
        if foreign_language(tree):
            return _foreign(context, None)
    if has_python and not (has_node and _is_rather_node(context)):
        return _python(context)
    return _node(context) if has_node else _by_files(context)


def _of_program(program: str, context: Context) -> Result:
    if program in {"python", "node", "go"}:
        return of_kind(program, context)  # type: ignore[arg-type]  # one of the three
    return _foreign(context, program)


def _is_rather_node(context: Context) -> bool:
    """Whether an app of both languages is started by Node: no command, no start of Python, one of Node."""
    return WEB not in context.processes and not _python_starts(context) and _node_starts(context)


def _by_files(context: Context) -> Result:
    """Without a manifest: a program or a page that has a usual name, or the commands of the Procfile alone."""
    tree = context.tree
    if context.processes:
        return _procfile(context)
    if tree.first(*_PLAIN_PYTHON):
        return _python(context)
    if tree.has("server.js") and not tree.has(INDEX):
        return _node(context)
    if _site(context):
        return _static(context)
    return _procfile(context) if tree.has(PROCFILE) or tree.has(_START_SCRIPT) else _nothing(context)


def _program_language(context: Context) -> str | None:
    """The language of the commands in the Procfile, `web` first; one that knarr has no builder for by its name."""
    named = [context.processes[WEB]] if WEB in context.processes else []
    commands = [*named, *(command for name, command in context.processes.items() if name != WEB)]
    for command in commands:
        if found := language_of(command):
            if found == "go" and not context.tree.has(GO_MOD):
                continue
            return found
        for program in programs(command):
            if language := language_of_program(program):
                return language
    return None


def _foreign(context: Context, language: str | None) -> Result:
    found = foreign_language(context.tree)
    name, file = found or (language or "", PROCFILE)
    if language and (found is None or not found[0].startswith(language)):
        name, file = language, (found[1] if found and found[0] == language else PROCFILE)
    refuse_language(name, file, context.capabilities, context.findings)
    return Result(kind="procfile", processes=dict(context.processes))


def _nothing(context: Context) -> Result:
    files = [name for name in context.tree.names if "/" not in name]
    here = f"its folder has {listed(files[:12])}" if files else "its folder has no file at its top"
    others = named_files(context.tree)
    more = f"; knarr does not read {listed(list(others))}" if others else ""
    apps = _app_folders(context)
    inside = (
        f"set the app's `root` to one of the folders {listed(apps)}" if apps else "set the app's `root` to its folder"
    )
    context.findings.refuse(
        "Nothing says what kind of app this is",
        why=here + more,
        todo=f"Add a {PROCFILE} with a line `web: COMMAND`, or {inside}: `knarr apps update APP --root FOLDER`",
    )
    return Result(kind="procfile", is_unknown=True)


def _app_folders(context: Context) -> list[str]:
    """Folders that look like apps, in a repository of several."""
    signs = (
        PROCFILE,
        PACKAGE_JSON,
        "requirements.txt",
        "pyproject.toml",
        GO_MOD,
        "Dockerfile",
        "Gemfile",
        "composer.json",
    )
    found = context.tree.matching(*(f"{depth}/{sign}" for depth in ("*", "*/*") for sign in signs))
    return sorted({name.rpartition("/")[0] for name in found})[:8]


# --- Python ----------------------------------------------------------------------------------------------------------


def _python(context: Context) -> Result:
    app = read_python(context.tree, context.findings, context.version)
    result = Result(kind="python", version=app.packages.version, processes=dict(context.processes))
    start = None if result.processes else python_start_or_site(context, app, result)
    if start is not None:
        _take(start, result, context)
    packages = _with_project(app, result, context.findings)
    result.framework = result.framework or _framework(context, app)
    _add_node(context, result)
    result.packages.append(packages)
    if context.cupaas.build is not None:
        context.own_build(result)
    elif any("collectstatic" in shown(command) for command in result.processes.values()):
        context.findings.note("collectstatic does not run in the build: the app runs it itself at its start")
    else:
        result.build += collectstatic(context.tree, app, context.findings)
    _drop_runners(result, context)
    if result.kind == "python":
        _require_process(result, context, "python", "`web: gunicorn app:app --bind 0.0.0.0:$PORT`")
    return result


def _drop_runners(result: Result, context: Context) -> None:
    for name, command in result.processes.items():
        plain = without_runner(command)
        if plain != command:
            result.processes[name] = plain
            context.findings.note(f"`{name}` is run as `{shown(plain)}`: the packages are on PATH without that tool")


def python_start_or_site(context: Context, app: PythonApp, result: Result) -> Start | None:
    """How the app is started; a site of MkDocs is built and served as files."""
    before = len(context.findings.refusals)
    start = python_start(context.tree, app, context.findings)
    is_site = context.tree.first(*MKDOCS) is not None and ("mkdocs" in app.dependencies or _has_mkdocs_theme(app))
    if start is None and is_site and len(context.findings.refusals) == before:
        step, output = mkdocs_step(context.tree, context.findings)
        result.kind, result.output, result.framework = "static", output, "MkDocs"
        result.build.append(step)
    return start


def _has_mkdocs_theme(app: PythonApp) -> bool:
    return any(name.startswith("mkdocs-") for name in app.dependencies)


def _framework(context: Context, app: PythonApp) -> str | None:
    """The framework of an app whose start command stands in a file."""
    scratch = Findings()
    start = python_start(context.tree, app, scratch)
    if start is not None:
        return start.framework
    return next((error.what.split()[0] for error in scratch.refusals if " is in " in error.what), None)


def _python_starts(context: Context) -> bool:
    scratch = Findings()
    start = python_start(context.tree, read_python(context.tree, scratch), scratch)
    return start is not None or any(" is in " in error.what for error in scratch.refusals)


def _with_project(app: PythonApp, result: Result, findings: Findings) -> Packages:
    """Install the project too where a process is one of its own commands."""
    if app.packages.project or not app.scripts or app.packages.tool in {"pipenv", "pylock"}:
        return app.packages
    names = {program for command in result.processes.values() for program in programs(command)}
    if not names & set(app.scripts):
        return app.packages
    findings.found(f"the project itself is installed: {listed(sorted(names & set(app.scripts)))} is its command")
    return app.packages.model_copy(update={"project": True})


# --- Node ------------------------------------------------------------------------------------------------------------


def _node(context: Context) -> Result:
    tree, findings = context.tree, context.findings
    app = read_node(tree, findings, context.version)
    result = Result(kind="node", processes=dict(context.processes))
    if app is None:
        return result
    result.version = app.packages.version
    build = node_build(tree, app, findings, has_web=WEB in result.processes)
    _take_build(build, result, context)
    if build.start is not None and WEB not in result.processes:
        _take(build.start, result, context)
    if build.output is not None and not result.processes:
        result.kind, result.output, result.fallback = "static", build.output, build.fallback
        findings.found(f"{build.output} is served as files ({build.framework})")
    elif not result.processes and not build.steps and _site(context):
        return _static(context)
    if is_python(tree):
        _add_python(context, result)
    result.packages.insert(0, _with_dev(app, result, findings))
    context.own_build(result)
    if result.kind == "node":
        _require_process(result, context, "node", "`web: node server.js`", more=f"`scripts.start` to {PACKAGE_JSON}")
    return result


def _take_build(build: NodeBuild, result: Result, context: Context) -> None:
    result.framework = result.framework or build.framework
    if context.cupaas.build is None:
        result.build += build.steps


def _with_dev(app: NodeApp, result: Result, findings: Findings) -> Packages:
    name = needs_dev(app.package, result.processes.values())
    if name is None:
        return app.packages
    findings.note(f"{name} is in devDependencies and is needed to start the app: development packages are in the image")
    return app.packages.model_copy(update={"include_dev": True})


def _node_starts(context: Context) -> bool:
    """Whether Node alone could run the app: a start command, or files that are built and served."""
    scratch = Findings()
    app = read_node(context.tree, scratch)
    if app is None:
        return True
    if not app.package.scripts.get("start") and context.tree.first("composer.json", "Gemfile", "mix.exs", "pom.xml"):
        return False
    build = node_build(context.tree, app, scratch, has_web=False)
    return build.start is not None or build.output is not None


def _add_node(context: Context, result: Result) -> None:
    """Build the front end of an app of another language, where it has one."""
    if not context.tree.has(PACKAGE_JSON):
        return
    scratch = Findings()
    app = read_node(context.tree, scratch)
    uses_node = any(language_of(command) == "node" for command in result.processes.values())
    if app is not None and not uses_node:
        build = node_build(context.tree, app, Findings(), has_web=True)
        if not build.steps and not app.package.dependencies:
            context.findings.note(f"{PACKAGE_JSON}: passed over, it has no build script and no dependencies")
            return
    app = read_node(context.tree, context.findings)
    if app is None:
        return
    build = node_build(context.tree, app, context.findings, has_web=True)
    if context.cupaas.build is None:
        result.build[:0] = build.steps
    result.packages.append(_with_dev(app, result, context.findings))


def _add_python(context: Context, result: Result) -> None:
    """Install the Python packages of a Node or Go app, where it has some."""
    app = read_python(context.tree, context.findings)
    if app.packages.manifests:
        result.packages.append(app.packages)


# --- Go, static, Procfile --------------------------------------------------------------------------------------------


def _go(context: Context) -> Result:
    app = read_go(context.tree, context.findings, context.version, has_web=bool(context.processes))
    result = Result(kind="go", version=app.packages.version, processes=dict(context.processes), framework=app.framework)
    result.build += app.build
    _add_node(context, result)
    if any(language_of(command) == "python" for command in result.processes.values()):
        _add_python(context, result)
    result.packages.append(app.packages)
    if app.start is not None:
        _take(app.start, result, context)
    made = {step.command[3].removeprefix("bin/") for step in app.build}
    for name, command in result.processes.items():
        if not made.isdisjoint(programs(command)):  # Heroku has the folder `bin` on PATH
            result.processes[name] = shell(f'PATH="$PWD/bin:$PATH"; {shown(command)}')
    context.own_build(result)
    return result


def _site(context: Context) -> bool:
    return (
        bool(context.cupaas.output)
        or static_site(context.tree, Findings()) is not None
        or _foreign_output(context) is not None
    )


def _foreign_output(context: Context) -> str | None:
    output = context.foreign.output if context.foreign else None
    name = (output or "").strip("./")
    return name if name and context.tree.has_folder(name) else None


def _static(context: Context) -> Result:
    result = Result(kind="static", output=context.cupaas.output, fallback=context.cupaas.fallback)
    site = static_site(context.tree, context.findings)
    if result.output is None and (named := _foreign_output(context)):
        result.output = named
    elif result.output is None and site is not None:
        result.output, result.fallback = site.output, result.fallback or site.fallback
        context.findings.found(f"Static site: {site.output or 'the app folder'} is served ({site.where})")
    elif result.output is None:
        context.findings.refuse(
            f"There is no {INDEX} to serve",
            todo=f"Add one, or name the folder: `build: {{output: FOLDER}}` in {CUPAAS}.",
        )
    if context.processes:
        context.findings.note(
            f"{listed(sorted(context.processes))} of the {PROCFILE}: passed over, a static site has a server"
        )
    return result


def _procfile(context: Context) -> Result:
    result = Result(kind="procfile", processes=dict(context.processes))
    if context.tree.has(PROCFILE):
        context.findings.found(f"{PROCFILE} alone: nothing is installed")
    _require_process(result, context, "", "`web: ./server --port $PORT`")
    return result


# --- all -------------------------------------------------------------------------------------------------------------


def _take(start: Start, result: Result, context: Context) -> None:
    result.processes[start.process] = start.command
    result.framework = start.framework or result.framework
    result.build += start.build
    what = f"{start.framework}, {start.where}" if start.framework and start.framework != start.where else start.where
    context.findings.found(f"{start.process}: {shown(start.command)} ({what})")


def _require_process(result: Result, context: Context, language: str, example: str, *, more: str = "") -> None:
    if not result.processes and not context.findings.refusals and context.tree.has(_START_SCRIPT):
        _take(Start(shell(f"sh {_START_SCRIPT}"), _START_SCRIPT), result, context)
    if result.processes or context.findings.refusals:
        return
    named = f"this {language} app" if language else "this app"
    either = f"Add {more}, or a" if more else "Add a"
    context.findings.refuse(
        f"Nothing says how to start {named}",
        why="it has no process type, and no file that is known as a start",
        todo=f"{either} {PROCFILE} with a line such as {example}, or `entrypoint` to {CUPAAS}.",
    )
