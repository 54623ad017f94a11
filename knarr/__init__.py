"""The front door: the command line, and all six services in one process."""
