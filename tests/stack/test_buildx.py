"""A Docker engine keeps the contract of the image builder, and what only an engine can get wrong."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import stat
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson
import psutil
import pytest

from ocistore.distribution import DistributionStore
from ocistore.store import LABEL_APP_ID, LABEL_BASE, LABEL_PROCESSES, Image
from seedwork.errors import KnarrError, Misconfigured, NotAllowed, RetryableError, Unavailable
from seedwork.messages import new_id
from services.builder.adapters.buildx.builder import INCOMING, BuildxBuilder
from services.builder.adapters.buildx.wiring import make_buildx_builder
from services.builder.errors import BuildFailed, CannotBuild, OutOfMemory, RegistryUnavailable
from services.builder.ports import BuildOrder, Built, ImageBuilder
from services.builder.settings import BuilderSettings
from services.source.contract import AppDescription, BuildStep, Packages, Runtime
from tests.services.builder.support import (
    NODE,
    PYTHON,
    STATIC,
    Bench,
    Files,
    Held,
    Output,
    make_bench,
    make_limits,
)
from tests.services.builder.test_image_builder import ImageBuilderContract
from tests.stack.faulty_proxy import Fault, faulty_proxy
from tests.stack.registries import docker, images_of, own_registry

pytestmark = pytest.mark.stack("DOCKER_HOST", "REGISTRY")

DOCKERFILE = AppDescription(runtime=Runtime(kind="dockerfile"), dockerfile="Dockerfile")
PATIENCE_S = 240.0
SMALL = "FROM debian:bookworm-slim\n"


@dataclass
class Yard:
    """A builder on the engine, with the registry of the environment."""

    folder: Path
    bench: Bench
    images: DistributionStore
    settings: BuilderSettings
    output: Output = field(default_factory=Output)
    notes: list[str] = field(default_factory=list)

    def builder(
        self, changed: Mapping[str, object] | None = None, *, environ: Mapping[str, str] | None = None
    ) -> BuildxBuilder:
        """The one of the settings, or with others."""
        settings = self.settings.model_copy(update=changed)
        home = settings.home_of("builder")
        return make_buildx_builder(
            settings, home, self.images, self.bench.sandbox, environ={**os.environ, **(environ or {})}
        )

    async def build(self, description: AppDescription, files: Files, *, builder: BuildxBuilder | None = None) -> Built:
        """Build an app with these files."""
        return await self.run(self.bench.order(description, files), builder or self.builder())

    async def run(self, order: BuildOrder, builder: BuildxBuilder) -> Built:
        """Carry out an order."""
        return await builder.build(order, output=self.output, note=self.notes.append, hold=Held(self.images))

    async def image(self, built: Built) -> Image:
        """What was stored, every blob looked at."""
        return await self.images.get(built.repository, built.digest, verify=True)

    async def started(self, built: Built, *argv: str) -> str:
        """What a command prints in a container of the stored image, pulled by its digest."""
        reference = self.images.reference(built.repository, built.digest)
        try:
            return await asyncio.to_thread(docker, "run", "--rm", "--env=PORT=8080", reference, *argv)
        finally:
            await asyncio.to_thread(docker, "image", "rm", "--force", reference)

    async def nothing_left(self, saga_id: str) -> bool:
        """Neither the registry nor the engine has anything under the saga's name."""
        kept = await asyncio.to_thread(docker, "image", "ls", "--quiet", f"--filter=label=io.knarr.build={saga_id}")
        return not kept and await self.images.resolve(INCOMING, f"build-{saga_id}") is None


def make_settings(folder: Path) -> BuilderSettings:
    return BuilderSettings(
        home=folder / "home",
        builder="buildx",
        image_store=f"http://{os.environ['REGISTRY']}/knarr-test/{new_id()}",
    )


@pytest.fixture
def settings(tmp_path: Path) -> BuilderSettings:
    return make_settings(tmp_path)


@pytest.fixture
async def images(settings: BuilderSettings) -> AsyncIterator[DistributionStore]:
    async with images_of(settings) as store:
        yield store


@pytest.fixture
def yard(tmp_path: Path, settings: BuilderSettings, images: DistributionStore) -> Yard:
    return Yard(folder=tmp_path, bench=make_bench(tmp_path), images=images, settings=settings)


