"""The tests' own cluster leaves nothing on the machine, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster import cluster, node
from e2e.cluster.errors import ClusterError
from e2e.cluster.layout import Layout
from e2e.eventually import eventually
from e2e.kube import Kubectl

NAME = "leaks"
NETNS = Path("/run/netns")
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "sleeper", "namespace": "default"},
    "spec": {
        "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory"}}],
        "containers": [
            {
                "name": "sleeper",
                "image": "localhost/pause:1",
                "volumeMounts": [{"name": "memory", "mountPath": "/memory"}],
            }
        ],
    },
}


@pytest.fixture(scope="module")
def running() -> Iterator[Layout]:
    """A second cluster with a pod in it: mounts, namespaces, interfaces, rules and cgroups.

    Scenarios share it; the one that kills it is the last.
    """
    started = cluster.up(NAME, owner=os.getpid())
    try:
        kubectl = Kubectl(started.bin_dir / "kubectl", started.kubeconfig)
        kubectl.apply(POD)
        kubectl("wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s", timeout_s=70)
        yield started.layout
    finally:
        if started.layout.state.exists():
            started.down()
        for process in started.processes.values():
            process.wait(timeout=30)


def test_after_down_nothing_is_left() -> None:
    before = traces()
    started = cluster.up(NAME, owner=os.getpid())
    assert traces() != before, "the cluster leaves traces while it runs"
    started.down()
    assert_same(before)


def test_a_cluster_that_another_test_run_uses_is_left_alone(running: Layout) -> None:
    words = ["sh", "-c", "read line", "pytest"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as other:

        def started() -> None:  # the kernel shows the words a moment after the start
            assert b"pytest" in Path(f"/proc/{other.pid}/cmdline").read_bytes()

        eventually(started)
        (running.state / "cluster.json").write_text(f'{{"slot": 0, "owner": {other.pid}}}')
        with pytest.raises(ClusterError, match=str(other.pid)):
            cluster.remove_leftover(NAME)
        other.terminate()
    assert node.find(running) is not None


def test_a_cluster_whose_first_process_was_killed_is_removed_by_the_next_start(
    running: Layout,
) -> None:
    found = node.find(running)
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)

    def ended() -> None:
        assert processes_of(running) == []

    eventually(ended)
    cluster.remove_leftover(NAME)
    assert not running.state.exists()
    assert [trace for trace in traces() if running.id in trace] == []


def traces() -> list[str]:
    """Return what a cluster could leave in the kernel: each trace as a line."""
    lines = [f"interface {name}" for name in os.listdir("/sys/class/net")]
    lines += [f"namespace {name}" for name in os.listdir("/run/netns")] if NETNS.exists() else []
    lines += [f"route {line}" for line in node.run("ip", "route").splitlines()]
    rules = node.run("iptables-save").splitlines()
    lines += [f"rule {line}" for line in rules if line.startswith("-")]
    lines += [f"mount {line}" for line in Path("/proc/self/mounts").read_text().splitlines()]
    lines += [f"cgroup {path}" for path in node.CGROUPS.glob("*/weir*")]
    lines += [f"cgroup {path}" for path in node.CGROUPS.glob("weir*")]
    lines += [f"folder {path}" for path in node.FIXED_FOLDERS if path.exists()]
    return sorted(lines)


def assert_same(before: list[str]) -> None:
    """Fail with what has appeared since `before`."""
    assert [trace for trace in traces() if trace not in before] == []


def processes_of(layout: Layout) -> list[str]:
    """Return the command lines that mention the cluster's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if str(layout.state).encode() in words:
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found
