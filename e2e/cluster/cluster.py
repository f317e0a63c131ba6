"""Starting and stopping the cluster, each in one call.

`up` first removes whatever a killed run left, then starts the components in the order they need
each other and waits for each. `down` is `node.destroy`: it needs no memory of what was started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from e2e.cluster import build, components, images, node, pki
from e2e.cluster.errors import ClusterError
from e2e.cluster.layout import FIRST, SECOND, Layout, Worker
from e2e.cluster.report import say

CHECKOUT = Path(__file__).resolve().parent.parent.parent
READY_WITHIN_S = 90.0
READY = "ready"
"""File in the state folder of a cluster whose start was finished."""


@dataclass
class Cluster:
    """A running cluster, and the processes of it that this program started."""

    layout: Layout
    bin_dir: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.layout.kubeconfig

    def down(self) -> None:
        """End the cluster and remove everything of it."""
        try:
            node.destroy(self.layout)
        finally:
            for process in self.processes.values():
                process.wait(timeout=node.PATIENCE_S)


def state_dir(name: str) -> Path:
    """Return the folder of the cluster called `name`."""
    return build.cache_dir().resolve() / "clusters" / name


def up(name: str, *, owner: int | None = None, dns: bool = False) -> Cluster:
    """Start the cluster called `name` and return when its node is Ready.

    Args:
        name: Two names make two clusters beside each other.
        owner: Process whose end makes this cluster a leftover; without one it is a person's.
        dns: Whether it has a name server.
    """
    if os.geteuid() != 0:
        raise ClusterError("a cluster with a real kubelet needs root, or set KUBECONFIG")
    bin_dir = build.binaries()
    if dns:
        build.tool(components.DNS)  # here, for what builds takes the same lock
    with build.locked("another cluster is starting"):  # both would find the same addresses free
        return _up(name, owner, bin_dir, dns=dns)


def _up(name: str, owner: int | None, bin_dir: Path, *, dns: bool) -> Cluster:
    remove_leftover(name)
    state = state_dir(name)
    state.mkdir(parents=True, mode=0o700)
    layout = Layout(state, node.free_slot(), dns)
    said = {"slot": layout.slot, "dns": dns, "owner": owner}
    (state / "cluster.json").write_text(json.dumps(said))
    cluster = Cluster(layout, bin_dir)
    try:
        _start(cluster)
        (state / READY).touch()
    except BaseException:
        cluster.down()
        raise
    return cluster


def names() -> list[str]:
    """Return the names of all clusters that run or have left something."""
    folder = state_dir("").resolve()
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def find(name: str) -> Layout | None:
    """Return the layout of the running cluster called `name`, if there is one."""
    state = state_dir(name)
    if not (state / READY).exists() or node.find(Layout(state)) is None:
        return None
    said = json.loads((state / "cluster.json").read_text())
    return Layout(state, said["slot"], said.get("dns", False))


def remove_leftover(name: str) -> None:
    """Remove what is left of an earlier cluster of this name, unless someone still uses it."""
    state = state_dir(name)
    if not state.exists():
        return
    owner = _owner(state)
    if owner is not None and owner != os.getpid() and _is_pytest(owner):
        raise ClusterError(f"process {owner} is using the cluster in {state}; let it finish")
    say(f"removing the earlier cluster in {state}")
    node.destroy(Layout(state))


def _owner(state: Path) -> int | None:
    try:
        owner: int | None = json.loads((state / "cluster.json").read_text())["owner"]
    except (OSError, ValueError):
        return None
    return owner


def _is_pytest(pid: int) -> bool:
    try:
        return b"pytest" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _start(cluster: Cluster) -> None:
    started = time.monotonic()
    layout = cluster.layout
    pki.issue_all(layout)
    for path, content in components.files(layout).items():
        (layout.state / path).parent.mkdir(parents=True, exist_ok=True)
        (layout.state / path).write_text(content)
    machine = node.start(layout, cluster.bin_dir / "pause")
    if machine.process is not None:
        cluster.processes["node"] = machine.process
    commands = components.commands(layout, cluster.bin_dir)
    worker = components.worker_commands(layout, FIRST, cluster.bin_dir)
    if layout.dns:
        commands[components.DNS] = components.dns_command(layout, build.tool(components.DNS))
    runtime = {components.CONTAINERD: worker.pop(components.CONTAINERD)}
    first = (components.ETCD, components.API_SERVER)
    _spawn(cluster, machine, {name: commands.pop(name) for name in first} | runtime)
    _import_images(cluster, machine, FIRST)
    _until(cluster, "the API server to be ready", lambda: _kubectl(cluster, "get", "--raw=/readyz"))
    _spawn(cluster, machine, commands | worker)
    _until(cluster, "the node to be Ready", lambda: _is_ready(cluster, FIRST))
    account = ("get", "serviceaccount", "default", "--namespace=default")
    _until(cluster, "the first service account", lambda: _kubectl(cluster, *account))
    say(f"ready after {time.monotonic() - started:.1f} s")


@contextmanager
def second_worker(layout: Layout) -> Iterator[str]:
    """Have a second kubelet in a running cluster for the length of the context; yield its name."""
    machine = node.find(layout)
    if machine is None:
        raise ClusterError(f"no cluster runs from {layout.state}")
    joined = Cluster(layout, build.binaries())  # of the cluster, only what is started here
    for path, content in components.worker_files(layout, SECOND).items():
        (layout.state / path).parent.mkdir(exist_ok=True)
        (layout.state / path).write_text(content)
    node.make_cgroups(layout.cgroup(SECOND))
    if layout.address(SECOND) not in machine.run("ip", "addr", "show", "dev", "pods0"):
        machine.run("ip", "addr", "add", f"{layout.address(SECOND)}/24", "dev", "pods0")
    commands = components.worker_commands(layout, SECOND, joined.bin_dir)
    try:
        _spawn(joined, machine, {components.CONTAINERD: commands.pop(components.CONTAINERD)})
        _import_images(joined, machine, SECOND)
        _spawn(joined, machine, commands)
        _until(joined, "the second node to be Ready", lambda: _is_ready(joined, SECOND))
        yield SECOND.name
    finally:
        _kubectl(joined, "delete", "node", SECOND.name, "--ignore-not-found")
        for process in reversed(joined.processes.values()):
            node.end(process)


def _import_images(cluster: Cluster, machine: node.Node, worker: Worker) -> None:
    """Give a worker's containerd the images that pods here are made of."""
    ctr = ("ctr", "--address", components.containerd_socket(worker), "--namespace", "k8s.io")
    _until(cluster, "containerd to answer", lambda: _succeeds(machine.run, *ctr, "version"))
    for image in (images.pause(cluster.bin_dir / "pause"), images.host(_program_folders())):
        archive = cluster.layout.state / "image.tar"
        images.write_archive(image, archive)
        machine.run(*ctr, "images", "import", str(archive))
        archive.unlink()