class TestBuildxBuilder(ImageBuilderContract):
    @pytest.fixture
    def builder(self, settings: BuilderSettings, images: DistributionStore, bench: Bench) -> ImageBuilder:
        return make_buildx_builder(settings, settings.home_of("builder"), images, bench.sandbox)


@pytest.mark.stack("BUILDKIT_HOST")
class TestRemoteBuildKit(ImageBuilderContract):
    @pytest.fixture
    def builder(self, settings: BuilderSettings, images: DistributionStore, bench: Bench) -> ImageBuilder:
        """Its base image comes from the registry, since it has no engine's images."""
        base = f"{os.environ['REGISTRY']}/knarr-test/debian:bookworm-slim"
        docker("tag", "debian:bookworm-slim", base)
        docker("push", base)
        changed = {
            "buildkit_host": os.environ["BUILDKIT_HOST"],
            "buildx_base_image": base,
            "buildx_cache": "registry",
        }
        settings = settings.model_copy(update=changed)
        return make_buildx_builder(settings, settings.home_of("builder"), images, bench.sandbox)


# --- apps that run ----------------------------------------------------------------------------------------------------


async def test_a_dockerfile_is_built_as_it_says(yard: Yard) -> None:
    """Its environment, user, labels and command stay; what knarr's labels say is said by knarr alone."""
    files = {
        "Dockerfile": SMALL + "ENV GREETING=hello\nLABEL io.knarr.base=host other=theirs\nCOPY greet /greet\n"
        'USER 1234\nENTRYPOINT ["/greet"]\nCMD ["world"]\n',
        "greet": '#!/bin/sh\necho "$GREETING $1 from $(id -u)"\n',
    }

    built = await yard.build(DOCKERFILE, files)

    config = (await yard.image(built)).config["config"]
    assert config["Labels"]["other"] == "theirs"
    assert LABEL_BASE not in config["Labels"]
    assert config["Labels"][LABEL_APP_ID] == yard.bench.app_id
    assert config["Labels"][LABEL_PROCESSES] == '{"web":["/greet","world"]}'
    assert await yard.started(built) == "hello world from 1234"
    assert yard.output.text.decode().count("[2/2] COPY greet /greet") == 1


async def test_buildx_is_started_itself_and_not_by_way_of_docker(yard: Yard, tmp_path: Path) -> None:
    """Which only says where it is: once, whatever is built. The engine on this machine is told itself to forget.

    Only what an app's own Dockerfile made is pushed by `docker`, with the login that the build did not have.
    """
    asked, real = tmp_path / "asked", shutil.which("docker")
    docker_in_between = tmp_path / "bin" / "docker"
    docker_in_between.parent.mkdir()
    docker_in_between.write_text(f'#!/bin/sh\necho "$1 $2" >> {asked}\nexec {real} "$@"\n')
    docker_in_between.chmod(0o755)
    yard.bench.sandbox.path = f"{docker_in_between.parent}:{yard.bench.sandbox.path}"
    builder = yard.builder()

    for version in ("1", "2"):
        order = yard.bench.order(PYTHON, {"app.py": version, "requirements.txt": "six==1.17.0\n"})
        await yard.run(order, builder)
        assert await yard.nothing_left(order.saga_id)
    where = ["info --format={{json .ClientInfo.Plugins}}"]
    assert asked.read_text().splitlines() == where

    order = yard.bench.order(DOCKERFILE, {"Dockerfile": f"{SMALL}CMD ls\n"})
    await yard.run(order, builder)
    assert await yard.nothing_left(order.saga_id)
    (*before, push) = asked.read_text().splitlines()
    assert before == where
    assert push.startswith("push ")
    assert push.endswith(f":build-{order.saga_id}")


async def test_an_engine_that_is_not_on_this_machine_forgets_too(yard: Yard) -> None:
    """By way of `docker`, which knows all ways to an engine; where there is nothing to forget, that is no error."""
    async with engine_behind() as (address, _):
        builder = yard.builder(environ={"DOCKER_HOST": address})
        order = yard.bench.order(DOCKERFILE, {"Dockerfile": f"{SMALL}LABEL by={new_id()}\nCMD ls\n"})

        await yard.run(order, builder)

        assert await yard.nothing_left(order.saga_id)
        await builder.stop(order.saga_id)


