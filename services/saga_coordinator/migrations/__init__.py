"""The schema of `saga_coordinator`, step by step."""
