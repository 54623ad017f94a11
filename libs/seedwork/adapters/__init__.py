"""Adapters of the kernel's ports."""
