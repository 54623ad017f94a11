"""The six services. They meet in each other's `contract.py` and HTTP API, nowhere else."""
