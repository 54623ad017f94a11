"""The files at an app's root in; one checked `AppDescription` out, or an error that says which file, which key and why.

Pure: no disk, no network, no clock. `.cupaas.yml` is stronger than the `Procfile`, and that is stronger than what the
language would do by itself. The formats, with examples, are in `docs/app-formats.md`.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from services.source.contract import AddOn, AppDescription, EnvVar, Runtime
from services.source.errors import AppInvalid
from services.source.manifests import JsonObject, clean, read_json, read_text, read_yaml

CUPAAS = ".cupaas.yml"
PROCFILE = "Procfile"
APP_JSON = "app.json"
PACKAGE_JSON = "package.json"
PYPROJECT = "pyproject.toml"
REQUIREMENTS = "requirements.txt"
PYTHON_VERSION = ".python-version"
RUNTIME_TXT = "runtime.txt"
DOCKERFILE = "Dockerfile"
INDEX_HTML = "index.html"
SERVER_JS = "server.js"

KNOWN_FILES = (
    CUPAAS,
    PROCFILE,
    APP_JSON,
    PACKAGE_JSON,
    PYPROJECT,
    REQUIREMENTS,
    PYTHON_VERSION,
    RUNTIME_TXT,
    DOCKERFILE,
    INDEX_HTML,
    SERVER_JS,
)
"""All that `describe` looks at, at the app's root; of the last three and `requirements.txt` only whether they exist."""

MAX_FILE_BYTES = 256 * 1024
"""A manifest that is larger was made by mistake, or to hurt."""

MAX_YAML_BYTES = 16 * 1024
"""The YAML parser is slow, some 50 kB a second at its worst; three keys need a few hundred bytes."""

RuntimeKind = Literal["python", "node", "go", "static", "procfile", "dockerfile", "buildpacks"]
AddOnKind = Literal["mongodb", "postgres", "mysql", "redis"]
_RUNTIMES = ("python", "node", "static", "procfile", "dockerfile")
_ADDONS: tuple[str, ...] = get_args(AddOnKind)
_ADDON_NAMES: Mapping[str, str] = {
    **{kind: kind for kind in _ADDONS},
    "mongo": "mongodb",
    "postgresql": "postgres",
    "heroku-postgresql": "postgres",
    "heroku-redis": "redis",
    "jawsdb": "mysql",
}
"""Names that are understood, with Heroku's own for `app.json`."""

_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}", re.ASCII)
_PROCESS_TYPE = re.compile(r"[a-z][a-z0-9-]{0,30}", re.ASCII)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_HEALTH_PATH = re.compile(r"/[!-~]{0,1023}", re.ASCII)
_MAX_INSTANCES = 100
_RELEASE = "release"
_WEB = "web"

Command = tuple[str, ...]


def describe(files: Mapping[str, bytes]) -> AppDescription:
    """Say what the app is and how it runs.

    Args:
        files: Those of `KNOWN_FILES` that the app's root has, each at least up to `MAX_FILE_BYTES` and one byte more.

    Raises:
        AppInvalid: A file cannot be read, has a wrong key or value, or nothing says how to run the app.
    """
    cupaas = _read_cupaas(files)
    app_json = _read_app_json(files)
    procfile = _read_procfile(files)
    package = read_json(PACKAGE_JSON, files[PACKAGE_JSON], MAX_FILE_BYTES) if PACKAGE_JSON in files else None
    runtime = cupaas.runtime or _detected_runtime(files)
    runtime = _with_version(runtime, files, package)
    processes = _processes(runtime.kind, cupaas, procfile, package, files)
    _check_formation(app_json.formation, runtime.kind, processes)
    addons = {addon.kind: addon for addon in (*app_json.addons, *cupaas.addons)}
    return AppDescription(
        runtime=runtime,
        processes=processes,
        release=procfile.get(_RELEASE),
        env=app_json.env,
        formation=app_json.formation,
        health_path=app_json.health_path,
        addons=tuple(addons.values()),
        dockerfile=DOCKERFILE if runtime.kind == "dockerfile" else None,
    )


