"""The history of the tables of `registry`."""
