"""What `buildx` decides without an engine: Dockerfiles, what is shown of a build, whose fault a failure is, configs."""

import base64
import shlex
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import orjson
import pytest

from ocistore.store import LABEL_BASE, LABEL_PROCESSES, Descriptor, Image
from seedwork.errors import KnarrError, Misconfigured, NotAllowed, StorageFull, Unavailable
from services.builder.adapters.buildx.builder import _lay_out
from services.builder.adapters.buildx.faults import explained, lacks_compiler
from services.builder.adapters.buildx.image import built_layers, stored_config, stored_layers
from services.builder.adapters.buildx.kitchen import BaseImages, Kitchen, Recipe, ignored_by_app
from services.builder.adapters.buildx.node_recipe import node_image
from services.builder.adapters.buildx.progress import Progress
from services.builder.adapters.buildx.recipes import recipe_for
from services.builder.adapters.layers.sandbox import ToolFailed
from services.builder.errors import BuildFailed, CannotBuild, OutOfMemory, RegistryUnavailable
from services.builder.logs import BuildLog
from services.builder.masking import Mask
from services.builder.ports import BuildOrder
from services.source.contract import AppDescription, BuildStep, Packages, Runtime
from tests.services.builder.support import COMMIT, NO_PACKAGES, NODE, NPM, PROCFILE, PYPROJECT, PYTHON, STATIC, Output

KITCHEN = Kitchen(images=BaseImages(), secrets=("NPM_TOKEN",), memory_bytes=1024**3)
STARTED = "2026-11-20T23:59:36.944429268Z"


def order(description: AppDescription) -> BuildOrder:
    return BuildOrder(
        saga_id="0192f0c1-2345-7abc-8def-0123456789ab",
        app_id="0192f0c1-0000-7abc-8def-0123456789ab",
        app="shop",
        commit=COMMIT,
        source_digest="sha256:" + "ab" * 32,
        description=description,
        archive=Path("unused"),
        folder=Path("unused"),
    )


def recipe(description: AppDescription, files: Mapping[str, str], kitchen: Kitchen = KITCHEN) -> Recipe:
    contents = {name: text.encode() for name, text in files.items()}
    return recipe_for(order(description), contents.get, kitchen)


def versioned(kind: str, version: str) -> AppDescription:
    return AppDescription.model_validate({"runtime": {"kind": kind, "version": version}})


# --- Dockerfiles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("description", "files"),
    [
        (PYTHON, {"requirements.txt": "flask\n"}),
        (NO_PACKAGES, {}),
        (NODE, {"package.json": '{"dependencies": {"is-odd": "3"}, "scripts": {"build": "make"}}'}),
        (STATIC, {}),
        (PROCFILE, {}),
    ],
)
def test_a_generated_dockerfile_is_for_old_engines_and_nobody_is_root(
    description: AppDescription, files: Mapping[str, str]
) -> None:
    """No here-document, no syntax line; the app's own files come last, and its user is a number."""
    text = recipe(description, files).dockerfile

    assert "<<" not in text
    assert "# syntax" not in text
    lines = text.splitlines()
    assert lines[-3].startswith("COPY ")
    assert "--chown=10001:10001" in lines[-3]
    assert lines[-2:] == ["WORKDIR /app", "USER 10001:10001"]


def test_only_the_files_that_name_packages_come_before_the_app() -> None:
    """So a change of the app leaves the packages' layer as it is; secrets are mounted for that one step."""
    made = recipe(PYTHON, {"requirements.txt": "-r more/base.txt\n", "more/base.txt": "six\n", "app.py": "x"})

    assert set(made.files) == {
        "knarr/dependencies/requirements.txt",
        "knarr/dependencies/more/base.txt",
        "knarr/tools/settle_python.py",
        "knarr/tools/pkg_resources.py",
    }
    before, _, after = made.dockerfile.partition("/knarr/uv/bin/uv pip install")
    assert "COPY root/" not in before
    assert "--mount=type=secret,id=NPM_TOKEN" in before
    assert "COPY --chown=10001:10001 root/ /" in after


def test_packages_that_are_folders_of_the_app_are_installed_with_all_of_it() -> None:
    """What pip looks at is there."""
    assert "COPY root/app/ /work/" in recipe(PYTHON, {"requirements.txt": "./lib\n"}).dockerfile
    local = NODE.model_copy(update={"packages": (NPM.model_copy(update={"needs_source": True}),)})
    assert "COPY root/app/ /out/app/" in recipe(local, {"package.json": '{"dependencies": {"a": "file:a"}}'}).dockerfile


def test_a_pyproject_lists_its_packages() -> None:
    """Tool uv reads them itself; nothing else of the app is there."""
    project = '[project]\nname = "x"\nversion = "1"\ndependencies = ["six", "flask>=3"]\n'
    made = recipe(PYPROJECT, {"pyproject.toml": project})

    assert made.files["knarr/dependencies/pyproject.toml"] == project.encode()
    assert "COPY root/app/ /work/" not in made.dockerfile
    assert "-r pyproject.toml" in made.dockerfile