def _is_ready(cluster: Cluster, worker: Worker) -> bool:
    ready = ("wait", "--for=condition=Ready", f"node/{worker.name}", "--timeout=1s")
    return _kubectl(cluster, *ready)


def _program_folders() -> Sequence[Path]:
    """Return where pods on the `host` image find `weir-sidecar` and its like."""
    return [Path(sys.prefix) / "bin"]


def _spawn(cluster: Cluster, machine: node.Node, commands: Mapping[str, list[str]]) -> None:
    for name, command in commands.items():
        log = cluster.layout.state / f"{name}.log"
        with log.open("wb") as out:
            cluster.processes[name] = subprocess.Popen(
                [*machine.enter, *command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                # containerd prefers the shim of the PATH to the one beside itself.
                env={**os.environ, "PATH": f"{cluster.bin_dir}:{os.environ['PATH']}"},
            )  # fmt: skip


def _until(cluster: Cluster, what: str, condition: Callable[[], bool]) -> None:
    """Wait for `condition`, and fail at once with the log's end if a component has died."""

    def holds() -> bool:
        for name, process in cluster.processes.items():
            if process.poll() is not None:
                log = (cluster.layout.state / f"{name}.log").read_text(errors="replace")
                raise ClusterError(f"{name} ended while starting:\n{log[-3000:]}")
        return condition()

    node.wait(holds, what, READY_WITHIN_S)


def _kubectl(cluster: Cluster, *arguments: str) -> bool:
    command = (str(cluster.bin_dir / "kubectl"), f"--kubeconfig={cluster.kubeconfig}")
    return _succeeds(node.run, *command, *arguments)


def _succeeds(call: Callable[..., str], *command: str) -> bool:
    try:
        call(*command, timeout_s=10)
    except (ClusterError, subprocess.TimeoutExpired):
        return False
    return True
