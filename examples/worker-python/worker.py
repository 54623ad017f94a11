"""A process without a port: prints a line per round until it is told to stop."""

import os
import signal
import threading

INTERVAL_S = float(os.environ.get("INTERVAL_S", "2"))
stop = threading.Event()

signal.signal(signal.SIGTERM, lambda *_: stop.set())
print(f"worker started, one round every {INTERVAL_S:g} s", flush=True)
rounds = 0
while not stop.wait(INTERVAL_S):
    rounds += 1
    print(f"round {rounds}", flush=True)
print(f"stopped after {rounds} rounds", flush=True)