def test_the_projects_own_tool_runs_in_the_image_build_too() -> None:
    """The same commands as on this machine: the lock file is compared first, then installed frozen."""
    packages = Packages(
        language="python", tool="uv", lock="uv.lock", manifests=("pyproject.toml", "uv.lock"), project=True
    )
    description = PYTHON.model_copy(update={"packages": (packages,)})
    made = recipe(description, {"pyproject.toml": '[project]\nname = "x"\n', "uv.lock": "version = 1\n"})

    check, install = made.dockerfile.index("lock --check"), made.dockerfile.index("sync --frozen --no-dev")
    assert check < install < made.dockerfile.index("--no-deps .")
    assert "COPY --from=python-packages /out/ /\nCOPY --from=project-packages /out/ /" in made.dockerfile
    assert "PATH=/layers/project/bin:/layers/python/bin:$PATH" in made.dockerfile


def test_packages_that_cannot_be_installed_are_explained_as_on_this_machine() -> None:
    """The file, the tool and the reason; not the text of the step."""
    made = recipe(PYTHON, {"requirements.txt": "greet==9\n"})
    name = "[python-packages 3/4] RUN --mount=type=cache,id=x"
    lines = "error: No solution found when resolving dependencies\n  cause: there is no version of greet==9\n"
    failed = vertex(name, started=STARTED, completed=STARTED, error='process "/bin/sh" did not complete: exit code: 1')
    progress, _, _ = shown(vertex(name, started=STARTED), output_of(name, lines), failed)
    error = ToolFailed(("docker",), 1, ())

    found = explained(error, progress, registry="r", memory_bytes=1, explain=made.explain)

    assert found.what == "The packages of requirements.txt could not be installed"
    assert found.why == "uv: No solution found when resolving dependencies: there is no version of greet==9"
    assert explained(error, progress, registry="r", memory_bytes=1).what.startswith("The step [python-packages")


def test_packages_that_are_compiled_get_compilers_and_their_libraries() -> None:
    """The compilers stay in stages; the image gets the shared libraries that its base image lacks."""
    kitchen = replace(KITCHEN, compilers=True, images=replace(KITCHEN.images, compilers=("gcc", "libpq-dev")))
    lines = recipe(PYTHON, {"requirements.txt": "psycopg2\n"}, kitchen).dockerfile.splitlines()

    (install,) = [number for number, line in enumerate(lines) if "apt-get install" in line]
    assert lines[install - 1] == "FROM python:3.11-slim AS python-tools"
    assert lines[install].count("gcc libpq-dev") == 1
    (packages,) = [line for line in lines if line.startswith("RUN") and "ldd" in line]
    assert packages.index("pip install") < packages.index("ldd")
    final = len(lines) - 1 - lines[::-1].index("FROM python:3.11-slim")
    assert not any("apt-get" in line or "python-tools" in line for line in lines[final:])
    assert "apt-get" not in recipe(PYTHON, {"requirements.txt": "psycopg2\n"}).dockerfile


@pytest.mark.parametrize(
    ("wanted", "image"),
    [(None, "node:20-slim"), ("18", "node:18-slim"), ("^16.4.0", "node:16-slim"), (">=8", "node:20-slim")],
)
def test_a_major_version_of_node_that_the_app_names_is_its_base_image(wanted: str | None, image: str) -> None:
    """Also one that is not among those to choose from for a range, as with Python."""
    assert node_image(wanted, BaseImages()) == image


def test_native_packages_of_node_are_compiled_in_stages_only() -> None:
    """With the tool of the project, below the packages for build steps and for the image."""
    kitchen = replace(KITCHEN, compilers=True, images=replace(KITCHEN.images, compilers=("g++", "make")))
    node = AppDescription(runtime=Runtime(kind="node"), packages=(Packages(language="node", tool="npm"),))
    lines = recipe(node, {"package.json": '{"dependencies": {"sqlite3": "5"}}'}, kitchen).dockerfile.splitlines()

    assert "FROM node-tools AS node-compilers" in lines
    assert lines.count("FROM node-compilers AS production-packages") == 1
    assert lines[-6:][0].startswith("FROM node:")


@pytest.mark.parametrize(
    ("step", "line", "lacks"),
    [
        ("[python-packages 3/4] RUN x", "Error: pg_config executable not found.", True),
        ("[python-packages 3/4] RUN x", "error: command 'gcc' failed: No such file or directory", True),
        ("[node-packages 3/4] RUN x", "npm error gyp ERR! stack Error: not found: make", True),
        ("[node-packages 3/4] RUN x", "npm error 404 Not Found", False),
        ("[build-0 3/4] RUN x", "make: not found", False),
    ],
)
def test_a_missing_compiler_is_recognised_where_packages_are_installed(step: str, line: str, *, lacks: bool) -> None:
    """Only there the build is repeated with compilers."""
    failed = vertex(step, started=STARTED, error="exit code: 1")
    progress, _, _ = shown(vertex(step, started=STARTED), output_of(step, f"{line}\n"), failed)

    assert lacks_compiler(progress) is lacks


