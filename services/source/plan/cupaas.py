"""`.cupaas.yml`: knarr's own file. It is stronger than every other one, and a key that it does not know is an error."""

import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from services.source.contract import AddOn, HealthCheck, Runtime, Storage
from services.source.errors import AppInvalid
from services.source.manifests import JsonObject
from services.source.plan.addons import KINDS, VERSION, add, addon_of
from services.source.plan.checks import read_check, read_checks
from services.source.plan.findings import Findings, listed, nearest
from services.source.plan.formats import yaml_of
from services.source.plan.procfile import Command, shell
from services.source.plan.tree import Tree

CUPAAS = ".cupaas.yml"
RuntimeKind = Literal["python", "node", "go", "static", "procfile", "dockerfile", "buildpacks"]
_RUNTIMES = ("python", "node", "go", "static", "procfile", "dockerfile", "buildpacks")
_WITH_VERSION = ("python", "node", "go")
_KEYS = ("runtime", "entrypoint", "services", "port", "storage", "build", "health")
_BUILD_KEYS = ("dockerfile", "target", "args", "command", "output", "fallback")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
_SIZE = re.compile(r"(\d{1,9})\s*([KMGT]?)(i?)B?", re.ASCII)
_FOLDER = re.compile(r"/[A-Za-z0-9._/-]{1,250}", re.ASCII)
MAX_STORAGE = 8
"""Folders that one app keeps."""


@dataclass(frozen=True, slots=True)
class Cupaas:
    """What the file says."""

    runtime: Runtime | None = None
    entrypoint: Command | None = None
    addons: tuple[AddOn, ...] = ()
    port: int | None = None
    storage: tuple[Storage, ...] = ()
    health: tuple[HealthCheck, ...] = ()
    dockerfile: str | None = None
    docker_target: str | None = None
    docker_args: tuple[str, ...] = ()
    build: Command | None = None
    """Runs after the packages are installed, in place of the build that is detected."""
    output: str | None = None
    fallback: str | None = None


def read_cupaas(tree: Tree, findings: Findings) -> Cupaas:
    """Return what `.cupaas.yml` says; nothing where it is not there."""
    if not tree.has(CUPAAS):
        if wrong := tree.first(".cupaas.yaml", "cupaas.yml", "cupaas.yaml"):
            findings.note(f"{wrong} is not read: the file's name is {CUPAAS}")
        return Cupaas()
    with findings.collecting():
        content = yaml_of(tree, CUPAAS)
        _only(content, _KEYS, findings)
        build = JsonObject(CUPAAS, "build", content.object("build"))
        _only(build, _BUILD_KEYS, findings)
        return Cupaas(
            runtime=_runtime(content, findings),
            entrypoint=_command(CUPAAS, "entrypoint", content.get("entrypoint"), findings),
            addons=_addons(content.get("services"), findings),
            port=_port(content.get("port"), findings),
            storage=_storage(content.get("storage"), findings),
            health=_health(content, findings),
            dockerfile=_path(build, "dockerfile", findings),
            docker_target=_target(build, findings),
            docker_args=_docker_args(build, findings),
            build=_command(CUPAAS, "build.command", build.get("command"), findings),
            output=_path(build, "output", findings),
            fallback=_path(build, "fallback", findings),
        )
    return Cupaas()


def _only(content: JsonObject, allowed: tuple[str, ...], findings: Findings) -> None:
    for key in content.names:
        if key not in allowed:
            findings.refuse(
                f"{content.place(key[:80])} is not known.{nearest(key, allowed)}",
                todo=f"Allowed are {', '.join(sorted(allowed))}.",
            )


def _runtime(content: JsonObject, findings: Findings) -> Runtime | None:
    if content.get("runtime") is None:
        return None
    with findings.collecting():
        text = content.text("runtime")
        kind, colon, version = text.partition(":")
        if kind not in _RUNTIMES:
            raise AppInvalid(
                f"{CUPAAS}: `runtime` names {text[:80]!r}, which knarr does not know.{nearest(kind, _RUNTIMES)}",
                todo=f"Known are {listed(_RUNTIMES)}, with a version behind a colon for {listed(_WITH_VERSION)}"
                " (`python:3.11`).",
            )
        if colon and (kind not in _WITH_VERSION or not VERSION.fullmatch(version)):
            raise AppInvalid(
                f"{CUPAAS}: `runtime` has the version {version[:80]!r}",
                why=f"only {listed(_WITH_VERSION)} take one, in digits and dots",
                todo="For example `python:3.11` or `node:20`.",
            )
        return Runtime(kind=cast("RuntimeKind", kind), version=version or None)
    return None


def _command(file: str, where: str, value: Any, findings: Findings) -> Command | None:
    if value is None:
        return None
    if isinstance(value, str) and value.strip():
        return shell(value.strip())
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value) and value[0]:
        return tuple(value)
    findings.refuse(
        f"{file}: `{where}` is no command",
        todo=f'Write the program and its arguments as a list, for example `{where}: ["python", "app.py"]`.',
    )
    return None


