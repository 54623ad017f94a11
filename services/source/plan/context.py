"""What the parts of one detection share, and what they come to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from services.source.contract import BuildStep, Packages
from services.source.plan.cupaas import CUPAAS, Cupaas, RuntimeKind
from services.source.plan.findings import Findings
from services.source.plan.foreign import Foreign
from services.source.plan.procfile import Command
from services.source.plan.refusals import Capabilities
from services.source.plan.tree import Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The app, and what its files say before its language is known."""

    tree: Tree
    findings: Findings
    capabilities: Capabilities
    cupaas: Cupaas
    foreign: Foreign | None
    processes: Mapping[str, Command]
    """Commands that files of the repository name."""

    @property
    def version(self) -> str | None:
        """The version that `.cupaas.yml` asks for."""
        return self.cupaas.runtime.version if self.cupaas.runtime else None

    def add_predeploy(self, command: Command | None, result: "Result") -> None:
        """Run Dokku's predeploy script as the last step of the build."""
        where = "scripts.dokku.predeploy of app.json"
        language = result.language
        if command is None:
            return
        if language is None:
            self.findings.note(f"not honoured: {where}: the image is not built by knarr's own steps")
            return
        self.findings.found(f"Build: {command[2]} ({where})")
        result.build.append(BuildStep(name=where, command=command, language=language))

    def own_build(self, result: "Result") -> None:
        """Replace the detected steps with the command of `.cupaas.yml`."""
        command, language = self.cupaas.build, result.language
        if command is None:
            return
        if language is None:
            self.findings.refuse(
                f"{CUPAAS}: `build.command` needs a language", todo="Name it: `runtime: python`, `node` or `go`."
            )
            return
        where = f"build.command of {CUPAAS}"
        caches = tuple(dict.fromkeys(cache for step in result.build for cache in step.caches))
        result.build[:] = [BuildStep(name=where, command=command, language=language, caches=caches)]


@dataclass(slots=True, kw_only=True)
class Result:
    """How the app is built, and what runs."""

    kind: RuntimeKind
    version: str | None = None
    processes: dict[str, Command] = field(default_factory=dict)
    packages: list[Packages] = field(default_factory=list)
    build: list[BuildStep] = field(default_factory=list)
    output: str | None = None
    fallback: str | None = None
    framework: str | None = None
    dockerfile: str | None = None
    is_open: bool = False
    """True: the image may have a command of its own."""
    is_unknown: bool = False
    """True: no file says what kind of app it is."""

    @property
    def language(self) -> Literal["python", "node", "go"] | None:
        """Whose packages are there when a step of the build runs."""
        if self.kind in {"python", "node", "go"}:
            return self.kind
        return self.packages[0].language if self.packages else None
