"""The front door: the command line, and all services in one process."""
