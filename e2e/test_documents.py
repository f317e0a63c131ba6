"""The commands of the pages that an on-call person reads, typed as they are written.

The service is well, and its engine is a MOCK: what is shown is that each command is one that the
cluster takes and answers. That the alerts fire when they should is tests/integration's.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from e2e.hosted import CHECKOUT
from e2e.service import NAMESPACE, Service

BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(kubectl [^`]+)`")
PAGES = tuple(CHECKOUT / f"docs/{name}.md" for name in ("runbook", "conditions", "troubleshooting"))
NOT_HERE = (
    *("kubectl top", "weir explain", "-c engine --previous", "-c CONTAINER"),
    *("cordon NODE", "job/JOB", "itn TENANT", "itn NAME"),
)
"""What asks a metrics-server, which the tests' cluster does not have; exits with 1 when something
is wrong, as with a mock; asks for what a service that is well does not have; or stops the node."""
CHANGES = ("kubectl patch", "kubectl scale")
"""They are asked of the API server, and not done: other scenarios use the service."""


def commands() -> list[Any]:
    """Return what the pages have their readers type: blocks, and commands within sentences."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text()
        for each in (*BLOCK.findall(text), *INLINE.findall(BLOCK.sub("", text))):
            if not any(out in each for out in NOT_HERE):
                found.setdefault(each, f"{page.stem}: {each.splitlines()[0][:60]}")
    return [pytest.param(each, id=name) for each, name in found.items()]


@pytest.fixture
def shell(mocked: Service, tmp_path: Path) -> dict[str, str]:
    """A shell's environment with kubectl."""
    kubectl = mocked.target.kubectl
    (tmp_path / "kubectl").symlink_to(kubectl.program)
    path = f"{tmp_path}:{os.environ['PATH']}"
    own = tmp_path / "kubeconfig"
    own.write_text(kubectl.kubeconfig.read_text())
    shell = {**os.environ, "PATH": path, "KUBECONFIG": str(own), "EDITOR": "cat"}
    subprocess.run(
        ["kubectl", "config", "set-context", "--current", f"--namespace={NAMESPACE}"],
        env=shell, capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    return shell


@pytest.mark.parametrize("command", commands())
def test_a_command_is_taken(
    mocked: Service, shell: dict[str, str], tmp_path: Path, command: str
) -> None:
    (pod,) = mocked.pods()
    words = {
        "NAMESPACE": NAMESPACE, "NAME": mocked.name, "POD": pod["metadata"]["name"],
        "CLASS": "standard", "N": "1", "CONTAINER": "sidecar",
    }  # fmt: skip
    script = re.sub(rf"\b({'|'.join(words)})\b", lambda found: words[found[1]], command)
    if script.startswith(CHANGES):
        script += " --dry-run=server"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path, env=shell, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
