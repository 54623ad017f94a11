"""Names of the services in the order of their ports. The module imports nothing, so that a command line can read it."""

SERVICE_PORTS: tuple[str, ...] = ("webhook", "source", "builder", "registry", "deployer", "saga_coordinator")
"""Service at `port_base` plus 1, 2, 3 …, so that an address in the documentation holds in every mode."""

TOKENS_SERVICE = "webhook"
"""The service that stores granted tokens; the others read their digests from it."""
