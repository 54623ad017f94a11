"""A published image in; a running, observed release out."""
