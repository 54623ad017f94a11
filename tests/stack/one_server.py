"""`knarr up --runtime docker` as a process, and what is left of it on the engine, seen by the `docker` command."""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import httpx2

from tests.e2e.harness import Laptop

LABEL = "io.knarr.installation"


def docker(*argv: str) -> str:
    """What the command prints; its errors are the test's."""
    done = subprocess.run(["docker", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docker {' '.join(argv)}: {done.stderr}"
    return done.stdout.strip()


@dataclass
class OneServer(Laptop):
    """One process, apps as containers, images in a registry that it starts."""

    patience_s: ClassVar[float] = 600

    runtime: str | None = "docker"
    """None: what the home remembers."""

    @property
    def arguments(self) -> list[str]:
        """As a person types it."""
        return [*super().arguments, *(["--runtime", self.runtime] if self.runtime else [])]

    def environment(self, **more: str) -> dict[str, str]:
        """Its registry has a port of the test's block."""
        return super().environment(KNARR_REGISTRY_PORT=str(self.port_base + 8), **more)

    @property
    def installation(self) -> str:
        """As its things on the engine are labelled."""
        names = docker("ps", "--all", "--filter", f"publish={self.port_base + 8}", "--format", "{{.Names}}")
        return names.removesuffix("-images")

    def containers(self, app: str = "") -> list[str]:
        """Names of apps' containers, running or not."""
        wanted = ["--filter", f"label=io.knarr.app={app}"] if app else ["--filter", "label=io.knarr.app-id"]
        ours = ["--filter", f"label={LABEL}={self.installation}"]
        return docker("ps", "--all", *ours, *wanted, "--format", "{{.Names}}").split()

    def engine_images(self) -> list[str]:
        """Images of this platform's registry that the engine has."""
        lines = docker("images", "--digests", "--format", "{{.Repository}}@{{.Digest}}").split()
        return [line for line in lines if line.startswith(f"127.0.0.1:{self.port_base + 8}/")]

    def networks(self) -> list[str]:
        """Of its apps."""
        return docker(
            "network", "ls", "--filter", f"label={LABEL}={self.installation}", "--format", "{{.Name}}"
        ).split()

    def store_bytes(self) -> int:
        """What the registry has on its disk."""
        inside = docker("exec", f"{self.installation}-images", "du", "-sb", "/var/lib/registry")
        return int(inside.split()[0])

    def repositories_in_store(self) -> dict[str, Any]:
        """Images by repository, asked from the registry itself."""
        password = (self.home / "registry-password").read_text().strip()
        base = f"http://127.0.0.1:{self.port_base + 8}/v2"
        with httpx2.Client(auth=("knarr", password), trust_env=False) as http:
            names = http.get(f"{base}/_catalog").raise_for_status().json()["repositories"]
            tags = {name: http.get(f"{base}/{name}/tags/list").json().get("tags") for name in names}
        return {name: found for name, found in tags.items() if found}

    def reclaimable(self, service: str) -> int:
        """What that service says nothing needs."""
        items = self.api.get(service, "/disk")["items"]
        assert not [each for each in items if each["size_bytes"] is None], items
        return sum(each["reclaimable_bytes"] for each in items)

    def knarr(self, *arguments: str) -> str:
        """Data that its operator's command prints."""
        return self._command(*arguments).stdout

    def knarr_says(self, *arguments: str) -> str:
        """Data, and what the command says to people."""
        done = self._command(*arguments)
        return done.stdout + done.stderr

    def _command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        home = ["--home", str(self.home)]
        done = subprocess.run(
            [sys.executable, "-m", "knarr", *arguments, *home],
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    def close(self) -> None:
        """Take everything of it away from the engine."""
        self.stop()
        ours = ["--filter", f"label={LABEL}={self.installation}"]
        for kind, remove in (
            ("ps --all", "rm --force --volumes"),
            ("network ls", "network rm"),
            ("volume ls", "volume rm"),
        ):
            for each in docker(*kind.split(), "--quiet", *ours).split():
                docker(*remove.split(), each)
        for reference in self.engine_images():
            docker("rmi", "--force", reference)


def describe(container: str) -> dict[str, Any]:
    """What the engine says of it."""
    (found,) = json.loads(docker("inspect", container))
    return dict(found)
