"""What Go brings to a Dockerfile: a toolchain for build steps, and certificates for the final image. Pure."""

import shlex

from services.builder.adapters.buildx.kitchen import Kitchen, Part
from services.builder.install import go as plan
from services.builder.ports import BuildOrder
from services.source.contract import Packages

_CACHES = "/knarr/caches"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def go_part(order: BuildOrder, packages: Packages, kitchen: Kitchen) -> Part:
    """Return what Go brings: the image of the version that the app names, in which go fetches a newer patch.

    A version in go.mod is the oldest that builds the module (https://go.dev/ref/mod#go-mod-file-go), so an older one
    than the default gets the default.
    """
    wanted = plan.minor(packages.version) if packages.version else kitchen.images.go_version
    if packages.version_file == "go.mod" and plan.older(wanted, kitchen.images.go_version):
        wanted = kitchen.images.go_version
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
