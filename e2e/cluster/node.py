"""The node: namespaces of its own for everything, held open by one process.

Network, mounts and process ids of the cluster are private to it. That makes the end simple and
certain: when the first process of the namespaces is killed, the kernel kills every other one in
them, and with the last of them go their mounts, interfaces, routes and iptables rules. Only the
cgroups of the pods and the files are left to remove. The same way works after this program itself
was killed, because the first process is found by the path it runs from.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from e2e.cluster.errors import ClusterError
from e2e.cluster.layout import Layout

CGROUPS = Path("/sys/fs/cgroup")
PATIENCE_S = 30.0

# Folders that kubelet and CNI write to whatever they are told; created on the host where missing.
FIXED_FOLDERS = (Path("/var/lib/cni"), Path("/var/lib/kubelet"))

# Everything that the components write at fixed places lands in private file systems.
# `/` becomes a peer group of its own: the kubelet wants mounts shared with the runtime, and
# the host must not see them.
_BECOME_NODE = f"""
mount --make-rshared / &&
mount -t tmpfs -o mode=755 tmpfs /run &&
mount -t tmpfs -o mode=755 tmpfs /var/log &&
for folder in {" ".join(map(str, FIXED_FOLDERS))}; do
  mount -t tmpfs tmpfs $folder || exit 1
done &&
mkdir /run/lock &&
ip link set lo up &&
echo 1 > /proc/sys/net/ipv4/ip_forward &&
exec "$0"
"""


class Node:
    """The running namespaces of one cluster.

    Args:
        process: What this program started to open them, if it did.
    """

    def __init__(
        self, layout: Layout, pid: int, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.layout = layout
        self.pid = pid
        self.process = process

    @property
    def enter(self) -> list[str]:
        """The words to put before a command that runs on the node."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--"]

    def run(self, *command: str, timeout_s: float = 60) -> str:
        """Run `command` on the node and return its output."""
        return run(*self.enter, *command, timeout_s=timeout_s)


def start(layout: Layout, pause: Path) -> Node:
    """Open the namespaces and connect them to the host by a pair of interfaces."""
    shutil.copy(pause, layout.holder)
    for folder in FIXED_FOLDERS:
        folder.mkdir(parents=True, exist_ok=True)
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with (layout.state / "node.log").open("wb") as log:
        # Not waited for: it ends with the node, which outlives this program when a person asked.
        holder = subprocess.Popen(
            [*unshare, "--propagation=private", "sh", "-c", _BECOME_NODE, str(layout.holder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    wait(lambda: bool(_holders(layout)) or holder.poll() is not None, "the namespaces to open")
    pids = _holders(layout)
    if not pids:
        text = (layout.state / "node.log").read_text().strip()
        raise ClusterError(f"the kernel refused the node's namespaces: {text}")
    make_cgroups(layout.id)
    node = Node(layout, pids[0], holder)
    _connect(node)
    return node


def find(layout: Layout) -> Node | None:
    """Return the running node of this layout, if there is one."""
    pids = _holders(layout)
    return Node(layout, pids[0]) if pids else None


def destroy(layout: Layout) -> None:
    """End every process of the node and remove what the kernel does not remove by itself."""
    for pid in _holders(layout):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    # The first process of a PID namespace is gone only when all the others are.
    wait(lambda: not _holders(layout), "the node's processes to end")
    wait(lambda: _remove_cgroups(layout), "the pods' cgroups to empty")
    wait(lambda: not Path(f"/sys/class/net/{layout.id}").exists(), "the node's interface to go")
    if not _any_node():  # removing a folder would take away what another node has mounted on it
        for folder in FIXED_FOLDERS:
            with suppress(OSError):  # it was there before, and is not empty
                folder.rmdir()
    shutil.rmtree(layout.state)


def make_cgroups(path: str) -> None:
    """Make the cgroup of this path in every hierarchy; in version 2 with all controllers."""
    if _hierarchies() == [CGROUPS]:
        above = CGROUPS / Path(path).parent
        wanted = (above / "cgroup.controllers").read_text().split()
        (above / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))
    for root in _hierarchies():
        (root / path).mkdir(exist_ok=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a component that was started on the node.

    `process` is nsenter: the component is its child, and the first process of a namespace does
    not wait for it once its parent has gone.
    """
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for pid in children.read_text().split() if children.exists() else ():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGTERM)
    process.wait(timeout=PATIENCE_S)


def free_slot(limit: int = 64) -> int:
    """Return the lowest slot whose addresses no route of this machine leads to."""
    routes = run("ip", "-4", "route", "show", "table", "all")
    for slot in range(limit):
        if Layout(Path("/"), slot).pods not in routes:
            return slot
    raise ClusterError("all addresses for clusters are taken: see `ip route`")


def run(*command: str, timeout_s: float = 60) -> str:
    """Run `command` on the host and return its output; fail with its error output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout


def wait(condition: Callable[[], bool], what: str, within_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"waited {within_s:.0f} s for {what}")
        time.sleep(0.05)


def _connect(node: Node) -> None:
    """Give the node a bridge for its pods, and the host a way to pods and services."""
    layout = node.layout
    node.run("ip", "link", "add", "pods0", "type", "bridge")
    node.run("ip", "addr", "add", f"{layout.gateway}/24", "dev", "pods0")
    node.run("ip", "link", "set", "pods0", "up")
    veth = ("ip", "link", "add", layout.id, "type", "veth", "peer", "name", "host0")
    run(*veth, "netns", str(node.pid))
    run("ip", "addr", "add", f"{layout.outer_end}/30", "dev", layout.id)
    run("ip", "link", "set", layout.id, "up")
    node.run("ip", "addr", "add", f"{layout.inner_end}/30", "dev", "host0")
    node.run("ip", "link", "set", "host0", "up")
    # kube-proxy and the API server want a default route; the host forwards nothing for it.
    node.run("ip", "route", "add", "default", "via", layout.outer_end)
    for network in (layout.pods, layout.services):
        run("ip", "route", "add", network, "via", layout.inner_end)


def _holders(layout: Layout) -> list[int]:
    """Return the processes that run from this layout's own path."""
    want = str(layout.holder).encode()
    return [pid for pid in map(int, _numeric("/proc")) if _command(pid) == [want]]


def _any_node() -> bool:
    """Tell whether any cluster of this kind runs on the machine."""
    commands = (_command(int(pid)) for pid in _numeric("/proc"))
    return any(len(words) == 1 and words[0].endswith(b"/weir-node") for words in commands)


def _numeric(directory: str) -> list[str]:
    return [name for name in os.listdir(directory) if name.isdecimal()]


def _command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def _hierarchies() -> list[Path]:
    """Return the roots of the cgroup hierarchies: one in version 2, one per controller in 1."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if (path / "cgroup.procs").exists()]


def _remove_cgroups(layout: Layout) -> bool:
    """Remove the pods' cgroups, children first, and tell whether none is left."""
    left = False
    for root in _hierarchies():
        for folder, _, _ in os.walk(root / layout.id, topdown=False):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                continue
            except OSError:  # busy: a process in it is still ending
                left = True
    return not left
