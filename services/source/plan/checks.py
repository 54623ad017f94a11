"""Health checks of `app.json` (Dokku's and Heroku's keys) and of `.cupaas.yml`: an object in, `HealthCheck`s out.

A key is obeyed, refused, or named as not honoured. A value of a wrong kind is an error.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, cast

from services.source.contract import HealthCheck
from services.source.errors import AppInvalid
from services.source.manifests import JsonObject, clean
from services.source.plan.findings import Findings, nearest

_KEYS = (
    *("type", "name", "path", "port", "content", "command", "httpHeaders", "listening", "scheme", "uptime"),
    *("attempts", "timeout", "wait", "initialDelay"),
)
_NOT_HONOURED = ("description", "onFailure", "warn")
_PATH = re.compile(r"/[!-~]{0,1023}", re.ASCII)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}", re.ASCII)
_HEADER_VALUE = re.compile(r"[\t -~]{0,1024}", re.ASCII)
MAX_CHECK_S = 3600.0
"""Seconds that a check may take in all: its delay, and its attempts with the time between them."""
MAX_CHECKS = 20
"""Checks of one process type."""


def read_checks(findings: Findings, file: str, where: str, value: Any) -> tuple[HealthCheck, ...]:
    """Return the checks of one process type."""
    if not isinstance(value, list):
        findings.refuse(f"{file}: `{where}` is no list", todo='For example `[{"path": "/health"}]`.')
        return ()
    if len(value) > MAX_CHECKS:
        findings.refuse(f"{file}: `{where}` has {len(value)} checks", todo=f"At most {MAX_CHECKS} are taken.")
        return ()
    found: list[HealthCheck] = []
    for number, item in enumerate(value):
        with findings.collecting():
            found += read_check(findings, JsonObject(file, f"{where}[{number}]", item))
    return tuple(found)


def read_check(findings: Findings, declared: JsonObject) -> tuple[HealthCheck, ...]:
    """Return the check; two of them where it has a command and a path as well.

    Raises:
        AppInvalid: The whole of it is wrong; wrong keys are collected.
    """
    for key in declared.names:
        if key in _NOT_HONOURED:
            if key != "description" and declared.get(key):
                findings.note(f"{declared.place(key)} is not honoured")
        elif key not in _KEYS:
            raise AppInvalid(
                f"{declared.place(key[:80])} is not known.{nearest(key, _KEYS)}",
                todo=f"Allowed are {', '.join(sorted(_KEYS + _NOT_HONOURED))}.",
            )
    if declared.get("warn") is True:
        return ()  # a check that may fail decides nothing
    reader = _Reader(findings, declared)
    checks = reader.checks()
    return checks if reader.is_right else ()


class _Reader:
    """The keys of one check, each with the error about it."""

    def __init__(self, findings: Findings, declared: JsonObject) -> None:
        self._findings = findings
        self._declared = declared
        self.is_right = True

    def checks(self) -> tuple[HealthCheck, ...]:
        command, path, content = self._command(), self._path(), self._text("content")
        listening, uptime_s = self._flag("listening"), self._number("uptime", 0.001, MAX_CHECK_S)
        port = self._number("port", 1, 65535, whole=True)
        common = HealthCheck(
            type=self._type(),
            name=self._text("name") or "",
            port=None if port is None else int(port),
            headers=self._headers(),
            attempts=None if (tries := self._number("attempts", 1, 10_000, whole=True)) is None else int(tries),
            timeout_s=self._number("timeout", 0.1, MAX_CHECK_S) or 5.0,
            wait_s=5.0 if (wait := self._number("wait", 0, MAX_CHECK_S)) is None else wait,
            initial_delay_s=self._number("initialDelay", 0, MAX_CHECK_S) or 0.0,
        )
        self._check_scheme()
        self._check_total(common)
        kinds: list[Mapping[str, Any]] = []
        if command:
            kinds.append({"command": command})
        if uptime_s is not None:
            kinds.append({"uptime_s": uptime_s})
        if listening:
            kinds.append({"listening": True})
        if path is not None or content is not None or not kinds:
            kinds.append({"path": path or "/", "content": content})
        return tuple(common.model_copy(update=kind) for kind in kinds)

    def _wrong(self, key: str, todo: str) -> None:
        self.is_right = False
        self._findings.refuse(f"{self._declared.place(key)} is {str(self._declared.get(key))[:80]!r}", todo=todo)

    def _type(self) -> Literal["startup", "readiness", "liveness"]:
        kind = self._declared.get("type", "startup")
        if kind not in {"startup", "readiness", "liveness"}:
            self._wrong("type", "Known are startup, readiness and liveness.")
            return "startup"
        return cast('Literal["startup", "readiness", "liveness"]', kind)

    def _path(self) -> str | None:
        path = self._declared.get("path")
        if path is not None and not (isinstance(path, str) and _PATH.fullmatch(path)):
            self._wrong("path", "A path begins with `/` and has no spaces, for example `/health`.")
        return path if isinstance(path, str) else None

    def _text(self, key: str) -> str | None:
        value = self._declared.get(key)
        if value is not None and (not isinstance(value, str) or len(value) > 1024):
            self._wrong(key, "It must be a text of at most 1024 characters.")
            return None
        return None if value is None else str(value)

    def _flag(self, key: str) -> bool:
        value = self._declared.get(key, False)
        if value in {"true", "false"}:  # YAML's scalars are texts here
            return bool(value == "true")
        if not isinstance(value, bool):
            self._wrong(key, "It must be true or false.")
        return value is True

    def _number(self, key: str, least: float, most: float, *, whole: bool = False) -> float | None:
        value = self._declared.get(key)
        if value is None:
            return None
        if isinstance(value, str) and re.fullmatch(r"\d{1,9}(\.\d{1,3})?", value, re.ASCII):
            value = float(value) if "." in value else int(value)
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            self._wrong(key, f"It must be a {'whole ' if whole else ''}number from {least:g} to {most:g}.")
            return None
        return float(value)

    def _command(self) -> tuple[str, ...]:
        value = self._declared.get("command")
        if value is None:
            return ()
        if isinstance(value, str) and value.strip():
            return ("/bin/sh", "-c", clean("the check", "command", value))
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value) and value[0]:
            return tuple(value)
        self._wrong("command", 'It must be a list of texts, for example `["python", "check.py"]`.')
        return ()

    def _headers(self) -> Mapping[str, str]:
        value = self._declared.get("httpHeaders", [])
        found: dict[str, str] = {}
        if isinstance(value, list) and len(value) <= MAX_CHECKS:
            for item in value:
                name, text = (item.get("name"), item.get("value")) if isinstance(item, dict) else (None, None)
                if isinstance(name, str) and isinstance(text, str) and _is_header(name, text):
                    found[name] = text
            if len(found) == len(value):
                return found
        self._wrong("httpHeaders", 'For example `[{"name": "Host", "value": "shop.example.com"}]`.')
        return {}

    def _check_scheme(self) -> None:
        if str(self._declared.get("scheme", "http")).lower() != "http":
            self._wrong("scheme", "Instances are checked over http; remove `scheme`.")

    def _check_total(self, check: HealthCheck) -> None:
        total_s = check.initial_delay_s + (check.attempts or 1) * (check.wait_s + check.timeout_s)
        if self.is_right and total_s > MAX_CHECK_S:
            self.is_right = False
            self._findings.refuse(
                f"{self._declared.place()} may take {total_s:g} s",
                why="that is `initialDelay` and `attempts` times `wait` and `timeout`",
                todo=f"Allowed are {MAX_CHECK_S:g} s.",
            )


def _is_header(name: str, text: str) -> bool:
    return bool(_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(text))