@pytest.mark.parametrize(("tool", "locked"), [("yarn", True), ("npm", False)])
def test_the_cache_of_yarn_is_for_one_stage_at_a_time(tool: str, locked: bool) -> None:
    """Two stages install at the same time; other tools' caches are made for that."""
    packages = Packages(language="node", tool=tool, tool_version="1.22.22" if locked else None)
    node = AppDescription(runtime=Runtime(kind="node"), packages=(packages,))
    made = recipe(node, {"package.json": '{"dependencies": {"ms": "2"}}'})

    assert ("target=/knarr/caches,sharing=locked" in made.dockerfile) is locked


def test_words_of_the_app_are_no_commands_of_the_shell() -> None:
    """A group or a file with a quote in its name is one word."""
    packages = Packages(language="python", tool="pip", manifests=("a'; evil #.txt",))
    description = PYTHON.model_copy(update={"packages": (packages,)})
    made = recipe(description, {"a'; evil #.txt": "six\n"})

    (line,) = [line for line in made.dockerfile.splitlines() if line.startswith("RUN") and "-r " in line]
    script = orjson.loads(line[line.index("[") :])[2]
    words = shlex.split(script)
    assert words[words.index("-r") + 1] == "a'; evil #.txt;"


@pytest.mark.parametrize(
    ("wanted", "image"), [(">=3.12", "python:3.12-slim"), ("^3.13", "python:3.13-slim"), (">=3.9", "python:3.11-slim")]
)
def test_an_app_gets_the_first_python_of_its_range(wanted: str, image: str) -> None:
    """The default where it fits, else one of those that have a base image."""
    assert recipe(versioned("python", wanted), {}).dockerfile.startswith(f"FROM {image}\n")


def test_what_a_dockerignore_names_is_not_in_a_generated_image() -> None:
    """Patterns are moved to where the app stands in the build context; exceptions and comments stay what they are."""
    text = "# secrets\n*.env\n/build\n!keep.env\n\n**/*.log\n../outside\n.\n"

    assert ignored_by_app({".dockerignore": text.encode()}.get, "root/app") == (
        "root/app/*.env",
        "root/app/build",
        "!root/app/keep.env",
        "root/app/**/*.log",
    )
    assert ignored_by_app(dict[str, bytes]().get, "root/app") == ()


@pytest.mark.parametrize(
    ("wanted", "image"), [("3.11", "python:3.11-slim"), ("3.13.1", "python:3.13-slim"), (None, "python:3.11-slim")]
)
def test_an_app_gets_the_newest_patch_of_its_python(wanted: str | None, image: str) -> None:
    """The version is digits and dots, or it is refused: it becomes part of a Dockerfile."""
    description = AppDescription(runtime=Runtime(kind="python", version=wanted))

    assert recipe(description, {}).dockerfile.startswith(f"FROM {image}\n")
    with pytest.raises(CannotBuild, match=r"not understood.*3\.11"):
        recipe(versioned("python", "3\nRUN evil"), {})


@pytest.mark.parametrize(
    ("engines", "image"),
    [(">=18", "node:20-slim"), ("22.x", "node:22-slim"), ("^24.1", "node:24-slim"), ("20.11.1", "node:20-slim")],
)
def test_an_app_gets_the_first_node_of_its_range(engines: str, image: str) -> None:
    """A major version's image is its newest release."""
    description = NODE.model_copy(update={"packages": (NPM.model_copy(update={"version": engines}),)})

    assert recipe(description, {"package.json": "{}"}).dockerfile.startswith(f"FROM {image} AS node-tools\n")


def test_a_node_that_no_base_image_has_is_refused() -> None:
    """The text names those that are there."""
    description = NODE.model_copy(update={"packages": (NPM.model_copy(update={"version": "<18"}),)})

    with pytest.raises(CannotBuild, match="20, 22, 24"):
        recipe(description, {"package.json": "{}"})


def test_a_pinned_base_image_is_used_by_its_digest() -> None:
    """A tag that moves changes nothing."""
    digest = "sha256:" + "0" * 64
    kitchen = Kitchen(images=BaseImages(pins={"debian:bookworm-slim": digest}))

    assert recipe(PROCFILE, {}, kitchen).dockerfile.startswith(f"FROM debian:bookworm-slim@{digest}\n")


# --- progress ---------------------------------------------------------------------------------------------------------


def vertex(name: str, **more: object) -> dict[str, object]:
    return {"vertexes": [{"digest": f"sha256:{name}", "name": name, **more}]}


