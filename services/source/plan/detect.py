"""`plan(tree)`: the files of an app in; one checked `AppDescription` out, or one error with every reason why not.

Pure: the tree decides, with the app's settings and the builder of the platform. `.cupaas.yml` is stronger than the
`Procfile`, that is stronger than other platforms' files, and those are stronger than what the language does by itself.
"""

from collections.abc import Mapping

from services.source.contract import AppDescription, BuildSettings, HealthCheck, Runtime
from services.source.plan.app_json import APP_JSON, AppJson, read_app_json
from services.source.plan.context import Context, Result
from services.source.plan.cupaas import CUPAAS, Cupaas, inside, read_cupaas
from services.source.plan.findings import Findings, listed
from services.source.plan.foreign import Foreign, read_foreign
from services.source.plan.languages import by_language, of_kind
from services.source.plan.procfile import PROCFILE, RELEASE, WEB, Command, read_procfile, shell
from services.source.plan.programs import without_runner
from services.source.plan.refusals import Capabilities, name_system_packages
from services.source.plan.starts import shown
from services.source.plan.tree import Tree

DOCKERFILE = "Dockerfile"
_FOLLOWED = (
    *(CUPAAS, PROCFILE, APP_JSON, DOCKERFILE, "package.json", "pyproject.toml", "requirements.txt", "index.html"),
    *(".python-version", "runtime.txt", "go.mod", "uv.lock", "poetry.lock", "package-lock.json", "yarn.lock"),
)


_DEFAULTS = BuildSettings()
_LAYERS = Capabilities()


def plan(tree: Tree, *, settings: BuildSettings = _DEFAULTS, capabilities: Capabilities = _LAYERS) -> AppDescription:
    """Say what the app is, how it is built and how it runs.

    Args:
        tree: The files of the app's root folder.
        settings: Settings of the app; stronger than everything in the repository.
        capabilities: What the platform builds.

    Raises:
        AppInvalid: The app cannot be deployed; all reasons are in it.
    """
    findings = Findings()
    for name in tree.dangling(*_FOLLOWED):
        findings.refuse(
            f"{name} is a link that leads to no file inside the app's folder", todo="Commit the file itself."
        )
    cupaas, app_json = read_cupaas(tree, findings), read_app_json(tree, findings)
    procfile, foreign = read_procfile(tree, findings), read_foreign(tree, findings)
    context = Context(
        tree=tree,
        findings=findings,
        capabilities=Capabilities(settings.builder or capabilities.builder),
        cupaas=cupaas,
        foreign=foreign,
        processes=_commands(cupaas, procfile, foreign, findings),
    )
    name_system_packages(tree, findings)
    result = _built(context, settings)
    processes = result.processes
    release = procfile.get(RELEASE) or _foreign_release(foreign, findings)
    release = without_runner(release) if release and result.kind == "python" else release
    if release:
        findings.found(f"release: {shown(release)}")
    formation = _formation(app_json, result, findings)
    checks = _checks(cupaas, app_json, foreign, result, findings)
    addons = {addon.kind: addon for addon in (*app_json.addons, *cupaas.addons)}
    context.add_predeploy(app_json.predeploy, result)
    findings.raise_refusals()
    return AppDescription(
        runtime=Runtime(kind=result.kind, version=result.version),
        processes=processes,
        release=release,
        env=app_json.env,
        formation=formation,
        health_path=_health_path(checks.get(WEB, ())),
        addons=tuple(addons.values()),
        dockerfile=result.dockerfile,
        docker_target=(settings.docker_target or cupaas.docker_target) if result.dockerfile else None,
        docker_args=(settings.docker_args or cupaas.docker_args) if result.dockerfile else (),
        checks=checks,
        port=cupaas.port,
        framework=result.framework,
        packages=tuple(result.packages),
        build=tuple(result.build),
        output=result.output,
        fallback=result.fallback,
        storage=cupaas.storage,
        crons=app_json.crons,
        detected=tuple(findings.detected),
        notes=tuple(findings.notes),
    )


def _commands(
    cupaas: Cupaas, procfile: Mapping[str, Command], foreign: Foreign | None, findings: Findings
) -> dict[str, Command]:
    """Commands by process type that files of the repository name; the stronger file counts."""
    found = {name: command for name, command in procfile.items() if name != RELEASE}
    for name, command in found.items():
        if name != WEB or cupaas.entrypoint is None:
            findings.found(f"{name}: {shown(command)} ({PROCFILE})")
    if cupaas.entrypoint is not None:
        found[WEB] = cupaas.entrypoint
        findings.found(f"{WEB}: {shown(cupaas.entrypoint)} (`entrypoint` of {CUPAAS})")
    if foreign is None:
        return found
    for name, line in ((WEB, foreign.web), *foreign.processes.items()):
        if line and name in found:
            findings.note(f"the command of {foreign.file} for `{name}`: passed over, {PROCFILE} or {CUPAAS} counts")
        elif line:
            found[name] = shell(line)
            findings.found(f"{name}: {line} ({foreign.file})")
    return found


