"""The intake's outside world: repositories through git, archives in the source service."""