def output_of(name: str, text: str) -> dict[str, object]:
    return {"logs": [{"vertex": f"sha256:{name}", "stream": 1, "data": base64.b64encode(text.encode()).decode()}]}


def shown(
    *records: Mapping[str, object] | str, indent: bool = True, piece: int = 7
) -> tuple[Progress, Output, list[str]]:
    """The records as buildx prints them, arriving in small pieces."""
    output, notes = Output(), list[str]()
    progress = Progress(output, notes.append)
    option = orjson.OPT_INDENT_2 if indent else 0
    lines = [each.encode() if isinstance(each, str) else orjson.dumps(each, option=option) for each in records]
    text = b"\n".join(lines) + b"\n"
    for start in range(0, len(text), piece):
        progress.write(text[start : start + piece])
    progress.finish()
    return progress, output, notes


@pytest.mark.parametrize("indent", [True, False])
def test_a_step_is_shown_with_what_it_prints(indent: bool) -> None:
    """Newer plugins print a record a line, older ones indent; BuildKit's own steps are not for people."""
    step = "[stage-0 2/2] RUN make"
    progress, output, notes = shown(
        vertex("[internal] load build definition", started=STARTED, completed=STARTED),
        vertex(step, started=STARTED),
        output_of(step, "one\ntw"),
        output_of(step, "o\nno end"),
        vertex(step, started=STARTED, completed=STARTED),
        indent=indent,
    )

    assert output.text.decode().splitlines() == [
        "#2 [stage-0 2/2] RUN make",
        "#2 one",
        "#2 two",
        "#2 no end",
        "#2 done",
    ]
    assert notes == ["RUN make"]
    assert progress.began == datetime(2026, 11, 20, 23, 59, 36, 944429, tzinfo=UTC)