def _addons(value: Any, findings: Findings) -> tuple[AddOn, ...]:
    if value in (None, ""):
        return ()
    example = "For example `services: [{mongodb: 6.0.2}, redis]`."
    if not isinstance(value, list):
        findings.refuse(f"{CUPAAS}: `services` is no list", todo=example)
        return ()
    found: dict[str, AddOn] = {}
    for item in value:
        if isinstance(item, str):
            name, _, version = item.partition(":")
        elif isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item.values())), str):
            name, version = next(iter(item.items()))
        else:
            findings.refuse(
                f"{CUPAAS}: `services` has an entry that is neither a name nor one `name: version`", todo=example
            )
            continue
        with findings.collecting():
            addon = addon_of(f"{CUPAAS}: `services`", name, version)
            if addon is None:
                raise AppInvalid(
                    f"{CUPAAS}: `services` asks for {name[:80]!r}, an add-on that knarr does not know."
                    f"{nearest(name, KINDS)}",
                    todo=f"Known are {listed(KINDS)}.",
                )
            add(found, addon, CUPAAS)
    return tuple(found.values())


def _port(value: Any, findings: Findings) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"\d{1,5}", value, re.ASCII) and 1 <= int(value) <= 65535:
        return int(value)
    findings.refuse(f"{CUPAAS}: `port` is {str(value)[:80]!r}", todo="It must be a number from 1 to 65535.")
    return None


def _storage(value: Any, findings: Findings) -> tuple[Storage, ...]:
    if value in (None, ""):
        return ()
    items = value if isinstance(value, list) else [value]
    found: dict[str, Storage] = {}
    for item in items:
        with findings.collecting():
            each = _folder(item)
            if each.path in found:
                raise AppInvalid(f"{CUPAAS}: `storage` names {each.path} twice", todo="Remove one.")
            found[each.path] = each
    if len(found) > MAX_STORAGE:
        findings.refuse(f"{CUPAAS}: `storage` has {len(found)} folders", todo=f"At most {MAX_STORAGE} are taken.")
    return tuple(found.values())


def _folder(item: Any) -> Storage:
    declared = JsonObject(CUPAAS, "storage", {"path": item} if isinstance(item, str) else item)
    declared.only("path", "size")
    path = declared.text("path").rstrip("/")
    if not _FOLDER.fullmatch(path) or not {"..", "."}.isdisjoint(path.split("/")) or "//" in path:
        raise AppInvalid(
            f"{CUPAAS}: `storage.path` is {path[:80]!r}", todo="Write an absolute path, for example `/data`."
        )
    size = declared.get("size")
    if size is None:
        return Storage(path=path)
    match = _SIZE.fullmatch(str(size).strip())
    if match is None or int(match[1]) == 0:
        raise AppInvalid(f"{CUPAAS}: `storage.size` is {str(size)[:80]!r}", todo="For example `500M` or `1G`.")
    return Storage(path=path, size_bytes=int(match[1]) * 1024 ** " KMGT".index(match[2] or " "))


def _health(content: JsonObject, findings: Findings) -> tuple[HealthCheck, ...]:
    value = content.get("health")
    if value is None:
        return ()
    if isinstance(value, str):
        value = {"path": value}
    if isinstance(value, list):
        return read_checks(findings, CUPAAS, "health", value)
    with findings.collecting():
        return read_check(findings, JsonObject(CUPAAS, "health", value))
    return ()


def _path(build: JsonObject, key: str, findings: Findings) -> str | None:
    value = build.get(key)
    if value is None:
        return None
    if isinstance(value, str) and (path := inside(value)) is not None:
        return path
    findings.refuse(
        f"{build.place(key)} is {str(value)[:80]!r}", todo="Write a path inside the app's folder, without `..`."
    )
    return None


def inside(path: str) -> str | None:
    """The relative path in its plain form, or None where it leads out of the app's folder, or nowhere."""
    parts = [part for part in path.strip().split("/") if part not in {"", "."}]
    if path.startswith("/") or ".." in parts or not parts or len(path) > 1024:
        return None
    return "/".join(parts)


def _target(build: JsonObject, findings: Findings) -> str | None:
    value = build.get("target")
    if value is None or (isinstance(value, str) and _TARGET.fullmatch(value)):
        return value
    findings.refuse(f"{build.place('target')} is {str(value)[:80]!r}", todo="Name a stage of the Dockerfile.")
    return None


def _docker_args(build: JsonObject, findings: Findings) -> tuple[str, ...]:
    value = build.get("args", [])
    if isinstance(value, list) and all(isinstance(item, str) and _ENV_NAME.fullmatch(item) for item in value):
        if platforms := [name for name in value if name.upper().startswith("BUILDKIT_")]:
            findings.refuse(f"{build.place('args')} names {platforms[0]}, which the platform sets", todo="Remove it.")
            return ()
        return tuple(value)
    findings.refuse(
        f"{build.place('args')} is no list of names of config vars", todo="For example `args: [PUBLIC_URL]`."
    )
    return ()
