"""The cluster under test: our own, or the one KUBECONFIG names.

A cluster of the caller's needs two more settings, because the project publishes no images:

- `WEIR_E2E_VALUES`: a file of chart values, with `images` that the cluster can pull;
- `WEIR_E2E_SPEC`: a file with what to merge into the test service's spec, if anything.

The machine that runs the tests must reach that cluster's pod and ClusterIP addresses.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from e2e import hosted
from e2e.cluster import build, cluster, node
from e2e.cluster.layout import Layout
from e2e.kube import Helm, Kubectl, Manifest
from weir_core.api.labels import SIDECAR_CONTAINER


@dataclass(frozen=True)
class Target:
    """A cluster, and how Weir's programs get into its pods.

    Args:
        values: Chart values that make the operator's image available.
        spec: What every test service's spec gets merged in.
        own: Whether the nodes are this machine, so that processes in pods can be killed.
        outlives_us: Whether the cluster stays when the tests end, which then tidy up.
    """

    kubectl: Kubectl
    helm: Helm
    values: dict[str, Any]
    spec: dict[str, Any]
    own: bool
    outlives_us: bool

    def kill(self, pod: Manifest, container: str) -> None:
        """Kill every process of a container, as the kernel would when memory runs out."""
        if not self.own:  # the next worst thing that works from inside the container
            meta = pod["metadata"]
            where = (meta["name"], f"--namespace={meta['namespace']}", f"--container={container}")
            self.kubectl.attempt("exec", *where, "--", "kill", "-TERM", "1")
            return
        self.signal(pod, container, signal.SIGKILL)

    # What follows works on our own cluster only: it takes the node's root.

    def signal(self, pod: Manifest, container: str, number: signal.Signals) -> None:
        """Send a signal to every process of a container."""
        for pid in _processes_of(_id_of(pod, container)):
            with suppress(ProcessLookupError):  # the others end with the container's first
                os.kill(pid, number)

    def in_network_of(self, pod: Manifest, *command: str) -> None:
        """Run a command of the node's with the interfaces and the packet filter of a pod."""
        pid = _processes_of(_id_of(pod, SIDECAR_CONTAINER))[0]
        node.run("nsenter", f"--target={pid}", "--net", "--", *command)

    def behind(self, url: str, port: int) -> str:
        """Return which pod took the connection that this machine opened to a Service from `port`.

        kube-proxy chose it; the kernel remembers where it sends the connection's packets.
        """
        layout = Layout(self.kubectl.kubeconfig.parent)
        machine = node.find(layout)
        assert machine is not None
        to = re.escape(str(urlsplit(url).hostname))
        sent = re.compile(rf"dst={to} sport={port} dport=\d+ src=([\d.]+) ")
        found = sent.search(Path(f"/proc/{machine.pid}/net/nf_conntrack").read_text())
        assert found is not None, f"no connection from port {port} to {url}"
        return found[1]


@contextmanager
def connect(*, dns: bool) -> Iterator[Target]:
    """Yield the cluster to test on; a cluster started here ends with the context.

    Args:
        dns: Whether a cluster that is started here has a name server.
    """
    given = os.environ.get("KUBECONFIG")
    if given:
        yield _given(Path(given))
        return
    ours = cluster.up("e2e", owner=os.getpid(), dns=dns)
    try:
        yield _own(ours.layout, outlives_us=False)
    finally:
        ours.down()


def is_ours(kubeconfig: Path) -> bool:
    """Tell whether it is of a cluster that `python -m e2e.cluster up` started."""
    return (kubeconfig.parent / cluster.READY).exists()


def _given(kubeconfig: Path) -> Target:
    if is_ours(kubeconfig):
        return _own(Layout(kubeconfig.parent), outlives_us=True)
    kubectl, helm = shutil.which("kubectl"), shutil.which("helm")
    folder = None if kubectl and helm else build.binaries()
    return Target(
        Kubectl(folder / "kubectl" if folder else Path(str(kubectl)), kubeconfig),
        Helm(folder / "helm" if folder else Path(str(helm)), kubeconfig),
        values=_yaml_of("WEIR_E2E_VALUES"),
        spec=_yaml_of("WEIR_E2E_SPEC"),
        own=False,
        outlives_us=True,
    )


def _own(layout: Layout, *, outlives_us: bool) -> Target:
    programs = build.binaries()
    return Target(
        Kubectl(programs / "kubectl", layout.kubeconfig),
        Helm(programs / "helm", layout.kubeconfig),
        values=hosted.chart_values(),
        spec=hosted.service_patch(),
        own=True,
        outlives_us=outlives_us,
    )


def _yaml_of(variable: str) -> dict[str, Any]:
    path = os.environ.get(variable)
    return yaml.safe_load(Path(path).read_text()) if path else {}


def _id_of(pod: Manifest, container: str) -> str:
    """Return the id of a pod's container."""
    status = pod["status"]
    every = status.get("containerStatuses", []) + status.get("initContainerStatuses", [])
    (found,) = (one["containerID"] for one in every if one["name"] == container)
    return str(found.rpartition("/")[2])


def _processes_of(container_id: str) -> list[int]:
    """Return the processes whose cgroup is the container's."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            groups = (entry / "cgroup").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if container_id in groups:
            found.append(int(entry.name))
    return found