async def test_a_python_app_runs_with_its_packages_and_without_rights(yard: Yard) -> None:
    """Not as root, its files its own, the packages importable and their scripts found."""
    files = {"app.py": "import flask\nprint(flask.__name__)\n", "requirements.txt": "flask==3.1.3\n"}

    built = await yard.build(PYTHON, files)

    assert await yard.started(built) == "flask"
    look = "id -u; stat -c %u /app/app.py; touch /app/new && flask --version | grep Flask; pwd"
    assert (await yard.started(built, "sh", "-c", look)).splitlines() == ["10001", "10001", "Flask 3.1.3", "/app"]


async def test_a_change_of_the_app_reuses_the_layer_of_its_packages(yard: Yard) -> None:
    """Only the app's own layer is new: that is what makes the second deployment quick."""
    files = {"app.py": new_id(), "requirements.txt": "six==1.17.0\n"}
    await yard.build(PYTHON, files)

    again = await yard.build(PYTHON, {**files, "app.py": new_id()})

    assert [layer.cached for layer in again.layers[:-2]] == [True] * (len(again.layers) - 2)
    assert not again.layers[-2].cached
    assert "from the cache" in yard.output


async def test_two_builds_from_nothing_have_the_same_layers(yard: Yard) -> None:
    """Also when the engine may use nothing of its cache: no layer holds the time of its making."""
    files = {"app.py": "1", "requirements.txt": "six==1.17.0\n"}
    layers = []
    for turn in range(2):
        context, dockerfile, _ = await yard.builder()._prepared(yard.bench.order(PYTHON, files))
        name = f"localhost/knarr-test-{new_id()}:{turn}"
        options = ("--quiet", "--no-cache", "--load", f"--tag={name}", f"--file={dockerfile}")
        await asyncio.to_thread(docker, "buildx", "build", *options, str(context))
        layers.append(docker("image", "inspect", "--format={{.RootFS.Layers}}", name))
        docker("image", "rm", name)

    assert layers[0] == layers[1]


async def test_a_node_app_runs_with_what_its_build_script_made(yard: Yard) -> None:
    """Production packages only; the build script had the others."""
    package = (
        '{"name": "shop", "version": "1.0.0", "engines": {"node": ">=18"}, "scripts": {"build": "node make.js"},'
        ' "dependencies": {"is-odd": "3.0.1"}, "devDependencies": {"is-even": "1.0.0"}}'
    )
    files = {
        "package.json": package,
        "make.js": 'require("is-even"); require("fs").writeFileSync("made.txt", "made")\n',
        "server.js": 'console.log(require("is-odd")(3), require("fs").readFileSync("made.txt", "utf8"))\n',
    }

    step = BuildStep(name="build", command=("npm", "run", "build"), language="node")
    built = await yard.build(NODE.model_copy(update={"build": (step,)}), files)

    assert await yard.started(built) == "true made"
    look = "ls node_modules | grep -c is-even; id -u"
    assert (await yard.started(built, "sh", "-c", look)).splitlines() == ["0", "10001"]


async def test_a_build_step_gets_the_apps_variables_and_leaves_what_it_wrote(yard: Yard) -> None:
    """Generated code among the packages is in the image; another value runs the step again; no value is in a layer."""
    packages = Packages(language="node", tool="npm", manifests=("package.json",))
    step = BuildStep(name="build", command=("npm", "run", "build"), language="node", caches=(".next/cache",))
    described = NODE.model_copy(update={"packages": (packages,), "build": (step,)})
    make = (
        "const fs = require('fs'); fs.mkdirSync('node_modules/.prisma', {recursive: true})\n"
        "fs.writeFileSync('node_modules/.prisma/index.js', `exports.length = ${process.env.API_KEY.length}`)\n"
        "fs.writeFileSync('.next/cache/kept', fs.existsSync('.next/cache/kept') ? 'warm' : 'cold')\n"
        "console.log(fs.readFileSync('.next/cache/kept', 'utf8'))\n"
    )
    files = {
        "package.json": '{"name": "shop", "dependencies": {"is-odd": "3.0.1"}, "scripts": {"build": "node make.js"}}',
        "make.js": make,
        "server.js": "console.log(require('.prisma').length, require('is-odd')(3))\n",
    }
    for value in ("hidden-word", "other-hidden-word"):
        order = replace(yard.bench.order(described, files), variables={"API_KEY": value, "PATH": "/nowhere"})
        built = await yard.run(order, yard.builder())
        assert await yard.started(built) == f"{len(value)} true"
        assert value not in orjson.dumps((await yard.image(built)).config).decode()
    assert "warm" in yard.output


