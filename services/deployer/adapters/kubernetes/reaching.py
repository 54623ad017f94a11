"""Checks that the deployer makes of pods: by their addresses, else through the API server.

From inside the cluster, and from its nodes, pods are reached by their addresses. A deployer elsewhere reaches only the
API server, which passes an HTTP request on. A pod that a kubelet reaches and that neither way reaches is no fault of
the app.
"""

import asyncio

from seedwork.errors import KnarrError, Unavailable
from services.deployer.adapters.kubernetes import verdicts
from services.deployer.adapters.kubernetes.cluster import Cluster
from services.deployer.adapters.probe import REFUSED, ask
from services.deployer.checks import Check

_UNREACHED = b"error trying to reach service"
"""The API server's own answer for a pod that it does not reach."""
_CLOSED_S = 0.5
"""In which a program closes a connection on which nothing comes, usually; seconds."""


class Reaching:
    """Asks pods.

    Args:
        cluster: Passes requests on.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def ask(self, check: Check, namespace: str, pod: verdicts.Pod, port: int) -> str | None:
        """Make one attempt of a check; None if the pod passes, else what it does instead.

        Raises:
            Unavailable: The pod takes the kubelet's connections, and is not reached from here.
        """
        fault = await ask(pod.address, check.port or port, check) if pod.address else REFUSED
        if fault != REFUSED or check.path is None:
            return fault
        return await self._through(check, namespace, pod, check.port or port)

    async def _through(self, check: Check, namespace: str, pod: verdicts.Pod, port: int) -> str | None:
        try:
            status, body = await self._cluster.through(
                namespace, pod.name, port, check.path or "/", headers=dict(check.headers), timeout_s=check.timeout_s
            )
        except KnarrError as error:
            raise Unavailable(
                f"The deployer does not reach {pod.label}",
                why=f"{pod.address}:{port} refuses connections from here, and through the API server: {error.why}",
                todo="Run the deployer in the cluster, or give its account the verb `get` on `pods/proxy`.",
            ) from error
        if _UNREACHED in body:
            return REFUSED
        if not check.any_status and not 200 <= status < 400:
            return f"GET {check.path} answered {status}"
        if check.content is not None and check.content.encode() not in body:
            return f"the answer to GET {check.path} does not contain {check.content[:60]!r}"
        return None


async def leads_to_a_pod(host: str, port: int, *, within_s: float = _CLOSED_S) -> bool:
    """Whether a program takes connections there and reads what is sent: nothing, so that it closes them.

    A connection alone proves nothing. kube-proxy of older versions listens on node ports itself, to reserve them, and
    never reads. Until its rules are there it receives the connections, and requests get no answer.
    """
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write_eof()
                await reader.read(1)
            finally:
                writer.close()
    except ConnectionResetError:
        return True
    except OSError:
        return False
    return True
