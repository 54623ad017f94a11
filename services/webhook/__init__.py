"""Pushes, uploads and requests of people in; deployments out."""
