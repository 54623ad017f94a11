"""A Docker engine: where it listens, and calls to its API over plain HTTP without a client library."""

from dockerengine.client import EngineApi
from dockerengine.endpoint import Endpoint, find_endpoint

__all__ = ["Endpoint", "EngineApi", "find_endpoint"]
