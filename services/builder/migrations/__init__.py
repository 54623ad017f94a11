"""The history of the tables of `builder`."""