class Reader:
    """A build log whose progress is read at times of the test's choice."""

    def __init__(self, folder: Path, secrets: Iterable[str] = ()) -> None:
        self.path = folder / "log"
        self.log = BuildLog(self.path, max_bytes=10_000, mask=Mask(secrets))
        self.now_s = 0.0
        self.progress = Progress(self.log, lambda _: None, monotonic=lambda: self.now_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.close()

    def prints(self, name: str, text: str) -> None:
        self.progress.write(orjson.dumps(output_of(name, text)) + b"\n")

    def begins(self, *names: str) -> None:
        for name in names:
            self.progress.write(orjson.dumps(vertex(name, started=STARTED)) + b"\n")

    def after(self, seconds: float) -> str:
        self.now_s += seconds
        self.progress.show_unfinished()
        return self.path.read_text()


def test_output_without_a_line_end_is_shown_and_goes_on(tmp_path: Path) -> None:
    """After half a second; the rest of the line continues it."""
    with Reader(tmp_path) as reader:
        reader.begins("a")
        reader.prints("a", "loading .")
        assert reader.after(0.4) == "#1 a\n"
        assert reader.after(0.2) == "#1 a\n#1 loading ."
        reader.prints("a", ".")
        assert reader.after(0.1) == "#1 a\n#1 loading .."
        reader.prints("a", " done\nnext\n")
        assert reader.after(0) == "#1 a\n#1 loading .. done\n#1 next\n"
        assert next(iter(reader.progress.steps.values())).lines[0] == b"loading .. done"


def test_an_unfinished_line_ends_where_another_step_prints(tmp_path: Path) -> None:
    """Each line of the log is of one step."""
    with Reader(tmp_path) as reader:
        reader.begins("a", "b")
        reader.prints("a", "one")
        reader.after(1)
        reader.prints("b", "two\n")
        reader.prints("a", " more\n")
        assert reader.after(0).splitlines()[2:] == ["#1 one", "#2 two", "#1  more"]


def test_no_part_of_a_secret_is_shown_in_an_unfinished_line(tmp_path: Path) -> None:
    """The beginning of a value waits for what follows, also where another step prints in between."""
    with Reader(tmp_path, ["s3cret-value"]) as reader:
        reader.begins("a", "b")
        reader.prints("a", "key s3cret")
        assert reader.after(1).splitlines()[2:] == ["#1 key "]
        reader.prints("b", "two\n")
        reader.prints("a", "-value\n")
        assert reader.after(1).splitlines()[2:] == ["#1 key ", "#2 two", "#1 ****"]


def test_a_cached_step_says_so_and_what_is_no_record_is_text() -> None:
    """Nothing that buildx says is lost."""
    _, output, _ = shown(
        "a line of buildx",
        vertex("[1/1] FROM x", started=STARTED, completed=STARTED, cached=True),
        '{"half": ',
        "}",
        "ERROR: failed to solve: x",
    )

    lines = output.text.decode().splitlines()
    assert lines[:3] == ["a line of buildx", "#1 [1/1] FROM x", "#1 from the cache"]
    assert lines[-1] == "ERROR: failed to solve: x"


# --- whose fault ------------------------------------------------------------------------------------------------------

RUN = "[2/2] RUN pip install"
NETWORK = 'failed to do request: Head "https://registry-1.docker.io/v2/library/x/manifests/1": dial tcp: no such host'
NO_HOST = NETWORK.replace(
    "dial tcp: no such host", "dial tcp: lookup registry-1.docker.io on 10.0.0.1:53: no such host"
)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([vertex(RUN, started=STARTED, error="executor failed running [/bin/sh -c x]: exit code: 3")], BuildFailed),
        (
            [vertex(RUN, started=STARTED, error='process "x" did not complete successfully: exit code: 137')],
            OutOfMemory,
        ),
        (
            [
                vertex(RUN, started=STARTED),
                output_of(RUN, "WARNING: Retrying (Retry(total=0, connect=None\nERROR: No matching distribution\n"),
                vertex(RUN, started=STARTED, error="executor failed running [x]: exit code: 1"),
            ],
            RegistryUnavailable,
        ),
        (
            [
                vertex(RUN, started=STARTED),
                output_of(RUN, "npm error code ECONNREFUSED\nnpm error syscall connect\n"),
                vertex(RUN, started=STARTED, error="executor failed running [x]: exit code: 1"),
            ],
            RegistryUnavailable,
        ),
        (
            [
                vertex(RUN, started=STARTED),
                output_of(RUN, "npm error command failed\nnpm error gyp ERR! code ECONNREFUSED\n"),
                vertex(RUN, started=STARTED, error="executor failed running [x]: exit code: 1"),
            ],
            BuildFailed,
        ),
        (
            [
                vertex(RUN, started=STARTED),
                output_of(RUN, "Building wheel for x did not run successfully.\nMax retries exceeded with url\n"),
                vertex(RUN, started=STARTED, error="executor failed running [x]: exit code: 1"),
            ],
            BuildFailed,
        ),
        (
            [  # the first build of an app: its cache is not there yet
                vertex("importing cache manifest from r/cache/app", started=STARTED, error="r/cache/app: not found"),
                vertex(RUN, started=STARTED),
                output_of(RUN, "MemoryError\n"),
                vertex(RUN, started=STARTED, error='process "x" did not complete successfully: exit code: 1'),
            ],
            OutOfMemory,
        ),
        ([vertex("[internal] load metadata for docker.io/library/x:1", error=NETWORK)], RegistryUnavailable),
        ([vertex("[internal] load metadata for docker.io/library/x:1", error="pull access denied")], CannotBuild),
        ([vertex("resolve image config for docker.io/docker/dockerfile:1", error=NETWORK)], RegistryUnavailable),
        ([vertex("[internal] load metadata for docker.io/library/x:1", error=NO_HOST)], CannotBuild),
        (["ERROR: failed to solve: dockerfile parse error line 1: unknown instruction: FRM"], BuildFailed),
        (['ERROR: failed to solve: failed to compute cache key: "/nope" not found: not found'], BuildFailed),
        (["ERROR: Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?"], Unavailable),
        (
            ["ERROR: failed to receive status: rpc error: code = Unavailable desc = error reading from server"],
            Unavailable,
        ),
        (
            [vertex("pushing r:1 with docker", started=STARTED, error="received unexpected HTTP status: 503")],
            Unavailable,
        ),
        (
            [
                vertex("pushing r:1 with docker", started=STARTED, completed=STARTED),
                "ERROR: Error response from daemon: received unexpected HTTP status: 500 Internal Server Error",
            ],
            Unavailable,
        ),
        (['ERROR: Error response from daemon: Get "http://localhost:5000/v2/": EOF'], Unavailable),
        (["ERROR: Error response from daemon: No such image: r:1"], BuildFailed),
        (
            [vertex("pushing r:1 with docker", started=STARTED, error="unauthorized: authentication required")],
            NotAllowed,
        ),
        ([vertex(RUN, started=STARTED, error="write /x: no space left on device")], StorageFull),
        (["docker cannot be started: No such file or directory"], Misconfigured),
        (["ERROR: invalid progress mode rawjson"], Misconfigured),
    ],
)
def test_a_failure_is_told_with_whose_fault_it_is(
    records: list[Mapping[str, object] | str], expected: type[KnarrError]
) -> None:
    """As Docker 20.10 and BuildKit 0.13 said these things."""
    progress, _, _ = shown(*records)

    error = explained(ToolFailed(["docker"], 1, []), progress, registry="r", memory_bytes=1)

    assert type(error) is expected
    assert error.why


