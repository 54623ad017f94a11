"""Cloud Native Buildpacks on a Docker engine."""
