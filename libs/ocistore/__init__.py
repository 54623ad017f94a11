"""OCI images: the port of an image store, its adapters, and `open_store`, which chooses one by where the images are."""

from ocistore.opening import ImageStoreSettings, OpenedStore, is_registry, open_store

__all__ = ["ImageStoreSettings", "OpenedStore", "is_registry", "open_store"]
