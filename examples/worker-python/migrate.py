"""Runs before the traffic moves, at least once: whatever stands here must be repeatable."""

import os

print(f"release command of {os.environ.get('KNARR_APP', 'worker-python')}: the tables are as the code wants them")
