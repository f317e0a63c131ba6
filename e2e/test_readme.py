"""The README's way to a cluster, line by line as a newcomer types it, on the project's images.

`make e2e-images` runs it, and `make e2e` does not: it builds gigabytes of images. Everything is
real but `kind`, in whose place the images are loaded into the tests' own cluster.
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.cluster import build, components, node
from e2e.cluster.layout import FIRST, Layout
from e2e.hosted import CHECKOUT
from e2e.target import Target

README = (CHECKOUT / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
"""What the README has its readers type."""

KIND = """\
#!/bin/bash
# kind load docker-image IMAGE...
set -euo pipefail
[ "$1 $2" = "load docker-image" ]
for image in "${@:3}"; do
  archive="$(mktemp)"
  $BUILDER save --output "$archive" "$image"
  $NODE ctr --address $CONTAINERD --namespace k8s.io images import "$archive"
  rm "$archive"
done
"""


def block(word: str) -> list[str]:
    """Return the lines of the one block that has `word`; a command may have several."""
    (found,) = (text for text in BLOCKS if word in text)
    return [line.replace("\\\n", " ") for line in re.split(r"(?<!\\)\n", found.strip())]


@pytest.fixture
def on_node(target: Target) -> node.Node:
    """The node; its loopback is free, whatever listens on this machine's."""
    machine = node.find(Layout(target.kubectl.kubeconfig.parent))
    assert machine is not None
    return machine


@pytest.fixture
def environment(target: Target, on_node: node.Node, tmp_path: Path) -> dict[str, str]:
    """A shell's environment with the cluster's programs, and `kind`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("kubectl", "helm"):
        (programs / name).symlink_to(build.binaries() / name)
    builder = next(one for one in ("docker", "podman") if _runs(one, "info"))
    words = {"NODE": on_node.enter, "CONTAINERD": [components.containerd_socket(FIRST)]}
    script = KIND.replace("$BUILDER", builder)
    for name, value in words.items():
        script = script.replace(f"${name}", " ".join(value))
    (programs / "kind").write_text(script)
    (programs / "kind").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "KUBECONFIG": str(target.kubectl.kubeconfig)}


def _runs(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


Typed = Callable[[str], str]


@pytest.fixture
def typed(environment: dict[str, str]) -> Typed:
    """Type one line into a shell in the checkout, and return what it says."""

    def run(line: str) -> str:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    return run


@contextmanager
def kept_running(
    line: str, enter: Sequence[str], environment: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Type a line that stays, and end it with the context."""
    with subprocess.Popen(
        [*enter, *line.split()], env=environment, text=True, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


@pytest.mark.timeout(3600)
def test_a_newcomer_gets_an_answer_from_a_cluster_without_a_gpu(
    on_node: node.Node, environment: dict[str, str], typed: Typed
) -> None:
    *lines, forward = block("kubectl")
    (ask,) = block("/v1/chat/completions")
    assert forward.startswith("kubectl port-forward")
    for line in lines:
        typed(line)
    network = ("nsenter", f"--target={on_node.pid}", "--net", "--")
    with kept_running(forward, network, environment) as forwarding:
        assert forwarding.stdout is not None
        assert "Forwarding from 127.0.0.1:8000" in forwarding.stdout.readline()
        answer = typed(f"{' '.join(network)} {ask}")
    assert answer.rstrip().endswith("data: [DONE]")
    assert '"content":' in answer
    images = typed("kubectl get pods --output=jsonpath='{.items[*].spec.containers[*].image}'")
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    assert images == f"localhost/weir-engine-cpu:{version}"