# --- .cupaas.yml -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cupaas:
    runtime: Runtime | None = None
    entrypoint: Command | None = None
    addons: tuple[AddOn, ...] = ()


def _read_cupaas(files: Mapping[str, bytes]) -> _Cupaas:
    if CUPAAS not in files:
        return _Cupaas()
    content = read_yaml(CUPAAS, files[CUPAAS], MAX_YAML_BYTES)
    content.only("runtime", "entrypoint", "services")
    runtime = content.get("runtime")
    return _Cupaas(
        runtime=None if runtime is None else _runtime(content.text("runtime")),
        entrypoint=_entrypoint(content.get("entrypoint")),
        addons=_cupaas_addons(content.get("services")),
    )


def _runtime(text: str) -> Runtime:
    kind, colon, version = text.partition(":")
    if kind not in _RUNTIMES:
        raise AppInvalid(
            f"{CUPAAS}: `runtime` names {text!r}, which knarr does not know",
            todo=f"Known are {_list(_RUNTIMES)}, with a version behind a colon for python and node (`python:3.11`).",
        )
    if colon and (kind not in {"python", "node"} or not _VERSION.fullmatch(version)):
        raise AppInvalid(
            f"{CUPAAS}: `runtime` has the version {version!r}",
            why="only python and node take one, in digits and dots",
            todo="For example `python:3.11` or `node:20`.",
        )
    return Runtime(kind=cast("RuntimeKind", kind), version=version or None)


def _entrypoint(value: Any) -> Command | None:
    if value is None:
        return None
    if isinstance(value, str) and value.strip():
        return _shell(value.strip())
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value) and value[0]:
        return tuple(value)
    raise AppInvalid(
        f"{CUPAAS}: `entrypoint` is no command",
        todo='Write the program and its arguments as a list, for example `entrypoint: ["python", "app.py"]`.',
    )


def _cupaas_addons(value: Any) -> tuple[AddOn, ...]:
    if value in (None, ""):
        return ()
    if not isinstance(value, list):
        raise AppInvalid(f"{CUPAAS}: `services` is no list", todo="For example `services: [{mongodb: 6.0.2}, redis]`.")
    found: dict[str, AddOn] = {}
    for item in value:
        if isinstance(item, str):
            name, _, version = item.partition(":")
        elif isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item.values())), str):
            name, version = next(iter(item.items()))
        else:
            raise AppInvalid(
                f"{CUPAAS}: `services` has an entry that is neither a name nor one `name: version`",
                todo="For example `services: [{mongodb: 6.0.2}, redis]`.",
            )
        _add(found, _addon(f"{CUPAAS}: `services`", name, version), CUPAAS)
    return tuple(found.values())


def _addon(where: str, name: str, version: str) -> AddOn:
    kind = _ADDON_NAMES.get(name)
    if kind is None:
        raise AppInvalid(
            f"{where} asks for {name!r}, an add-on that knarr does not know", todo=f"Known are {_list(_ADDONS)}."
        )
    if version and not _VERSION.fullmatch(version):
        raise AppInvalid(
            f"{where} asks for {name} in version {version!r}",
            todo="A version is digits and dots (`6.0.2`); leave it out for the platform's own.",
        )
    return AddOn(kind=cast("AddOnKind", kind), version=version or None)


def _add(found: dict[str, AddOn], addon: AddOn, file: str) -> None:
    if addon.kind in found:
        raise AppInvalid(f"{file} asks for {addon.kind} twice", todo="An app has at most one add-on of a kind.")
    found[addon.kind] = addon


# --- Procfile --------------------------------------------------------------------------------------------------------


