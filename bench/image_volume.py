"""`python -m bench.image_volume`: how long a start waits for a model in an image (`oci://`).

A real kubelet and a real containerd pull the image from a registry on the loopback, unpack it and
mount it into a pod; how long a network would take comes on top of the first pod. It needs what
`make e2e` needs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from e2e import hosted, registry
from e2e.cluster import build, cluster, node
from e2e.cluster.layout import FIRST
from e2e.kube import Kubectl

MIB = 2**20
NAMESPACE = "default"
MODEL = "/model"
WEIGHTS = "model.safetensors"
PATIENCE_S = 600


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--mib", type=int, default=1024, help="size of the model")
    given = options.parse_args()
    os.environ.setdefault(build.ASKED_FOR, max(build.OWN_CONTAINERD))
    running = cluster.up("bench", owner=os.getpid())
    try:
        kubectl = Kubectl(running.bin_dir / "kubectl", running.kubeconfig)
        for what in ("a pod without a model, the first of the node", "the same, a later one"):
            print(f"{what}: {ready_in_s(kubectl, None):.1f} s", flush=True)
        for packed in ((), ("--gzip",)):
            measure(running, kubectl, given.mib, packed)
    finally:
        running.down()


def measure(running: cluster.Cluster, kubectl: Kubectl, mib: int, packed: tuple[str, ...]) -> None:
    """Print what an image of so many MiB takes that is in no cache, and then is."""
    machine = node.find(running.layout)
    assert machine is not None
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory, "gzip" if packed else "plain")
        folder.mkdir()
        weights = like_weights()
        with Path(folder, WEIGHTS).open("wb") as written:
            for _ in range(mib):
                written.write(weights)
        kept = running.layout.state / FIRST.name / "containerd"
        before = on_disk_mib(kept)
        with registry.running(machine, folder, *packed) as image:
            for what in ("the first pod", "a later one"):
                took = ready_in_s(kubectl, image)
                print(f"{mib} MiB, {folder.name}, {what}: {took:.1f} s", flush=True)
        print(f"the same, on the node's disk: {on_disk_mib(kept) - before} MiB", flush=True)


def like_weights() -> bytes:
    """Return a MiB that compresses as weights in bfloat16 do; no two calls return the same."""
    drawn = np.random.default_rng().normal(0, 0.02, MIB // 2).astype(np.float32)
    return (drawn.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def ready_in_s(kubectl: Kubectl, image: str | None) -> float:
    """Return how long a pod takes from its creation until it is ready; delete it again."""
    pod = hosted.pod("reader", NAMESPACE, ["sleep", "3600"])
    if image is not None:
        (container,) = pod["spec"]["containers"]
        container["command"] = ["sh", "-c", f"test -s {MODEL}/{WEIGHTS} && exec sleep 3600"]
        container["volumeMounts"].append({"name": "model", "mountPath": MODEL})
        volume = {"reference": image, "pullPolicy": "IfNotPresent"}  # as the operator renders it
        pod["spec"]["volumes"].append({"name": "model", "image": volume})
    started = time.monotonic()
    kubectl.apply(pod)
    wait = ("wait", "--for=condition=Ready", "pod/reader", f"--timeout={PATIENCE_S}s")
    kubectl(*wait, timeout_s=PATIENCE_S + 10)
    took = time.monotonic() - started
    kubectl("delete", "pod/reader", "--now")
    return took


def on_disk_mib(folder: Path) -> int:
    return int(node.run("du", "--summarize", "--block-size=1M", str(folder)).split()[0])


if __name__ == "__main__":
    main()