def test_a_build_step_that_fails_is_named_as_in_the_plan() -> None:
    """Not by the line of a Dockerfile that the app does not have."""
    step = BuildStep(name="scripts.build of package.json", command=("npm", "run", "build"), language="node")
    node = AppDescription(
        runtime=Runtime(kind="node"), packages=(Packages(language="node", tool="npm"),), build=(step,)
    )
    (line,) = [each for each in recipe(node, {"package.json": "{}"}).dockerfile.splitlines() if "npm run build" in each]
    name = f"[build-0 3/5] {line}"
    failed = vertex(name, started=STARTED, error="executor failed running [x]: exit code: 1")
    progress, _, _ = shown(vertex(name, started=STARTED), failed)

    error = explained(ToolFailed(["docker"], 1, []), progress, registry="r", memory_bytes=1)

    assert error.what == "The build step scripts.build of package.json failed"


def test_a_base_image_that_cannot_be_pulled_is_named_at_the_first_attempt() -> None:
    """With the host that the engine's network does not know."""
    progress, _, _ = shown(vertex("[internal] load metadata for docker.io/library/golang:1.13", error=NO_HOST))

    error = explained(ToolFailed(["docker"], 1, []), progress, registry="r", memory_bytes=1)

    assert error.what == "The base image docker.io/library/golang:1.13 cannot be pulled"
    assert "registry-1.docker.io" in error.why


def test_an_install_script_that_fails_in_an_image_build_is_named_by_its_package() -> None:
    """As on this machine: the registry of packages was there."""
    node = AppDescription(
        runtime=Runtime(kind="node"), packages=(Packages(language="node", tool="npm", manifests=("package.json",)),)
    )
    made = recipe(node, {"package.json": '{"dependencies": {"native": "1"}}'})
    name = "[node-packages 3/3] RUN npm install"
    said = "npm error path /app/node_modules/native\nnpm error command failed\nnpm error gyp ERR! code ENOTFOUND\n"
    failed = vertex(name, started=STARTED, error="executor failed running [x]: exit code: 1")
    progress, _, _ = shown(vertex(name, started=STARTED), output_of(name, said), failed)

    error = explained(ToolFailed(["docker"], 1, []), progress, registry="r", memory_bytes=1, explain=made.explain)

    assert (type(error), error.what) == (BuildFailed, "An install script of native failed")


def test_a_docker_command_that_was_killed_is_not_the_apps_fault() -> None:
    """Somebody ended it: another attempt."""
    progress, _, _ = shown(vertex(RUN, started=STARTED))

    assert type(explained(ToolFailed(["docker"], -9, []), progress, registry="r", memory_bytes=1)) is Unavailable


# --- configs ----------------------------------------------------------------------------------------------------------


def pushed(config: Mapping[str, object], *, made: str = STARTED, build: str = "1") -> Image:
    layers = tuple(
        Descriptor(
            media_type="application/vnd.docker.image.rootfs.diff.tar.gzip", digest=f"sha256:{n}" * 1, size_bytes=n
        )
        for n in (1, 2)
    )
    record = {
        "architecture": "amd64",
        "os": "linux",
        "created": made,
        "container": build,
        "config": {"Labels": {"io.knarr.build": build, LABEL_BASE: "host", "a": "b"}, "OnBuild": None, **config},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:x", "sha256:y"]},
        "history": [
            {"created": "2020-01-01T00:00:00Z", "created_by": "base"},
            {"created": made, "created_by": "ENV", "empty_layer": True},
            {"created": made, "created_by": "COPY"},
        ],
    }
    return Image(
        repository="staging/incoming",
        digest="sha256:0",
        manifest={},
        config=record,
        layers=layers,
        tags=(),
        size_bytes=3,
    )


def test_when_and_for_whom_an_image_was_built_is_not_in_it() -> None:
    """The same layers and description give the same bytes."""
    one = stored_config(pushed({}, made="2026-01-01T00:00:00Z", build="1"), order(PROCFILE), {})
    two = stored_config(pushed({}, made="2026-02-02T00:00:00.5Z", build="2"), order(PROCFILE), {})

    assert one == two
    labels = orjson.loads(one)["config"]["Labels"]
    assert labels["a"] == "b"
    assert "io.knarr.build" not in labels
    assert LABEL_BASE not in labels


def test_a_dockerfiles_command_is_the_web_process_unless_a_procfile_says_otherwise() -> None:
    """Entrypoint and command together, as a container would start it."""
    description = AppDescription(runtime=Runtime(kind="dockerfile"), dockerfile="Dockerfile")
    image = pushed({"Entrypoint": ["/start"], "Cmd": ["now"]})

    alone = orjson.loads(stored_config(image, order(description), {}))["config"]
    assert orjson.loads(alone["Labels"][LABEL_PROCESSES]) == {"web": ["/start", "now"]}
    assert alone["Entrypoint"] == ["/start"]

    said = description.model_copy(update={"processes": {"web": ("./web",), "worker": ("./work",)}})
    both = orjson.loads(stored_config(image, order(said), {}))["config"]
    assert orjson.loads(both["Labels"][LABEL_PROCESSES]) == {"web": ["./web"], "worker": ["./work"]}


