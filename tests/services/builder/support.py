"""What the builder's tests share: fakes of its ports, small apps, and a builder with everything real around it."""

import asyncio
import hashlib
import io
import shutil
import zipfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from ocistore import manifest
from ocistore.layout import OciLayout
from ocistore.store import LABEL_PROCESSES, Image, ImageStore
from ocistore.testing import image_config, layer_file
from seedwork.archives import ArchiveLimits, extract_tar, pack_tar
from seedwork.errors import KnarrError, NotFound
from seedwork.messages import new_id
from services.builder.adapters.layers.builder import LayersBuilder
from services.builder.adapters.layers.interpreters import Interpreters
from services.builder.adapters.layers.limits import Limits
from services.builder.adapters.layers.sandbox import Sandbox
from services.builder.contract import BuiltLayer
from services.builder.ports import BuildOrder, BuildOutput, Built
from services.source.contract import AppDescription, Packages, Runtime

COMMIT = "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d"
MIB = 1024 * 1024

PIP = Packages(language="python", tool="pip", manifests=("requirements.txt",))
PYTHON = AppDescription(runtime=Runtime(kind="python"), processes={"web": ("python", "app.py")}, packages=(PIP,))
PYPROJECT = PYTHON.model_copy(update={"packages": (PIP.model_copy(update={"manifests": ("pyproject.toml",)}),)})
NO_PACKAGES = PYTHON.model_copy(update={"packages": ()})
NPM = Packages(language="node", tool="npm", manifests=("package.json",))
NODE = AppDescription(runtime=Runtime(kind="node"), processes={"web": ("node", "server.js")}, packages=(NPM,))
STATIC = AppDescription(runtime=Runtime(kind="static"))
PROCFILE = AppDescription(runtime=Runtime(kind="procfile"), processes={"web": ("/bin/sh", "-c", "./serve")})

Files = Mapping[str, str | bytes]


def write_files(folder: Path, files: Files) -> Path:
    """Files by path; those that begin with `#!` are executable."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(data)
        path.chmod(0o755 if data.startswith(b"#!") else 0o644)
    return folder


def archive_of(folder: Path, files: Files) -> tuple[Path, str]:
    """The files as an archive, and its digest."""
    tree = write_files(folder / f"tree-{new_id()}", files)
    path = folder / f"{tree.name}.tar"
    digest, _ = pack_tar(tree, path)
    shutil.rmtree(tree)
    return path, digest


@dataclass
class Output:
    """A `BuildOutput` in memory."""

    text: bytearray = field(default_factory=bytearray)

    def write(self, text: bytes) -> None:
        """See `BuildOutput`."""
        self.text += text

    def say(self, line: str) -> None:
        """See `BuildOutput`."""
        self.text += line.encode() + b"\n"

    def write_unfinished(self, text: bytes) -> int:
        """See `BuildOutput`."""
        self.text += text
        return len(text)

    def tail(self, lines: int) -> tuple[str, ...]:
        """See `BuildOutput`."""
        return tuple(self.text.decode().splitlines()[-lines:])

    def __contains__(self, words: str) -> bool:
        """Whether it was printed."""
        return words.encode() in self.text


@dataclass
class Held:
    """Remembers for which digests a reference was asked, and whether the image was there already."""

    images: ImageStore
    digests: list[str] = field(default_factory=list)
    stored_before: list[bool] = field(default_factory=list)

    async def __call__(self, digest: str) -> None:
        """Called before the bytes are stored."""
        self.digests.append(digest)
        self.stored_before.append(any(found == digest for _, found in await self.images.images()))


@dataclass
class Bench:
    """A real builder with a folder, an image store and a way to order builds."""

    folder: Path
    builder: LayersBuilder
    images: OciLayout
    sandbox: Sandbox
    app_id: str = field(default_factory=new_id)
    output: Output = field(default_factory=Output)
    notes: list[str] = field(default_factory=list)

    def order(self, description: AppDescription, files: Files, *, commit: str | None = COMMIT) -> BuildOrder:
        """An order for an app with these files."""
        archive, digest = archive_of(self.folder, files)
        work = self.folder / f"work-{new_id()}"
        work.mkdir()
        return BuildOrder(
            saga_id=new_id(),
            app_id=self.app_id,
            app="shop",
            commit=commit,
            source_digest=digest,
            description=description,
            archive=archive,
            folder=work,
        )

    async def build(self, description: AppDescription, files: Files, *, commit: str | None = COMMIT) -> Built:
        """Build an app with these files."""
        return await self.run(self.order(description, files, commit=commit))

    async def run(self, order: BuildOrder) -> Built:
        """Carry out an order."""
        return await self.builder.build(order, output=self.output, note=self.notes.append, hold=Held(self.images))

    async def image(self, built: Built) -> Image:
        """What was stored, every blob looked at."""
        return await self.images.get(built.repository, built.digest, verify=True)


def make_bench(
    folder: Path,
    *,
    environ: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    cache: str = "home",
    interpreters: Interpreters | None = None,
    fetch_toolchains: bool = False,
) -> Bench:
    """A builder whose home is `folder/<cache>`."""
    sandbox = Sandbox(folder / cache, limits or make_limits(), environ=environ)
    images = OciLayout(folder / "images")
    builder = LayersBuilder(
        folder / cache,
        images=images,
        sandbox=sandbox,
        cache_bytes=1024 * MIB,
        interpreters=interpreters or Interpreters(""),
        fetch_toolchains=fetch_toolchains,
    )
    return Bench(folder=folder, builder=builder, images=images, sandbox=sandbox)


def make_limits(*, memory_bytes: int = 2048 * MIB, processes: int = 200, file_bytes: int = 1024 * MIB) -> Limits:
    """Limits that no test's build reaches by itself."""
    return Limits(memory_bytes=memory_bytes, processes=processes, file_bytes=file_bytes, cpu_s=300)


