"""The `ImageBuilder` that builds Dockerfiles, the app's own or generated ones, on a Docker engine or a BuildKit."""
