"""The outside world of `source`: git."""