def wheel(
    name: str, version: str = "1.0", files: Files | None = None, *, scripts: Mapping[str, str] | None = None
) -> bytes:
    """A small wheel, so that a test needs no package index."""
    buffer = io.BytesIO()
    info = f"{name}-{version}.dist-info"
    content: dict[str, str | bytes] = {
        **(files or {f"{name}.py": f"VERSION = {version!r}\n"}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if scripts:
        lines = [f"{script} = {target}" for script, target in scripts.items()]
        content[f"{info}/entry_points.txt"] = "[console_scripts]\n" + "\n".join(lines) + "\n"
    record = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in {**content, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return buffer.getvalue()


class FakeImageBuilder:
    """An `ImageBuilder` that puts a small image into the store; what it does can be steered.

    `during` is awaited in the middle of each build: it may raise, or wait.
    """

    def __init__(self, images: ImageStore, during: Callable[[BuildOrder], Awaitable[None]] | None = None) -> None:
        self._images = images
        self._during = during
        self.orders: list[BuildOrder] = []
        self.stopped: list[str | None] = []

    async def build(
        self,
        order: BuildOrder,
        *,
        output: BuildOutput,
        note: Callable[[str], None],
        hold: Callable[[str], Awaitable[None]],
    ) -> Built:
        """See `ImageBuilder.build`."""
        self.orders.append(order)
        note("building")
        output.say("building")
        if self._during is not None:
            await self._during(order)
        layer = layer_file(order.folder, {"app/source": order.source_digest})
        labels = {
            "app": order.app_id,
            "what": orjson.dumps(order.description.model_dump()).decode(),
        }
        config = image_config([layer], labels=labels)
        await hold(manifest.draft(config, [layer]).manifest_digest)
        image = await self._images.put(order.repository, config=config, layers=[layer])
        built = BuiltLayer(digest=layer.descriptor.digest, size_bytes=layer.descriptor.size_bytes, cached=False)
        return Built(repository=order.repository, digest=image.digest, layers=(built,))

    async def stop(self, saga_id: str | None = None) -> int:
        """See `ImageBuilder.stop`."""
        self.stopped.append(saga_id)
        return 0


@dataclass
class FakeSourceArchive:
    """A `SourceArchive` in memory; `fail_next` holds errors that the next downloads raise."""

    archives: dict[str, bytes] = field(default_factory=dict)
    fail_next: list[KnarrError] = field(default_factory=list)

    def add(self, folder: Path, files: Files) -> str:
        """Keep the files as an archive; its digest."""
        path, digest = archive_of(folder, files)
        self.archives[digest] = path.read_bytes()
        return digest

    async def download(self, digest: str, to: Path) -> int:
        """See `SourceArchive.download`."""
        if self.fail_next:
            raise self.fail_next.pop(0)
        if digest not in self.archives:
            raise NotFound(f"There is no archive {digest}")
        return await asyncio.to_thread(to.write_bytes, self.archives[digest])


def digest_of(path: Path) -> str:
    """Of a file's content."""
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


async def unpacked(bench: Bench, built: Built, to: Path) -> Path:
    """The image's files below one folder, as the runtime `process` lays them out."""
    for layer in (await bench.image(built)).layers:
        path = to.with_name(f"{to.name}.tar")
        with path.open("wb") as file:
            async for piece in bench.images.read_blob(built.repository, layer.digest):
                file.write(piece)
        extract_tar(path, to, limits=ArchiveLimits())
        path.unlink()
    return to


async def run_process(bench: Bench, built: Built, root: Path, process: str = "web", *more: str) -> str:
    """Run a process of the unpacked image to its end, with the image's environment; what it printed.

    Absolute values of the environment get the folder in front, as the runtime `process` does.
    """
    config = (await bench.image(built)).config["config"]
    argv = orjson.loads(config["Labels"][LABEL_PROCESSES])[process]
    env = environment_of(config["Env"], root)
    running = await asyncio.create_subprocess_exec(
        shutil.which(argv[0], path=env["PATH"]) or argv[0],
        *(*argv[1:], *more),
        cwd=root / "app",
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await running.communicate()
    return printed.decode()


def environment_of(lines: Sequence[str], root: Path) -> dict[str, str]:
    """`config.Env` for a folder in place of a root file system."""
    values = dict(line.split("=", 1) for line in lines)
    return {name: ":".join(_rooted(part, root) for part in value.split(":")) for name, value in values.items()}


def _rooted(value: str, root: Path) -> str:
    return f"{root}{value}" if value.startswith(("/app", "/layers")) else value
