"""The outside world of `builder`: the source service, and the ways to build."""
