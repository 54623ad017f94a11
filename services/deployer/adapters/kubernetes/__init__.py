"""Releases as Deployments of a Kubernetes cluster: a namespace per app, a Service that selects who serves."""
