"""The outside world of `registry`: one image store, which builder fills and deployer reads."""

from ocistore.store import Image, ImageStore

__all__ = ["Image", "ImageStore"]
