"""`weir-engine drain`: the engine's preStop hook. Standard library only: it must start at once.

It asks the sidecar to finish the pod's streams and waits for them, so that Kubernetes sends the
engine its SIGTERM only when nobody needs it any more. Whatever happens it ends with success: a
failed hook would make the kubelet log an event and stop the engine just the same.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from http.client import HTTPException
from typing import Final

from weir_core.api.labels import ENV_GRACE_PERIOD_S
from weir_engine.sidecar import SidecarConnection

DEFAULT_GRACE_PERIOD_S: Final = 600.0
"""Longest wait where the environment does not say; the kubelet's own limit usually ends sooner."""


def drain(environment: Mapping[str, str]) -> None:
    """Have the sidecar finish every stream; return when it has, or when it cannot."""
    connection = SidecarConnection(environment, _grace_period_s(environment))
    try:
        connection.request("POST", "/drain")
        answer = connection.getresponse()
        answer.read()
        _say("drained" if answer.status == 200 else f"the sidecar answered {answer.status}")
    except TimeoutError:
        _say("streams were still running when the grace period was over")
    except (OSError, HTTPException) as error:
        _say(f"no sidecar at {connection.path} ({error}); nothing to wait for")
    finally:
        connection.close()


def _grace_period_s(environment: Mapping[str, str]) -> float:
    try:
        return max(1.0, float(environment[ENV_GRACE_PERIOD_S]))
    except (KeyError, ValueError):
        return DEFAULT_GRACE_PERIOD_S


def _say(message: str) -> None:
    sys.stderr.write(f"weir-engine drain: {message}\n")
