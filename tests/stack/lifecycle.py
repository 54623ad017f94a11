"""A builder image of Cloud Native Buildpacks for tests: the public lifecycle, and one small buildpack of our own.

The public builder images are not needed, and may not be reachable. The lifecycle is compiled from its Go module, once
an engine; `go` and its module proxy are needed for that.
"""

import os
import subprocess
import tempfile
from pathlib import Path

from tests.stack.one_server import docker

VERSION = "v0.20.8"
MODULE = "github.com/buildpacks/lifecycle"
BUILDER = f"knarr-test/cnb-builder:{VERSION}-2"
RUN = "knarr-test/cnb-run:1"

GO_MOD = f"module knarr.test/lifecycle\n\ngo 1.24\n\nrequire {MODULE} {VERSION}\n"
RUN_DOCKERFILE = """\
FROM python:3.11-slim
RUN useradd --uid 1001 --create-home cnb
USER 1001:1001
"""
DOCKERFILE = """\
FROM debian:bookworm-slim
RUN useradd --uid 1001 --create-home cnb && mkdir -p /workspace /layers /platform/env
COPY lifecycle launcher /cnb/lifecycle/
RUN cd /cnb/lifecycle && \\
    for phase in analyzer detector restorer builder exporter rebaser; do ln -s lifecycle $phase; done
COPY buildpack /cnb/buildpacks/knarr_test/1.0.0
COPY order.toml run.toml /cnb/
ENV CNB_USER_ID=1001 CNB_GROUP_ID=1001
LABEL io.buildpacks.builder.metadata='{"images":[{"image":"%(run)s"}]}' \\
      io.buildpacks.lifecycle.apis='{"platform":{"supported":["0.7","0.10","0.12"]}}'
USER 1001:1001
"""
ORDER = '[[order]]\n[[order.group]]\nid = "knarr/test"\nversion = "1.0.0"\n'
BUILDPACK = """\
api = "0.10"
[buildpack]
id = "knarr/test"
version = "1.0.0"
sbom-formats = ["application/vnd.cyclonedx+json"]
[[targets]]
os = "linux"
"""
DETECT = "#!/bin/sh\ntest -f app.py && test ! -f undetected\n"
BUILD = """\
#!/bin/sh
set -eu
if test -f fails; then echo "this buildpack fails as it was told"; exit 1; fi
layer=$CNB_LAYERS_DIR/kept
if test -f "$layer/made"; then echo "the cache was restored"; else echo "nothing was cached"; fi
mkdir -p "$layer/env.launch"
echo yes > "$layer/made"
printf 'from the buildpack' > "$layer/env.launch/GREETING.default"
printf '[types]\\nlaunch = true\\ncache = true\\n' > "$CNB_LAYERS_DIR/kept.toml"
if test -f "$CNB_PLATFORM_DIR/env/PASSED"; then echo "a variable was passed"; fi
if env | grep -q REGISTRY_AUTH; then echo "the registry's password is here"; exit 1; fi
printf '{"bomFormat":"CycloneDX","components":[{"name":"app"}]}' > "$CNB_LAYERS_DIR/launch.sbom.cdx.json"
cat > "$CNB_LAYERS_DIR/launch.toml" <<END
[[processes]]
type = "web"
command = ["python", "/workspace/app.py"]
default = true
END
"""


def have_builder(registry: str) -> None:
    """Make the builder image on the engine, and push its run image to that registry, where they are not there.

    Args:
        registry: `host:port` of one that answers without a password.
    """
    run = f"{registry}/{RUN}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _image(run, RUN_DOCKERFILE, folder)
        docker("push", "--quiet", run)
        if _is_there(BUILDER):
            return
        _compile(folder)
        _write_buildpack(folder / "buildpack")
        (folder / "order.toml").write_text(ORDER)
        (folder / "run.toml").write_text(f'[[images]]\nimage = "{run}"\n')
        _image(BUILDER, DOCKERFILE % {"run": run}, folder)


def push_run_image(name: str, *, motd: str) -> None:
    """Make a run image that differs from others by one file, and push it.

    Args:
        name: `host:port/repository:tag`.
        motd: Content of `/etc/motd` in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        _image(name, f"{RUN_DOCKERFILE}USER root\nRUN echo {motd} > /etc/motd\nUSER 1001:1001\n", Path(folder))
    docker("push", "--quiet", name)


def _is_there(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


def _image(name: str, dockerfile: str, folder: Path) -> None:
    (folder / "Dockerfile").write_text(dockerfile)
    docker("build", "--quiet", f"--tag={name}", str(folder))


def _compile(folder: Path) -> None:
    """Compile the lifecycle's two programs."""
    (folder / "go.mod").write_text(GO_MOD)
    version = f"-X {MODULE}/cmd.Version={VERSION.removeprefix('v')}"
    argv = ["go", "build", "-mod=mod", f"-ldflags=-s -w {version}", "-o", f"{folder}/"]
    done = subprocess.run(
        [*argv, f"{MODULE}/cmd/lifecycle", f"{MODULE}/cmd/launcher"],
        cwd=folder,
        env={**os.environ, "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _write_buildpack(folder: Path) -> None:
    (folder / "bin").mkdir(parents=True)
    (folder / "buildpack.toml").write_text(BUILDPACK)
    for name, text in (("detect", DETECT), ("build", BUILD)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
