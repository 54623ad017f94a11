"""The deployer's outside world: runtimes and the router."""
