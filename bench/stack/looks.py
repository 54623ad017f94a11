"""What is chance in a deployment to Kubernetes, by hand and with knarr: when a kubelet looks.

Once a second it looks for containers that run, and once a second whether a pod's port answers; so from the start of a
container until its pod is ready it takes 0.2 to 2 s, for one and the same app. Both ways start a pod with the same
probe, and neither can do anything about it. A watch on the cluster hears when containers start and when pods are ready.
"""

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

_STARTED = '{.reason}{" "}{.involvedObject.name}{"\\n"}'
_READY = '{.status.conditions[?(@.type=="Ready")].status}{" "}{.metadata.name}{"\\n"}'


@dataclass(frozen=True, slots=True)
class Looks:
    """When the cluster told of it, by pod, on the clock of `perf_counter`, in seconds."""

    started: dict[str, float] = field(default_factory=dict)
    ready: dict[str, float] = field(default_factory=dict)

    def took_s(self, since: float) -> float:
        """From the start of a container until its pod was ready, of the last one that was started since that moment."""
        pod = max((each for each in self.ready if self.started.get(each, 0) > since), key=self.started.__getitem__)
        return self.ready[pod] - self.started[pod]


@contextlib.contextmanager
def watched() -> Iterator[Looks]:
    """What is heard while the block runs."""
    looks = Looks()

    def started(reason: str, pod: str) -> None:
        if reason == "Started":
            looks.started.setdefault(pod, perf_counter())

    def ready(status: str, pod: str) -> None:
        if status == "True":
            looks.ready.setdefault(pod, perf_counter())

    watches = [_watch("events", _STARTED, started), _watch("pods", _READY, ready)]
    try:
        yield looks
    finally:
        for each in watches:
            each.kill()
            each.wait()


def _watch(kind: str, told: str, note: Callable[[str, str], None]) -> "subprocess.Popen[str]":
    """Everything that changes from now on, two words a line."""
    argv = ["kubectl", "get", kind, "--all-namespaces", "--watch-only", f"--output=jsonpath={told}"]
    watch = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, bufsize=1)

    def read() -> None:
        for line in watch.stdout or ():
            said, _, name = line.strip().rpartition(" ")
            note(said, name)

    threading.Thread(target=read, daemon=True, name=f"watch-{kind}").start()
    return watch
