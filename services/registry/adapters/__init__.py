"""None of its own: the image store's adapters are in `ocistore`."""
