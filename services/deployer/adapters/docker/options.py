"""How long, how much, and under which names the Docker runtime works."""

from dataclasses import dataclass, field

from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.engine import Login
from services.deployer.checks import Patience


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Limits and names."""

    installation: str = "knarr"
    start_timeout_s: float = 60.0
    start_timeout_max_s: float = 600.0
    grace_s: float = 10.0
    drain_s: float = 10.0
    release_command_timeout_s: float = 600.0
    settle_s: float = 1.0
    bounds: spec.Bounds = field(default_factory=spec.Bounds)
    login: Login | None = None
    """At the registry."""

    @property
    def patience(self) -> Patience:
        """Limits for health checks."""
        return Patience(start_s=self.start_timeout_s, start_max_s=self.start_timeout_max_s, settle_s=self.settle_s)