def _foreign_release(foreign: Foreign | None, findings: Findings) -> Command | None:
    if foreign is None or not foreign.release:
        return None
    findings.note(f"release: the command of {foreign.file} runs before each release; it must be repeatable")
    return shell(foreign.release)


def _built(context: Context, settings: BuildSettings) -> Result:
    """The result of a Dockerfile, of buildpacks, or of the app's language."""
    tree, findings, cupaas = context.tree, context.findings, context.cupaas
    wanted = settings.dockerfile or cupaas.dockerfile
    kind = cupaas.runtime.kind if cupaas.runtime else None
    if context.capabilities.builder == "buildpacks" and not wanted and kind != "dockerfile":
        findings.found("Cloud Native Buildpacks decide how the app is built")
        return Result(kind="buildpacks", processes=dict(context.processes), is_open=True)
    if wanted or kind == "dockerfile":
        return _of_dockerfile(context, inside(wanted) if wanted else DOCKERFILE)
    if kind is not None:
        if tree.has(DOCKERFILE):
            findings.note(f"{DOCKERFILE}: passed over, `runtime` of {CUPAAS} counts")
        return of_kind(kind, context)
    file = _dockerfile(context)
    if file is None:
        return by_language(context)
    if context.capabilities.has_docker:
        return _of_dockerfile(context, file)
    return _without_dockerfile(context, file)


def _dockerfile(context: Context) -> str | None:
    named = context.foreign.dockerfile if context.foreign else None
    return context.tree.first(DOCKERFILE, *filter(None, [inside(named) if named else None]))


def _of_dockerfile(context: Context, file: str | None) -> Result:
    result = Result(kind="dockerfile", processes=dict(context.processes), dockerfile=file, is_open=True)
    if file is None or not context.tree.has(file):
        context.findings.refuse(
            f"There is no {file or 'Dockerfile'} in the app's folder", todo="Commit it, or name another."
        )
        return result
    if not context.capabilities.has_docker:
        _refuse_dockerfile(context, file)
    context.findings.found(f"{file}: the image is built from it")
    return result


def _refuse_dockerfile(context: Context, file: str) -> None:
    context.findings.refuse(
        f"The app is built from its {file}: the builder `{context.capabilities.builder}` runs without Docker",
        todo="On a machine with a Docker engine, set KNARR_BUILDER=buildx.",
    )


def _without_dockerfile(context: Context, file: str) -> Result:
    """Without Docker an app is deployed by its other files, where they are enough."""
    findings = context.findings
    before = list(findings.refusals)
    findings.refusals.clear()
    result = by_language(context)
    reasons, findings.refusals[:] = list(findings.refusals), before
    if not reasons:
        findings.note(f"{file}: passed over, the builder `{context.capabilities.builder}` runs without Docker")
        return result
    _refuse_dockerfile(context, file)
    if not result.is_unknown:
        findings.note(f"without its {file} the app cannot be deployed either")
        for reason in reasons:
            findings.add(reason)
    return result


def _formation(app_json: AppJson, result: Result, findings: Findings) -> dict[str, int]:
    known = set(result.processes) or {WEB}
    if result.is_open or result.kind == "static":
        known.add(WEB)
    for name in app_json.formation:
        if name not in known and result.kind != "buildpacks":
            findings.refuse(
                f"{APP_JSON}: `formation` names the process type {name[:80]!r}, which the app does not have",
                todo=f"It has {listed(sorted(known))}; add a line to the {PROCFILE}, or remove it from `formation`.",
            )
    if app_json.formation or WEB in known or not result.processes:
        return dict(app_json.formation)
    if len(result.processes) == 1:
        name = next(iter(result.processes))
        findings.found(f"one `{name}`: the app has no `web` and no other process type")
        return {name: 1}
    findings.note(f"no `web` process: nothing runs until `knarr scale APP {min(result.processes)}=1`")
    return {}


def _checks(
    cupaas: Cupaas, app_json: AppJson, foreign: Foreign | None, result: Result, findings: Findings
) -> dict[str, tuple[HealthCheck, ...]]:
    known = set(result.processes) | ({WEB} if result.is_open or result.kind == "static" else set())
    found: dict[str, tuple[HealthCheck, ...]] = {}
    for name, checks in app_json.checks.items():
        if name in known or result.kind == "buildpacks":
            found[name] = checks
        else:
            findings.note(f"not honoured: `healthchecks.{name[:80]}` of {APP_JSON}: the app has no such process type")
    if cupaas.health:
        if found.get(WEB):
            findings.note(f"`healthchecks.web` of {APP_JSON}: passed over, `health` of {CUPAAS} counts")
        found[WEB] = cupaas.health
    if foreign and foreign.health_path and not found.get(WEB):
        findings.found(f"health check: {foreign.health_path} ({foreign.file})")
        found[WEB] = (HealthCheck(path=foreign.health_path),)
    return found


def _health_path(checks: tuple[HealthCheck, ...]) -> str | None:
    """The path of the first check that has one; start-up checks go before the others."""
    by_type: dict[str, str] = {}
    for check in checks:
        if check.path is not None:
            by_type.setdefault(check.type, check.path)
    return next((by_type[kind] for kind in ("startup", "readiness", "liveness") if kind in by_type), None)
