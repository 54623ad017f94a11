"""OCI images: the port of an image store, and its adapters."""
