"""What Go brings to a Dockerfile: a toolchain for build steps, and certificates for the final image. Pure."""

import shlex

from services.builder.adapters.buildx.kitchen import Kitchen, Part
from services.builder.install import go as plan
from services.builder.ports import BuildOrder
from services.source.contract import Packages

_CACHES = "/knarr/caches"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def go_part(order: BuildOrder, packages: Packages, kitchen: Kitchen) -> Part:
    """Return the toolchain's image by the minor version that go.mod asks for; go itself fetches a newer patch."""
    wanted = plan.minor(packages.version) if packages.version else kitchen.images.go_version
    image = kitchen.images.pinned(kitchen.images.go.format(version=wanted))
    env = plan.environment(caches=_CACHES, fetch=True)
    return Part(
        image=kitchen.images.pinned(kitchen.images.other),
        ready=image,
        env="HOME=/app",
        copies=[f"COPY --from={image} {_CERTIFICATES} {_CERTIFICATES}"],
        before_steps=[f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())],
        caches=[f"id=knarr-go-{order.app_id},target={_CACHES}"],
    )
