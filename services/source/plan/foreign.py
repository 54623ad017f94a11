"""Configuration of other platforms: start commands, health paths and release commands are read, the rest is named.

A file that cannot be read is passed over with a note: it is not knarr's, and the app may run without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.source.errors import AppInvalid
from services.source.manifests import clean
from services.source.plan.findings import Findings, listed
from services.source.plan.formats import json_of, table, text, texts, toml_of, yaml_of
from services.source.plan.tree import Tree


@dataclass(frozen=True, slots=True)
class Foreign:
    """What another platform's file says."""

    file: str
    web: str | None = None
    processes: Mapping[str, str] = field(default_factory=dict)
    release: str | None = None
    build: str | None = None
    """Named in a note: knarr runs the build that it detects."""
    health_path: str | None = None
    output: str | None = None
    dockerfile: str | None = None
    ignored: tuple[str, ...] = ()
    """Keys that are named as not honoured."""


_INSTALLS = ("pip install", "npm install", "npm ci", "npm i", "yarn", "pnpm install", "bun install", "poetry install")
_NAMED = (
    "vercel.json",
    "heroku.yml",
    "captain-definition",
    ".do/app.yaml",
    "app.yaml",
    "Caddyfile",
    "docker-compose.yml",
)
"""Files that are only named, where nothing else says how the app runs."""


def read_foreign(tree: Tree, findings: Findings) -> Foreign | None:
    """Return what the first such file says that names a command, and name the others."""
    counts: Foreign | None = None
    for file, read in _READERS.items():
        if not tree.has(file):
            continue
        try:
            found = read(tree, file)
        except AppInvalid as error:
            findings.note(f"{file} is passed over: {error.message}")
            continue
        if found is None:
            continue
        if found.ignored:
            findings.note(f"not honoured: {listed([f'`{key}`' for key in found.ignored])} of {file}")
        if found.build and not found.build.startswith(_INSTALLS):
            findings.note(
                f"not honoured: the build command of {file}, `{found.build[:80]}`: knarr runs what it detects"
            )
        if counts is None and (found.web or found.processes or found.output or found.health_path or found.dockerfile):
            counts = found
        elif counts is not None and found.web:
            findings.note(f"{file}: passed over, {counts.file} counts")
    return counts


def named_files(tree: Tree) -> tuple[str, ...]:
    """Files of other platforms that knarr does not read."""
    return tuple(filter(tree.has, _NAMED))


def _command(file: str, value: Any) -> str | None:
    """A command of one line."""
    found = text(value) if isinstance(value, str) else text(" && ".join(texts(value)))
    return clean(file, "", " ".join(found.split("\n"))) if found else None


def _railway(tree: Tree, file: str) -> Foreign:
    content = json_of(tree, file) if file.endswith(".json") else toml_of(tree, file)
    deploy, build = table(content.get("deploy")), table(content.get("build"))
    return Foreign(
        file,
        web=_command(file, deploy.get("startCommand")),
        release=_command(file, deploy.get("preDeployCommand")),
        build=_command(file, build.get("buildCommand")),
        health_path=_health(deploy.get("healthcheckPath")),
        dockerfile=text(build.get("dockerfilePath")),
        ignored=tuple(f"deploy.{key}" for key in ("cronSchedule", "numReplicas") if deploy.get(key)),
    )


def _railpack(tree: Tree, file: str) -> Foreign:
    content = json_of(tree, file)
    deploy = table(content.get("deploy"))
    ignored = tuple(key for key in ("steps", "packages", "provider", "buildAptPackages") if content.get(key))
    return Foreign(file, web=_command(file, deploy.get("startCommand")), ignored=ignored)


def _nixpacks(tree: Tree, file: str) -> Foreign:
    content = toml_of(tree, file) if file.endswith(".toml") else json_of(tree, file)
    phases = table(content.get("phases"))
    build = _command(file, table(phases, "build").get("cmds"))
    ignored = ("phases.setup",) if table(phases, "setup") else ()
    return Foreign(file, web=_command(file, table(content.get("start")).get("cmd")), build=build, ignored=ignored)


def _render(tree: Tree, file: str) -> Foreign | None:
    services = yaml_of(tree, file).get("services")
    found = [each for each in services if isinstance(each, dict)] if isinstance(services, list) else []
    here = [each for each in found if text(each.get("rootDir")) in {None, ".", "./"}]
    web = next((each for each in here if each.get("type") in {"web", "pserv"}), None)
    workers = {
        text(each.get("name")) or "worker": command
        for each in here
        if each.get("type") == "worker" and (command := _command(file, each.get("startCommand")))
    }
    if web is None:
        return Foreign(file, processes=workers) if workers else None
    ignored = tuple(key for key in ("envVars", "disk", "autoDeploy", "scaling") if web.get(key))
    return Foreign(
        file,
        web=_command(file, web.get("startCommand")),
        processes=workers,
        release=_command(file, web.get("preDeployCommand")),
        build=_command(file, web.get("buildCommand")),
        health_path=_health(web.get("healthCheckPath")),
        output=text(web.get("staticPublishPath")),
        ignored=ignored,
    )


def _fly(tree: Tree, file: str) -> Foreign:
    content = toml_of(tree, file)
    processes = {
        name: line for name, value in table(content.get("processes")).items() if (line := _command(file, value))
    }
    web = processes.pop("app", None) or processes.pop("web", None)
    deploy = table(content.get("deploy"))
    ignored = tuple(key for key in ("env", "mounts", "vm", "services", "statics") if content.get(key))
    return Foreign(
        file,
        web=web,
        processes=processes,
        release=_command(file, deploy.get("release_command")),
        dockerfile=text(table(content.get("build")).get("dockerfile")),
        ignored=ignored,
    )


def _netlify(tree: Tree, file: str) -> Foreign:
    build = table(toml_of(tree, file).get("build"))
    return Foreign(file, build=_command(file, build.get("command")), output=text(build.get("publish")))


def _health(value: Any) -> str | None:
    found = text(value)
    return found if found and found.startswith("/") and " " not in found and len(found) < 1024 else None


_READERS: Mapping[str, Callable[[Tree, str], Foreign | None]] = {
    "railway.json": _railway,
    "railway.toml": _railway,
    "railpack.json": _railpack,
    "nixpacks.toml": _nixpacks,
    "nixpacks.json": _nixpacks,
    "render.yaml": _render,
    "fly.toml": _fly,
    "netlify.toml": _netlify,
}
