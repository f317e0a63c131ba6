"""The commands of the runbook and of the conditions' page, as an on-call person types them.

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
NOT_HERE = ("kubectl top", "weir explain")
"""One asks a metrics-server, which the tests' cluster does not have; the other exits with 1 when
something is wrong, as with a mock."""


def blocks() -> list[Any]:
    """Return what the two pages have their readers type."""
    return [
        pytest.param(text, id=f"{page.stem}: {text.splitlines()[0][:60]}")
        for page in (CHECKOUT / "docs/runbook.md", CHECKOUT / "docs/conditions.md")
        for text in BLOCK.findall(page.read_text())
        if not any(each in text for each in NOT_HERE)
    ]


@pytest.fixture
def shell(mocked: Service, tmp_path: Path) -> dict[str, str]:
    """A shell's environment with kubectl."""
    kubectl = mocked.target.kubectl
    (tmp_path / "kubectl").symlink_to(kubectl.program)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "KUBECONFIG": str(kubectl.kubeconfig)}


@pytest.mark.parametrize("block", blocks())
def test_a_block_of_commands_is_taken(
    mocked: Service, shell: dict[str, str], tmp_path: Path, block: str
) -> None:
    (pod,) = mocked.pods()
    words = {"NAMESPACE": NAMESPACE, "NAME": mocked.name, "POD": pod["metadata"]["name"]}
    script = re.sub(rf"\b({'|'.join(words)})\b", lambda found: words[found[1]], block)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path, env=shell, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