def test_an_image_that_starts_nothing_is_refused() -> None:
    """The text says what to add."""
    description = AppDescription(runtime=Runtime(kind="dockerfile"))

    with pytest.raises(CannotBuild, match="Procfile"):
        stored_config(pushed({}), order(description), {})


def test_layers_made_before_the_build_came_from_the_cache() -> None:
    """By the engine's own clock; the media types are OCI's."""
    image = pushed({}, made="2026-11-20T23:59:37.000000001Z")

    layers = built_layers(image, datetime(2026, 11, 20, 23, 59, 36, tzinfo=UTC))

    assert [each.cached for each in layers] == [True, False]
    assert [each.cached for each in built_layers(image, None)] == [False, False]
    assert {each.descriptor.media_type for each in stored_layers(image)} == {
        "application/vnd.oci.image.layer.v1.tar+gzip"
    }


# --- build steps and variables ----------------------------------------------------------------------------------------

PNPM = Packages(
    language="node", tool="pnpm", tool_version="9.1.2", lock="pnpm-lock.yaml",
    manifests=("package.json", "lib/package.json", "pnpm-lock.yaml"),
)  # fmt: skip
BUILD = BuildStep(
    name="scripts.build of package.json", command=("pnpm", "run", "build"), language="node", caches=(".next/cache",)
)
NODE_FILES = {"package.json": '{"dependencies": {"ms": "2"}}', "lib/package.json": "{}", "pnpm-lock.yaml": "x"}


def script_of(line: str) -> str:
    """What the shell of a RUN line runs."""
    return str(orjson.loads(line[line.index("[") :])[2])


def test_the_projects_package_manager_installs_in_the_engine_too() -> None:
    """In its version, frozen, from nothing but the files that decide; the final image has no development packages."""
    description = NODE.model_copy(update={"packages": (PNPM,), "build": (BUILD,)})
    made = recipe(description, NODE_FILES)

    lines = made.dockerfile.splitlines()
    scripts = [script_of(line) for line in lines if line.startswith("RUN")]
    assert any("npm install --global" in each and "pnpm@9.1.2" in each for each in scripts)
    assert sum("pnpm install --frozen-lockfile" in each for each in scripts) == 2
    assert sum("--prod" in each for each in scripts) == 1
    assert set(made.files) >= {f"knarr/dependencies/{name}" for name in NODE_FILES}
    assert "COPY --from=build-0 --chown=10001:10001 /app/ /app/" in lines
    assert lines.index("COPY --from=production-packages /out/ /") < lines.index(
        "COPY --from=build-0 --chown=10001:10001 /app/ /app/"
    )


def test_a_build_step_keeps_its_caches_and_names_them_by_no_path() -> None:
    """Mounted for that line only; a path that leads out of the app is not mounted."""
    step = BUILD.model_copy(update={"caches": (".next/cache", "../x", "/etc", "a,target=/etc")})
    description = NODE.model_copy(update={"packages": (PNPM,), "build": (step,)})

    (line,) = [line for line in recipe(description, NODE_FILES).dockerfile.splitlines() if "pnpm run build" in line]

    assert line.count("--mount=type=cache,id=knarr-step-") == 1
    assert "target=/app/.next/cache" in line


def test_variables_are_mounted_for_steps_and_stand_in_no_final_stage() -> None:
    """A changed value runs the steps anew; the history of the image says nothing of it.

    An installation depends on those alone that package managers read, or that their files name.
    """
    description = NODE.model_copy(update={"packages": (PNPM,), "build": (BUILD,)})
    names = ("API_KEY", "NPM_TOKEN", "OWN_INDEX")
    kitchen = replace(KITCHEN, variables=names, variables_key="0123abcd", key_of=lambda names: "-".join(sorted(names)))
    files = {**NODE_FILES, ".npmrc": "//npm.test/:_authToken=${OWN_INDEX}\n"}
    text = recipe(description, files, kitchen).dockerfile

    installs = [line for line in text.splitlines() if "pnpm install" in line]
    assert all("variables NPM_TOKEN-OWN_INDEX;" in line and "API_KEY" not in line for line in installs)
    assert len(installs) == 2

    (step,) = [line for line in text.splitlines() if "pnpm run build" in line]
    assert step.count("--mount=type=secret,id=API_KEY") == 1
    assert step.count("--mount=type=secret,id=NPM_TOKEN") == 1
    assert "0123abcd" in step
    final = text[text.rindex("\nFROM ") :]
    tools = text[: text.index("AS node-packages")]
    for part in (final, tools):
        assert "0123abcd" not in part
        assert "API_KEY" not in part