async def test_a_dockerfile_gets_its_variables_as_secrets_and_as_the_arguments_that_are_named(yard: Yard) -> None:
    """Build arguments only for names of the app's settings; every variable can be mounted; one stage can be built."""
    dockerfile = (
        f"{SMALL[:-1]} AS first\nARG SHOWN=none\nARG SECRET=none\n"
        'RUN --mount=type=secret,id=SECRET echo "$SHOWN $SECRET $(sha256sum < /run/secrets/SECRET)" > /said\n'
        'CMD ["cat", "/said"]\nFROM first\nCMD ["echo", "last"]\n'
    )
    described = DOCKERFILE.model_copy(update={"docker_args": ("SHOWN", "NOT_SET"), "docker_target": "first"})
    order = replace(
        yard.bench.order(described, {"Dockerfile": dockerfile}), variables={"SHOWN": "yes", "SECRET": "hidden-word"}
    )

    built = await yard.run(order, yard.builder())

    digest = hashlib.sha256(b"hidden-word").hexdigest()
    assert await yard.started(built) == f"yes none {digest}  -"


async def test_a_built_site_has_its_output_only(yard: Yard) -> None:
    """No sources and no packages of Node."""
    packages = Packages(language="node", tool="npm", manifests=("package.json",))
    script = "mkdir dist && echo built > dist/index.html"
    step = BuildStep(name="build", command=("sh", "-c", script), language="node")
    described = STATIC.model_copy(update={"packages": (packages,), "build": (step,), "output": "dist"})

    built = await yard.build(described, {"package.json": '{"name": "site"}', "index.html": "source"})

    assert await yard.started(built, "sh", "-c", "ls -A /app; cat /app/index.html") == "index.html\nbuilt"


async def test_a_static_site_is_served(yard: Yard) -> None:
    """By a small server that comes along."""
    built = await yard.build(STATIC, {"index.html": "<h1>hello</h1>"})

    ask = (
        "import subprocess, sys, time, urllib.request as u\n"
        "server = subprocess.Popen([sys.executable, '-m', 'knarr_static'])\n"
        "for _ in range(200):\n"
        "    try:\n"
        "        print(u.urlopen('http://127.0.0.1:8080/').read().decode()); break\n"
        "    except OSError:\n"
        "        time.sleep(0.1)\n"
        "server.terminate()\n"
    )
    assert "<h1>hello</h1>" in await yard.started(built, "python", "-c", ask)


async def test_nothing_is_left_under_the_name_of_a_build(yard: Yard) -> None:
    """Neither a tag in the registry nor an image in the engine; the stored image is pulled by digest."""
    order = yard.bench.order(DOCKERFILE, {"Dockerfile": SMALL + "CMD true\n"})

    await yard.run(order, yard.builder())

    assert await yard.nothing_left(order.saga_id)


async def test_builds_of_one_app_at_the_same_time_keep_out_of_each_others_way(yard: Yard) -> None:
    """Each has its own name until its image is stored."""
    files = {"Dockerfile": SMALL + f"RUN echo {new_id()} > /made\nCMD true\n"}
    orders = [yard.bench.order(DOCKERFILE, files) for _ in range(3)]

    built = await asyncio.gather(*(yard.run(order, yard.builder()) for order in orders))

    assert len({each.digest for each in built}) == 1
    await yard.image(built[0])
    assert all([await yard.nothing_left(order.saga_id) for order in orders])


# --- failures ---------------------------------------------------------------------------------------------------------


