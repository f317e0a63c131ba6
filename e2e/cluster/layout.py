"""Where one cluster keeps its files, and which names and addresses are its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Worker:
    """A kubelet with a containerd of its own: what the cluster takes for a machine.

    All workers share the namespaces of the node, and so the bridge of the pods and kube-proxy.

    Args:
        name: Of the Node object.
        number: From 1; the host part of its address.
    """

    name: str
    number: int


FIRST = Worker("node-1", 1)
"""The one that every cluster starts with."""
SECOND = Worker("node-2", 2)
"""The one that a scenario may add."""


@dataclass(frozen=True)
class Layout:
    """Everything that must differ between two clusters of one machine.

    Args:
        state: Folder of this cluster's files; nothing else is written anywhere.
        slot: Number, 0 to 63, from which the addresses follow.
        dns: Whether the names of Services and pods can be looked up in pods.
    """

    state: Path
    slot: int = 0
    dns: bool = False

    @property
    def id(self) -> str:
        """A name for what lives outside the namespaces: the veth and the cgroup."""
        return "weir" + hashlib.sha256(str(self.state).encode()).hexdigest()[:6]

    @property
    def holder(self) -> Path:
        """The program that is the node's first process.

        It is a copy of `pause` at a path of its own, so that a leftover node is found by what it
        runs and never mistaken for another process that has got its old pid.
        """
        return self.state / "weir-node"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state / "kubeconfig"

    @property
    def gateway(self) -> str:
        """Address of the node: API server, kubelet, name server, and the pods' gateway."""
        return f"10.244.{self.slot}.1"

    def address(self, worker: Worker) -> str:
        """Address of a worker's kubelet; the first one's is the gateway."""
        return f"10.244.{self.slot}.{worker.number}"

    def cgroup(self, worker: Worker) -> str:
        """Cgroup that holds a worker's pods: a kubelet removes what it does not know from its."""
        return self.id if worker == FIRST else f"{self.id}/{worker.name}"

    @property
    def pods(self) -> str:
        """Network of the pods."""
        return f"10.244.{self.slot}.0/24"

    @property
    def first_pod(self) -> str:
        """The lowest address a pod gets."""
        return f"10.244.{self.slot}.10"

    @property
    def services(self) -> str:
        """Network of the ClusterIPs."""
        return f"10.96.{self.slot}.0/24"

    @property
    def api_service(self) -> str:
        """ClusterIP of the API server."""
        return f"10.96.{self.slot}.1"

    @property
    def outer_end(self) -> str:
        """Address of the host's end of the link into the node."""
        return f"169.254.77.{4 * self.slot + 1}"

    @property
    def inner_end(self) -> str:
        """Address of the node's end of that link."""
        return f"169.254.77.{4 * self.slot + 2}"
