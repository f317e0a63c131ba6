"""The API server is away for longer than the operator's Lease lasts: models are served on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.eventually import throughout
from e2e.installation import Installation
from e2e.kube import Kubectl
from e2e.service import MODEL, Service
from e2e.traffic import chatting

OUTAGE_S = 20.0
"""The Lease lasts 15 s."""


def test_an_outage_of_the_api_server_fails_no_request_and_is_made_good(
    weir: Installation, mocked: Service, empty_service: Service
) -> None:
    with chatting(mocked.url(), MODEL) as traffic:
        with outage(weir.target.kubectl):
            throughout(lambda: None, for_s=OUTAGE_S)
        weir.ready()
        weir.acts_on(empty_service)
        mocked.wait_ready(replicas=1)
    assert traffic.answered > 0
    assert traffic.failures == []


@contextmanager
def outage(kubectl: Kubectl) -> Iterator[None]:
    """Let the API server neither answer nor hang up for the length of the context."""
    (server,) = _api_servers(kubectl.kubeconfig.parent)
    os.kill(server, signal.SIGSTOP)
    try:
        yield
    finally:
        # nsenter, which runs the server inside the node, stops with it and must go on, too.
        for process in (server, _parent(server)):
            os.kill(process, signal.SIGCONT)


def _parent(process: int) -> int:
    """Return the process that started another one."""
    _, _, rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")
    return int(rest.split()[1])


def _api_servers(state: Path) -> list[int]:
    """Return the API server of the cluster that keeps its state there."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            program, _, arguments = (entry / "cmdline").read_bytes().partition(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if program.endswith(b"/kube-apiserver") and str(state).encode() in arguments:
            found.append(int(entry.name))
    return found