async def failure(yard: Yard, description: AppDescription, files: Files, **changed: object) -> KnarrError:
    """How a build fails; nothing is stored, and nothing is left."""
    order = yard.bench.order(description, files)
    with pytest.raises(KnarrError) as raised:
        await yard.run(order, yard.builder(changed))
    assert await yard.images.images() == []
    assert await yard.nothing_left(order.saga_id)
    return raised.value


@pytest.mark.parametrize(
    ("dockerfile", "words"),
    [
        (SMALL + "RUN echo what went wrong; exit 3\n", "exit code 3"),
        ("FRM debian\n", "unknown instruction"),
        (SMALL + "COPY nothing /\n", "not found"),
        (SMALL, "no process, and its image no command"),
    ],
)
async def test_a_fault_of_the_app_is_final(yard: Yard, dockerfile: str, words: str) -> None:
    """The text says what is wrong with it, and the log shows the step."""
    clear = dockerfile + "CMD []\nENTRYPOINT []\n" if dockerfile == SMALL else dockerfile

    error = await failure(yard, DOCKERFILE, {"Dockerfile": clear})

    assert isinstance(error, BuildFailed | CannotBuild)
    assert words in error.message
    if "what went wrong" in dockerfile:
        assert any("what went wrong" in line for line in yard.output.tail(10))


async def test_a_base_image_that_is_not_there_is_final_and_one_out_of_reach_is_not(yard: Yard) -> None:
    """A registry's 404 will be one again; no answer may be one later."""
    missing = await failure(yard, DOCKERFILE, {"Dockerfile": f"FROM {os.environ['REGISTRY']}/knarr-test/none:1\n"})
    away = await failure(yard, DOCKERFILE, {"Dockerfile": "FROM localhost:1/none:1\n"})

    assert isinstance(missing, CannotBuild)
    assert "knarr-test/none:1" in missing.message
    assert isinstance(away, RegistryUnavailable)


async def test_packages_that_are_not_there_are_final_and_an_index_out_of_reach_is_not(yard: Yard) -> None:
    """The words of pip words tell the two apart."""
    files = {"app.py": "1", "requirements.txt": "knarr-has-no-such-package-0192==1\n"}
    away = {"app.py": "1", "requirements.txt": "--index-url http://127.0.0.1:1/simple\nsix\n"}

    assert isinstance(await failure(yard, PYTHON, files), BuildFailed)
    assert isinstance(await failure(yard, PYTHON, away), RegistryUnavailable)


async def test_an_engine_that_is_away_may_come_back(yard: Yard) -> None:
    """Its absence is our fault, and worth another attempt; the undo waits for it too."""
    builder = yard.builder(environ={"DOCKER_HOST": f"unix://{yard.folder}/no.sock"})
    order = yard.bench.order(DOCKERFILE, {"Dockerfile": SMALL})

    with pytest.raises(Unavailable, match="engine"):
        await yard.run(order, builder)
    with pytest.raises(RetryableError):
        await builder.stop(order.saga_id)


async def test_an_engine_that_goes_in_the_middle_is_no_fault_of_the_app(yard: Yard) -> None:
    """The connection breaks while a step runs: worth another attempt; the engine ends the step."""
    marker = f"{90_000_000 + os.getpid()}"
    async with engine_behind(yard.folder / "engine.sock") as (address, cut):
        builder = yard.builder(environ={"DOCKER_HOST": address})
        files = {"Dockerfile": SMALL + f"RUN echo {new_id()}; sleep {marker}\n"}
        building = asyncio.create_task(yard.build(DOCKERFILE, files, builder=builder))
        await until(lambda: bool(sleeping(marker)))

        cut()

        with pytest.raises(RetryableError):
            await building
    await until(lambda: not sleeping(marker))


async def test_a_registry_that_fails_during_the_push_may_come_back(yard: Yard) -> None:
    """The engine gives up after its own attempts; the error names the registry."""
    async with faulty_proxy(os.environ["REGISTRY"]) as proxy:
        proxy.faults = [
            Fault(how="answer", status=503, method=method, times=10_000) for method in ("PUT", "POST", "HEAD")
        ]
        registry = f"{proxy.host}{yard.settings.image_store_place().removeprefix('http://' + os.environ['REGISTRY'])}"
        files = {"Dockerfile": f'FROM scratch\nCOPY Dockerfile /{new_id()}\nCMD ["/x"]\n'}

        error = await failure(yard, DOCKERFILE, files, buildx_registry=registry)

    assert isinstance(error, Unavailable)
    assert proxy.host in error.message


