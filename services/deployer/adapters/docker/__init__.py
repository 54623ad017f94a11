"""Releases as containers of one Docker engine, behind the router's stable port per app."""
