"""The schema of `source`, step by step."""