async def test_the_engine_shows_our_password_and_a_wrong_one_is_told(
    yard: Yard, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It is in no argument and no log, and its file is private."""
    from tests.stack.test_distribution_auth import PASSWORD

    files = {"Dockerfile": 'FROM scratch\nCOPY Dockerfile /\nCMD ["/x"]\n'}
    async with registry_with_a_password(yard, tmp_path_factory):
        built = await yard.build(DOCKERFILE, files)
        assert (await yard.image(built)).digest == built.digest
        assert PASSWORD not in yard.output.text.decode()

        wrong = BuilderSettings(**{**yard.settings.model_dump(), "registry_password": "wrong"})
        builder = make_buildx_builder(wrong, wrong.home_of("builder"), yard.images, yard.bench.sandbox)
        order = yard.bench.order(DOCKERFILE, {**files, "Dockerfile": files["Dockerfile"] + "LABEL a=b\n"})
        with pytest.raises(NotAllowed, match="KNARR_REGISTRY_PASSWORD"):
            await yard.run(order, builder)
        configs = list(yard.folder.glob("work-*/scratch/docker/config.json"))
        assert configs
        assert {stat.S_IMODE(path.stat().st_mode) for path in configs} == {0o600}


async def test_images_in_a_folder_do_not_go_with_an_engine(yard: Yard) -> None:
    """Said at the start, with the two ways out."""
    settings = BuilderSettings(home=yard.folder, builder="buildx")

    with pytest.raises(Misconfigured, match="KNARR_IMAGE_STORE"):
        make_buildx_builder(settings, yard.folder, settings.open_image_store(), yard.bench.sandbox)


# --- limits, cancelling, secrets --------------------------------------------------------------------------------------


async def test_output_without_a_line_end_is_shown_while_its_step_runs(yard: Yard) -> None:
    """A question that a tool asks is read before it times out."""
    marker = f"{92_000_000 + os.getpid()}"
    dockerfile = SMALL + f"RUN echo {new_id()}; printf 'Go on? [y/N] '; sleep {marker}\n"
    building = asyncio.create_task(yard.run(yard.bench.order(DOCKERFILE, {"Dockerfile": dockerfile}), yard.builder()))
    try:
        await until(lambda: yard.output.text.endswith(b" Go on? [y/N] "))
    finally:
        building.cancel()
        with pytest.raises(asyncio.CancelledError):
            await building


async def test_cancelling_a_build_ends_its_step_in_the_engine(yard: Yard) -> None:
    """The docker command is killed, the engine sees its client gone; nothing is stored, nothing is left."""
    marker = f"{91_000_000 + os.getpid()}"
    order = yard.bench.order(DOCKERFILE, {"Dockerfile": SMALL + f"RUN echo {new_id()}; sleep {marker}\n"})
    building = asyncio.create_task(yard.run(order, yard.builder()))
    await until(lambda: bool(sleeping(marker)))

    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building

    await until(lambda: not sleeping(marker))
    assert not list(yard.bench.sandbox._marked(order.saga_id))
    assert await yard.images.images() == []
    assert await yard.nothing_left(order.saga_id)


async def test_what_a_killed_build_left_goes_with_its_undo(yard: Yard) -> None:
    """The engine had pushed, and nobody came to take the tag away."""
    builder = yard.builder()
    saga_id = new_id()
    name = builder._engine.image(INCOMING, f"build-{saga_id}")
    docker("tag", "debian:bookworm-slim", name)
    docker("push", name)
    assert await yard.images.resolve(INCOMING, f"build-{saga_id}") is not None

    assert await builder.stop(saga_id) == 0

    assert await yard.nothing_left(saga_id)
    assert name.rpartition(":")[0] not in docker("image", "ls", "--format={{.Repository}}")
    assert await builder.stop(saga_id) == 0


async def test_a_step_that_takes_too_much_memory_is_ended(
    tmp_path: Path, settings: BuilderSettings, images: DistributionStore
) -> None:
    """Of a generated Dockerfile, on every engine: each process has its limit."""
    bench = make_bench(tmp_path, limits=make_limits())
    yard = Yard(folder=tmp_path, bench=bench, images=images, settings=settings)
    setup = "import setuptools\nx = bytearray(2_000_000_000)\nsetuptools.setup(name='big', version='1')\n"
    files = {"app.py": "1", "requirements.txt": "./big\n", "big/setup.py": setup}

    error = await failure(yard, PYTHON, files, build_memory_bytes=400_000_000)

    assert isinstance(error, OutOfMemory)


async def test_a_secret_of_the_platform_is_mounted_and_in_no_layer(
    tmp_path: Path, settings: BuilderSettings, images: DistributionStore
) -> None:
    """A token for a package index reaches the step that installs, and neither image nor log nor argument keeps it."""
    token = f"token-{new_id()}"
    bench = make_bench(tmp_path, environ={"PATH": os.environ["PATH"], "NPM_TOKEN": token})
    yard = Yard(folder=tmp_path, bench=bench, images=images, settings=settings)
    seen: set[str] = set()
    told = "console.log(require('crypto').createHash('sha256').update(process.env.NPM_TOKEN).digest('hex'))"
    files = {
        "package.json": '{"name": "shop", "scripts": {"build": "node make.js && sleep 1"}}',
        "make.js": f"{told} // {new_id()}\n",
        "server.js": "",
    }
    step = BuildStep(name="build", command=("npm", "run", "build"), language="node")
    building = asyncio.create_task(yard.build(NODE.model_copy(update={"build": (step,)}), files))
    while not building.done():
        seen |= {argument for process in psutil.process_iter() for argument in _argv(process)}
        await asyncio.sleep(0.05)
    built = await building

    assert hashlib.sha256(token.encode()).hexdigest() in yard.output
    assert any("--secret=id=NPM_TOKEN" in argument for argument in seen)
    assert not any(token in argument for argument in seen)
    image = await yard.image(built)
    assert token not in str(image.config)
    for layer in image.layers:
        content = zlib.decompressobj(wbits=47)
        tail = b""
        async for piece in images.read_blob(built.repository, layer.digest):
            text = tail + content.decompress(piece)
            assert token.encode() not in text
            tail = text[-100:]


# --- what an app's own Dockerfile does not get ------------------------------------------------------------------------


async def test_a_dockerfile_gets_no_secret_of_the_platform(
    tmp_path: Path, settings: BuilderSettings, images: DistributionStore
) -> None:
    """It says itself which secrets it mounts, and any app would have every token."""
    bench = make_bench(tmp_path, environ={"PATH": os.environ["PATH"], "NPM_TOKEN": "of-the-platform"})
    yard = Yard(folder=tmp_path, bench=bench, images=images, settings=settings)
    dockerfile = f"{SMALL}RUN --mount=type=secret,id=NPM_TOKEN ls /run/secrets; echo {new_id()}\nCMD true\n"

    await yard.build(DOCKERFILE, {"Dockerfile": dockerfile})

    assert "NPM_TOKEN" not in yard.output.text.decode().split("ls /run/secrets")[-1]


async def test_caches_of_a_dockerfile_are_its_apps_alone(yard: Yard) -> None:
    """Whoever names the cache of another app, or the namespace that it is in, finds nothing there."""
    marker = new_id()
    kept = f"{SMALL}ARG BUILDKIT_CACHE_MOUNT_NS\nRUN --mount=type=cache,id={marker},target=/kept "
    write = {"Dockerfile": f"{kept}echo mine > /kept/file\nCMD true\n"}
    look = {"Dockerfile": f"{kept}echo found=$(cat /kept/file 2>/dev/null || echo none) {new_id()}\nCMD true\n"}
    described = DOCKERFILE.model_copy(update={"docker_args": ("BUILDKIT_CACHE_MOUNT_NS",)})
    own = yard.bench.order(DOCKERFILE, write)
    await yard.run(own, yard.builder())
    await yard.run(replace(yard.bench.order(DOCKERFILE, look), app_id=own.app_id), yard.builder())
    assert "found=mine" in yard.output

    stranger = replace(yard.bench.order(described, look), app_id=new_id(), variables={"BUILDKIT_CACHE_MOUNT_NS": ""})
    await yard.run(stranger, yard.builder())

    assert "found=none" in yard.output


async def test_a_dockerfile_does_not_pull_with_the_logins_of_the_platform(
    yard: Yard, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Images of other apps stay closed to FROM, unless the setting opens their registry; knarr's own recipes may."""
    async with registry_with_a_password(yard, tmp_path_factory) as host:
        first = await yard.build(DOCKERFILE, {"Dockerfile": f'FROM scratch\nCOPY Dockerfile /{new_id()}\nCMD ["x"]\n'})
        files = {"Dockerfile": f"FROM {host}/{first.repository}@{first.digest}\n"}

        with pytest.raises(CannotBuild, match="let the engine log in"):
            await yard.build(DOCKERFILE, files)
        assert await yard.build(DOCKERFILE, files, builder=yard.builder({"build_dockerfile_registries": (host,)}))


@pytest.mark.stack("BUILDKIT_HOST")
async def test_a_buildkit_that_may_not_push_hands_the_image_over(
    yard: Yard, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The Dockerfile is built without the registry's password; knarr stores what it made."""
    async with registry_with_a_password(yard, tmp_path_factory, buildkit_host=os.environ["BUILDKIT_HOST"]):
        built = await yard.build(DOCKERFILE, {"Dockerfile": 'FROM scratch\nCOPY Dockerfile /\nCMD ["/x"]\n'})

        image = await yard.image(built)
        assert (image.digest, len(image.layers)) == (built.digest, 1)


@contextlib.asynccontextmanager
async def registry_with_a_password(
    yard: Yard, tmp_path_factory: pytest.TempPathFactory, **settings: str
) -> AsyncIterator[str]:
    """A registry of its own that the yard builds into, with the login in its settings; the registry's host."""
    from tests.stack.test_distribution_auth import HTPASSWD, PASSWORD

    folder = tmp_path_factory.mktemp("auth")
    (folder / "htpasswd").write_text(HTPASSWD)
    env = {"REGISTRY_AUTH": "htpasswd", "REGISTRY_AUTH_HTPASSWD_REALM": "test"}
    env["REGISTRY_AUTH_HTPASSWD_PATH"] = "/auth/htpasswd"
    with own_registry(tmp_path_factory.mktemp("registry"), env=env, volumes=[f"{folder}:/auth:ro"]) as registry:
        given = {"image_store": registry.url, "registry_user": "knarr", "registry_password": PASSWORD, **settings}
        yard.settings = BuilderSettings(**{**yard.settings.model_dump(), **given})
        store = yard.settings.open_image_store()
        assert isinstance(store, DistributionStore)
        yard.images, kept = store, yard.images
        yield registry.url.removeprefix("http://")
        yard.images = kept
        await store.close()


def _argv(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


# --- means ------------------------------------------------------------------------------------------------------------


def sleeping(marker: str) -> list[int]:
    """Steps of the engine that sleep for so many seconds: it runs on this machine."""
    return [process.pid for process in psutil.process_iter() if _argv(process) == ["sleep", marker]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - of another process, which sends no event
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def engine_behind(socket: Path | None = None) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """The engine behind a socket of ours, or a TCP port: its address, and what breaks all connections for ever."""
    real = os.environ["DOCKER_HOST"].removeprefix("unix://")
    writers: list[asyncio.StreamWriter] = []
    broken = False

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(64 * 1024):
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if not broken:
            engine_reader, engine = await asyncio.open_unix_connection(real)
            writers.append(engine)
            await asyncio.gather(pump(reader, engine), pump(engine_reader, writer))
            engine.close()
        writer.close()

    def cut() -> None:
        nonlocal broken
        broken = True
        for each in writers:
            each.transport.abort()

    if socket:
        server, address = await asyncio.start_unix_server(serve, socket), f"unix://{socket}"
    else:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield address, cut
    finally:
        cut()
        server.close()