def _read_procfile(files: Mapping[str, bytes]) -> Mapping[str, Command]:
    if PROCFILE not in files:
        return {}
    found: dict[str, Command] = {}
    for number, line in enumerate(read_text(PROCFILE, files[PROCFILE], MAX_FILE_BYTES).splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, command = line.partition(":")
        name, command = name.strip(), command.strip()
        if not colon or not _PROCESS_TYPE.fullmatch(name) or not command:
            raise AppInvalid(
                f"{PROCFILE}: line {number} is not `type: command`",
                why=f"it is {line[:80]!r}",
                todo="A type is lower-case letters, digits and `-`, for example `web: python app.py`.",
            )
        if name in found:
            raise AppInvalid(f"{PROCFILE}: line {number} has the type {name!r} a second time", todo="Remove one.")
        found[name] = _shell(command)
    if not found:
        raise AppInvalid(f"{PROCFILE} has no process type", todo="Add a line such as `web: python app.py`.")
    return found


def _shell(line: str) -> Command:
    return ("/bin/sh", "-c", line)


# --- app.json --------------------------------------------------------------------------------------------------------

_APP_JSON_READ = ("env", "formation", "healthchecks", "addons")
_APP_JSON_PASSED_OVER = (
    "$schema",
    "name",
    "description",
    "keywords",
    "website",
    "repository",
    "logo",
    "success_url",
    "scripts",
    "environments",
    "stack",
    "buildpacks",
    "image",
)
_HEALTHCHECK_KEYS = (
    "type",
    "path",
    "name",
    "description",
    "attempts",
    "command",
    "content",
    "httpHeaders",
    "initialDelay",
    "listening",
    "onFailure",
    "port",
    "scheme",
    "timeout",
    "uptime",
    "wait",
    "warn",
)


@dataclass(frozen=True, slots=True)
class _AppJson:
    env: Mapping[str, EnvVar]
    formation: Mapping[str, int]
    health_path: str | None
    addons: tuple[AddOn, ...]


def _read_app_json(files: Mapping[str, bytes]) -> _AppJson:
    if APP_JSON not in files:
        return _AppJson({}, {}, None, ())
    content = read_json(APP_JSON, files[APP_JSON], MAX_FILE_BYTES, refuse_duplicates=True)
    content.only(*_APP_JSON_READ, *_APP_JSON_PASSED_OVER)
    return _AppJson(
        env={name: _env_var(name, value) for name, value in content.object("env").items()},
        formation={name: _quantity(name, value) for name, value in content.object("formation").items()},
        health_path=_health_path(content.object("healthchecks")),
        addons=_app_json_addons(content.get("addons")),
    )


def _env_var(name: str, value: Any) -> EnvVar:
    where = f"env.{name}"
    if not _ENV_NAME.fullmatch(name) or name == "PORT":
        raise AppInvalid(
            f"{APP_JSON}: `env` has the name {name!r}",
            why="PORT is given by the platform" if name == "PORT" else "it is no name of an environment variable",
            todo="A name is letters, digits and `_`, and does not begin with a digit.",
        )
    if isinstance(value, str):
        return EnvVar(value=value)
    declared = JsonObject(APP_JSON, where, value)
    declared.only("description", "value", "required", "generator")
    generator = declared.get("generator")
    if generator not in {None, "secret"}:
        raise AppInvalid(f"{APP_JSON}: `{where}.generator` is {generator!r}", todo='Known is "secret".')
    required = declared.get("required", True)
    default = declared.get("value")
    if not isinstance(required, bool) or not (default is None or isinstance(default, str)):
        raise AppInvalid(
            f"{APP_JSON}: `{where}` has a value of the wrong kind",
            todo="`value` is a text, `required` is true or false.",
        )
    return EnvVar(value=default, generate=generator == "secret", required=required)


def _quantity(name: str, value: Any) -> int:
    declared = JsonObject(APP_JSON, f"formation.{name}", value)
    declared.only("quantity", "size")
    quantity = declared.get("quantity", 1)
    if isinstance(quantity, bool) or not isinstance(quantity, int) or not 0 <= quantity <= _MAX_INSTANCES:
        raise AppInvalid(
            f"{APP_JSON}: `formation.{name}.quantity` is {quantity!r}", todo=f"Allowed is 0 to {_MAX_INSTANCES}."
        )
    return quantity


def _health_path(checks: Mapping[str, Any]) -> str | None:
    """The path of `web`'s first check that has one; start-up checks go before the others."""
    declared = checks.get(_WEB, [])
    if not isinstance(declared, list):
        raise AppInvalid(f"{APP_JSON}: `healthchecks.web` is no list", todo='For example `[{"path": "/health"}]`.')
    by_type: dict[str, str] = {}
    for number, check in enumerate(declared):
        content = JsonObject(APP_JSON, f"healthchecks.web[{number}]", check)
        content.only(*_HEALTHCHECK_KEYS)
        kind = content.get("type", "startup")
        if kind not in {"startup", "readiness", "liveness"}:
            raise AppInvalid(
                f"{APP_JSON}: `healthchecks.web[{number}].type` is {kind!r}",
                todo="Known are startup, readiness and liveness.",
            )
        path = content.get("path")
        if path is None:
            continue
        if not isinstance(path, str) or not _HEALTH_PATH.fullmatch(path):
            raise AppInvalid(
                f"{APP_JSON}: `healthchecks.web[{number}].path` is {path!r}",
                todo="A path begins with `/` and has no spaces, for example `/health`.",
            )
        by_type.setdefault(kind, path)
    return next((by_type[kind] for kind in ("startup", "readiness", "liveness") if kind in by_type), None)


def _app_json_addons(value: Any) -> tuple[AddOn, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise AppInvalid(f"{APP_JSON}: `addons` is no list", todo='For example `["heroku-postgresql"]`.')
    found: dict[str, AddOn] = {}
    for number, item in enumerate(value):
        where = f"addons[{number}]"
        version = ""
        if isinstance(item, str):
            plan = item
        else:
            declared = JsonObject(APP_JSON, where, item)
            declared.only("plan", "as", "options")
            plan = declared.text("plan")
            options = declared.object("options")
            version = JsonObject(APP_JSON, f"{where}.options", options).text("version") if "version" in options else ""
        name = plan.partition(":")[0]  # what follows is a price list of somebody else
        _add(found, _addon(f"{APP_JSON}: `{where}`", name, version), APP_JSON)
    return tuple(found.values())


def _check_formation(formation: Mapping[str, int], kind: RuntimeKind, processes: Mapping[str, Command]) -> None:
    known = set(processes) or {_WEB}
    if kind == "dockerfile":
        known.add(_WEB)  # the image's own command
    for name in formation:
        if name not in known:
            raise AppInvalid(
                f"{APP_JSON}: `formation` names the process type {name!r}, which the app does not have",
                todo=f"It has {_list(sorted(known))}; add a line to the {PROCFILE}, or remove it from `formation`.",
            )


# --- what the language says ------------------------------------------------------------------------------------------


def _detected_runtime(files: Mapping[str, bytes]) -> Runtime:
    """A Dockerfile decides; else the language whose files are there; else the Procfile; else a page."""
    if DOCKERFILE in files:
        return Runtime(kind="dockerfile")
    python = [name for name in (REQUIREMENTS, PYPROJECT, PYTHON_VERSION, RUNTIME_TXT) if name in files]
    if PYPROJECT in python and not _is_python_project(files[PYPROJECT]):
        python.remove(PYPROJECT)
    if python and PACKAGE_JSON in files:
        raise AppInvalid(
            "The app could be written for Python or for Node",
            why=f"it has {python[0]} and {PACKAGE_JSON}",
            todo=f"Say which in {CUPAAS}: `runtime: python` or `runtime: node`.",
        )
    if python:
        return Runtime(kind="python")
    if PACKAGE_JSON in files:
        return Runtime(kind="node")
    if PROCFILE in files:
        return Runtime(kind="procfile")
    if INDEX_HTML in files:
        return Runtime(kind="static")
    raise AppInvalid(
        "Nothing says what kind of app this is",
        why=f"the app's folder has none of {_list(KNOWN_FILES)}",
        todo=f"Add a {PROCFILE} with a line `web: COMMAND`, or set the app's `root` to the folder that holds the app.",
    )


def _is_python_project(data: bytes) -> bool:
    """True unless the file only configures tools, as it does in many repositories of other languages."""
    try:
        content = tomllib.loads(read_text(PYPROJECT, data, MAX_FILE_BYTES))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise AppInvalid(f"{PYPROJECT} cannot be read", why=str(error)[:300], todo="Correct it.") from error
    tool = content.get("tool")
    return "project" in content or "build-system" in content or (isinstance(tool, dict) and "poetry" in tool)


def _with_version(runtime: Runtime, files: Mapping[str, bytes], package: JsonObject | None) -> Runtime:
    if runtime.version is not None:
        return runtime
    if runtime.kind == "python":
        return Runtime(kind="python", version=_python_version(files))
    if runtime.kind == "node" and package is not None:
        return Runtime(kind="node", version=_node_version(package))
    return runtime


def _python_version(files: Mapping[str, bytes]) -> str | None:
    for file in (PYTHON_VERSION, RUNTIME_TXT):
        if file not in files:
            continue
        lines = [line.strip() for line in read_text(file, files[file], MAX_FILE_BYTES).splitlines()]
        asked = next((line for line in lines if line and not line.startswith("#")), "")
        version = asked.removeprefix("python-")
        if not _VERSION.fullmatch(version):
            example = "3.11" if file == PYTHON_VERSION else "python-3.11"
            raise AppInvalid(f"{file} asks for {asked[:80]!r}", todo=f"A version is digits and dots: `{example}`.")
        return version
    return None


def _node_version(package: JsonObject) -> str | None:
    """`20`, `20.x`, `^20.1` and `~20.1` are understood; a wider range leaves the choice to the builder."""
    asked = package.object("engines").get("node")
    if asked is None:
        return None
    if not isinstance(asked, str):
        raise AppInvalid(f"{PACKAGE_JSON}: `engines.node` is no text", todo='For example `"20"` or `"20.x"`.')
    exact = re.fullmatch(r"[v=]?(\d+(?:\.\d+){0,2})(?:\.[x*])*", asked.strip(), re.ASCII)
    if exact:
        return exact[1]
    near = re.fullmatch(r"\^\s*v?(\d+)(?:\.\S*)?|~\s*v?(\d+(?:\.\d+)?)(?:\.\S*)?", asked.strip(), re.ASCII)
    return (near[1] or near[2]) if near else None


def _processes(
    kind: RuntimeKind,
    cupaas: _Cupaas,
    procfile: Mapping[str, Command],
    package: JsonObject | None,
    files: Mapping[str, bytes],
) -> Mapping[str, Command]:
    found = {name: command for name, command in procfile.items() if name != _RELEASE}
    if cupaas.entrypoint is not None:
        found[_WEB] = cupaas.entrypoint
    if kind == "node" and _WEB not in found and (start := _npm_start(package, files)):
        found[_WEB] = start
    if kind in {"static", "dockerfile"} or found:
        return found
    hints = {
        "python": f"Add a {PROCFILE} with a line such as `web: gunicorn app:app --bind 0.0.0.0:$PORT`",
        "node": f"Add `scripts.start` to {PACKAGE_JSON}, or a {PROCFILE} with a line such as `web: node server.js`",
    }
    hint = hints.get(kind, f"Add a {PROCFILE} with a line such as `web: ./server --port $PORT`")
    raise AppInvalid(
        f"Nothing says how to start this {kind} app" if kind != "procfile" else "Nothing says how to start this app",
        why="it has no process type",
        todo=f"{hint}, or `entrypoint` to {CUPAAS}.",
    )


def _npm_start(package: JsonObject | None, files: Mapping[str, bytes]) -> Command | None:
    """What `npm start` would run, without npm in between: it would not pass SIGTERM on."""
    start = None if package is None else package.object("scripts").get("start")
    if start is None:
        return ("node", SERVER_JS) if SERVER_JS in files else None
    if not isinstance(start, str) or not start.strip():
        raise AppInvalid(f"{PACKAGE_JSON}: `scripts.start` is no command", todo='For example `"node server.js"`.')
    return _shell(clean(PACKAGE_JSON, "scripts.start", start.strip()))


def _list(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]
