"""`app.json` in Heroku's and Dokku's form; a file of that name of another tool is passed over.

Each key is honoured, refused, or named in a note. An unknown key is a note: other platforms have keys of their own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.source.contract import AddOn, Cron, EnvVar, HealthCheck, is_platforms
from services.source.errors import AppInvalid
from services.source.manifests import JsonObject, clean
from services.source.plan.addons import KINDS, add, addon_of
from services.source.plan.checks import read_checks
from services.source.plan.findings import Findings, listed, nearest
from services.source.plan.formats import json_of
from services.source.plan.procfile import Command, shell
from services.source.plan.tree import Tree

APP_JSON = "app.json"
MAX_INSTANCES = 100
_MAX_NAMED = 120
"""Keys of one object that are named; the lines about them are bounded."""
_ACTING = ("env", "formation", "healthchecks", "addons", "scripts", "cron")
_FOR_PEOPLE = ("$schema", "name", "description", "keywords", "website", "repository", "logo", "success_url")
_NOT_HONOURED = ("buildpacks", "stack", "environments", "image", "region", "features", "networks", "scale", "team")
_KNOWN = (*_ACTING, *_FOR_PEOPLE, *_NOT_HONOURED)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_CRON_FIELD = re.compile(r"[0-9A-Za-z*/,?#-]{1,64}", re.ASCII)
_CRON_NAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


@dataclass(frozen=True, slots=True)
class AppJson:
    """What the file asks for."""

    env: Mapping[str, EnvVar] = field(default_factory=dict)
    formation: Mapping[str, int] = field(default_factory=dict)
    checks: Mapping[str, tuple[HealthCheck, ...]] = field(default_factory=dict)
    addons: tuple[AddOn, ...] = ()
    crons: tuple[Cron, ...] = ()
    predeploy: Command | None = None
    """Dokku's `scripts.dokku.predeploy`: runs in the built app before its image is kept."""


def read_app_json(tree: Tree, findings: Findings) -> AppJson:
    """Return what `app.json` asks for; nothing where it is not there or another tool's."""
    if not tree.has(APP_JSON):
        return AppJson()
    with findings.collecting():
        content = json_of(tree, APP_JSON, strict=True)
        if foreign := _foreign(content):
            findings.note(f"{APP_JSON} is passed over: it is {foreign}")
            return AppJson()
        _name_the_rest(content, findings)
        return AppJson(
            env=_env(content, findings),
            formation=_formation(content, findings),
            checks=_checks(content, findings),
            addons=_addons(content.get("addons"), findings),
            crons=_crons(content.get("cron"), findings),
            predeploy=_scripts(content, findings),
        )
    return AppJson()


def _foreign(content: JsonObject) -> str:
    """Whose file it is, where not Heroku's; else empty."""
    keys = set(content.names)
    if keys & set(_ACTING):
        return ""
    if "expo" in keys:
        return "Expo's"
    if {"pages", "window"} <= keys or "miniprogramRoot" in keys or {"pages", "tabBar"} <= keys:
        return "a mini program's"
    if "displayName" in keys and keys <= {"name", "displayName", "components", "resources"}:
        return "React Native's"
    if keys and not keys & set(_KNOWN):
        return f"not Heroku's (it has {listed(sorted(keys)[:5])})"
    return ""


def _name_the_rest(content: JsonObject, findings: Findings) -> None:
    for key in content.names[:_MAX_NAMED]:
        if key in _NOT_HONOURED:
            if content.get(key):
                findings.note(f"not honoured: `{key}` of {APP_JSON}")
        elif key not in _KNOWN:
            findings.note(f"not honoured: `{key[:80]}` of {APP_JSON}, which is not known.{nearest(key, _KNOWN)}")


def _env(content: JsonObject, findings: Findings) -> Mapping[str, EnvVar]:
    found: dict[str, EnvVar] = {}
    for name, value in content.object("env").items():
        if name == "PORT":
            findings.note(f"not honoured: `env.PORT` of {APP_JSON}: the platform gives PORT")
            continue
        if is_platforms(name):
            findings.note(
                f"not honoured: `env.{name[:80]}` of {APP_JSON}: a repository does not set this variable. If the app"
                " needs it, set it as a config var or in the start command"
            )
            continue
        with findings.collecting():
            found[name] = _env_var(name, value, findings)
    return found


def _env_var(name: str, value: Any, findings: Findings) -> EnvVar:
    where = f"env.{name}"
    if not _ENV_NAME.fullmatch(name):
        raise AppInvalid(
            f"{APP_JSON}: `env` has the name {name[:80]!r}",
            why="it is no name of an environment variable",
            todo="A name is letters, digits and `_`, and does not begin with a digit.",
        )
    if isinstance(value, str):
        return EnvVar(value=value)
    declared = JsonObject(APP_JSON, where, value)
    _name_keys(declared, ("description", "value", "required", "generator"), findings)
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