def test_an_install_script_of_the_app_that_needs_development_packages_keeps_them() -> None:
    """`husky` in `prepare`, a code generator in `postinstall`; packages without such a script are installed once."""
    packages = PNPM.model_copy(update={"needs_source": True})
    own = '{"dependencies": {"ms": "2"}, "devDependencies": {"husky": "9"}, "scripts": {"prepare": "husky"}}'
    for manifest, times in ((own, 2), (own.replace("prepare", "start"), 1)):
        text = recipe(NODE.model_copy(update={"packages": (packages,)}), {**NODE_FILES, "package.json": manifest})
        (line,) = (each for each in text.dockerfile.splitlines() if "--prod" in each)
        assert line.count("pnpm install") == times
        assert ("they stay in the image" in line) is (times == 2)


def test_what_the_apps_own_install_script_writes_is_in_the_image() -> None:
    """Without a build step, too: the app's folder comes from the stage that installed."""
    packages = PNPM.model_copy(update={"needs_source": True})
    files = {**NODE_FILES, "package.json": '{"dependencies": {"ms": "2"}, "scripts": {"postinstall": "make"}}'}
    lines = recipe(NODE.model_copy(update={"packages": (packages,)}), files).dockerfile.splitlines()

    assert "FROM node-packages AS build-0" in lines
    assert "COPY --from=build-0 --chown=10001:10001 /app/ /app/" in lines


def test_a_built_site_is_its_output_folder_and_nothing_else() -> None:
    """Node builds it, and is not in the image; pages without a file have a fallback."""
    description = STATIC.model_copy(
        update={"packages": (PNPM,), "build": (BUILD,), "output": "dist", "fallback": "index.html"}
    )
    lines = recipe(description, NODE_FILES).dockerfile.splitlines()

    assert 'COPY --from=build-0 --chown=10001:10001 ["/app/dist/","/app/"]' in lines
    assert any('KNARR_STATIC_FALLBACK="index.html"' in line for line in lines)
    assert not any("production-packages" in line for line in lines)
    assert lines[-6].startswith("FROM python:")


@pytest.mark.parametrize(
    ("version", "file", "image"),
    [
        ("1.13", "go.mod", "golang:1.24"),
        ("1.25.1", "go.mod", "golang:1.25"),
        ("1.22", ".tool-versions", "golang:1.22"),
    ],
)
def test_the_version_of_go_mod_is_the_oldest_that_builds_it(version: str, file: str, image: str) -> None:
    """An old module gets the default toolchain; a version that is named elsewhere is obeyed."""
    packages = Packages(language="go", tool="go", version=version, version_file=file, manifests=("go.mod",))
    step = BuildStep(name="go build", command=("go", "build", "."), language="go")
    go = AppDescription(runtime=Runtime(kind="go"), packages=(packages,), build=(step,))

    assert recipe(go, {"go.mod": "module x"}).dockerfile.startswith(f"FROM {image} ")


def test_a_go_app_is_built_with_the_toolchain_and_runs_without() -> None:
    """By the minor version of go.mod; the final image has certificates and the app."""
    step = BuildStep(name="go build", command=("go", "build", "-o", "bin/web", "."), language="go")
    packages = Packages(language="go", tool="go", version="1.22.3", manifests=("go.mod",))
    description = AppDescription(
        runtime=Runtime(kind="go"), processes={"web": ("bin/web",)}, packages=(packages,), build=(step,)
    )
    lines = recipe(description, {"go.mod": "module x"}).dockerfile.splitlines()

    assert lines[0] == "FROM golang:1.22 AS build-0"
    assert any("go build -o bin/web ." in line for line in lines)
    final = lines.index("FROM debian:bookworm-slim")
    assert "ca-certificates.crt" in lines[final + 2]


def test_a_python_app_with_assets_of_node_has_them_and_no_node() -> None:
    """One stage builds on the other; the image has Python only."""
    python = Packages(language="python", tool="pip", manifests=("requirements.txt",))
    collect = BuildStep(name="collectstatic", command=("python", "manage.py", "collectstatic"), language="python")
    description = PYTHON.model_copy(update={"packages": (PNPM, python), "build": (BUILD, collect)})
    lines = recipe(description, {**NODE_FILES, "requirements.txt": "flask\n"}).dockerfile.splitlines()

    assert "FROM node-packages AS build-0" in lines
    assert "FROM python-ready AS build-1" in lines
    assert "COPY --from=build-0 /app/ /app/" in lines
    assert "COPY --from=build-1 --chown=10001:10001 /app/ /app/" in lines
    assert lines[lines.index("COPY --from=build-0 /app/ /app/") :].count("FROM python:3.11-slim") == 1


def test_two_recipes_of_one_source_have_files_of_other_times(tmp_path: Path) -> None:
    """An engine compares size and time: a Dockerfile of the same length would be taken for the one before."""
    times = []
    for key in (b"RUN : variables 01", b"RUN : variables 02"):
        _lay_out(tmp_path, {"knarr/Dockerfile": key}, "sha256:" + "ab" * 32, threading.Event())
        times.append((tmp_path / "knarr/Dockerfile").stat().st_mtime_ns)

    assert times[0] != times[1]