def _name_keys(declared: JsonObject, honoured: tuple[str, ...], findings: Findings) -> None:
    for key in declared.names[:_MAX_NAMED]:
        if key not in honoured:
            findings.note(f"not honoured: {declared.place(key[:80])}{nearest(key, honoured)}")


def _formation(content: JsonObject, findings: Findings) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for name, value in content.object("formation").items():
        with findings.collecting():
            declared = JsonObject(APP_JSON, f"formation.{name}", value)
            _name_keys(declared, ("quantity",), findings)
            quantity = declared.get("quantity", 1)
            if isinstance(quantity, bool) or not isinstance(quantity, int) or not 0 <= quantity <= MAX_INSTANCES:
                raise AppInvalid(
                    f"{APP_JSON}: `formation.{name}.quantity` is {str(quantity)[:80]!r}",
                    todo=f"Allowed is 0 to {MAX_INSTANCES}.",
                )
            found[name] = quantity
    return found


def _checks(content: JsonObject, findings: Findings) -> Mapping[str, tuple[HealthCheck, ...]]:
    found = {
        name: read_checks(findings, APP_JSON, f"healthchecks.{name}", value)
        for name, value in content.object("healthchecks").items()
    }
    return {name: checks for name, checks in found.items() if checks}


def _addons(value: Any, findings: Findings) -> tuple[AddOn, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        findings.refuse(f"{APP_JSON}: `addons` is no list", todo='For example `["heroku-postgresql"]`.')
        return ()
    found: dict[str, AddOn] = {}
    for number, item in enumerate(value):
        with findings.collecting():
            _addon(f"addons[{number}]", item, found, findings)
    return tuple(found.values())


def _addon(where: str, item: Any, found: dict[str, AddOn], findings: Findings) -> None:
    version = ""
    if isinstance(item, str):
        plan = item
    else:
        declared = JsonObject(APP_JSON, where, item)
        _name_keys(declared, ("plan", "options"), findings)
        plan = declared.text("plan")
        options = declared.object("options")
        version = JsonObject(APP_JSON, f"{where}.options", options).text("version") if "version" in options else ""
    name = plan.partition(":")[0]  # what follows is a price list of another platform
    addon = addon_of(f"{APP_JSON}: `{where}`", name, version)
    if addon is None:
        findings.note(
            f"not honoured: `{where}` of {APP_JSON}, the add-on {name[:80]!r}. Known are {listed(KINDS)};"
            " give the app the address of another service as a config var"
        )
    else:
        add(found, addon, APP_JSON)


def _crons(value: Any, findings: Findings) -> tuple[Cron, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_INSTANCES:
        findings.refuse(
            f"{APP_JSON}: `cron` is no list of at most {MAX_INSTANCES} entries",
            todo='For example `[{"command": "python job.py", "schedule": "0 3 * * *"}]`.',
        )
        return ()
    found: list[Cron] = []
    for number, item in enumerate(value):
        with findings.collecting():
            declared = JsonObject(APP_JSON, f"cron[{number}]", item)
            _name_keys(declared, ("command", "schedule"), findings)
            schedule = " ".join(declared.text("schedule").split())
            schedule = _CRON_NAMES.get(schedule, schedule)
            fields = schedule.split(" ")
            if len(fields) != 5 or not all(_CRON_FIELD.fullmatch(each) for each in fields):
                raise AppInvalid(
                    f"{declared.place('schedule')} is {schedule[:80]!r}",
                    todo="Write the five fields of cron, for example `0 3 * * *`.",
                )
            found.append(Cron(schedule=schedule, command=shell(declared.text("command"))))
    if found:
        findings.note(f"not honoured: `cron` of {APP_JSON}: knarr does not run scheduled commands yet")
    return tuple(found)


def _scripts(content: JsonObject, findings: Findings) -> Command | None:
    """Dokku's predeploy script; the others are named."""
    predeploy: Command | None = None
    for name, value in content.object("scripts").items():
        if name != "dokku":
            findings.note(f"not honoured: `scripts.{name[:80]}` of {APP_JSON}{_instead(name)}")
            continue
        JsonObject(APP_JSON, "scripts.dokku", value)  # or its error
        for inner, line in value.items():
            if inner == "predeploy" and isinstance(line, str) and line.strip():
                predeploy = shell(clean(APP_JSON, "scripts.dokku.predeploy", line.strip()))
            else:
                findings.note(f"not honoured: `scripts.dokku.{inner[:80]}` of {APP_JSON}{_instead(inner)}")
    return predeploy


def _instead(name: str) -> str:
    return ": a `release:` line of the Procfile runs before each release" if "deploy" in name else ""
