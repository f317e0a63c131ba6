"""vLLM flags a spec may not set, because Weir's contract depends on them.

The engine is reachable only through its sidecar, over a Unix socket; a flag that opens a TCP
port, moves the socket, renames the model or replaces the scheduler would break that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

FORBIDDEN: Final[dict[str, str]] = {
    "--host": "the engine listens only on its sidecar's socket",
    "--port": "the engine listens only on its sidecar's socket",
    "-p": "the engine listens only on its sidecar's socket",
    "--uds": "Weir chooses the engine's socket",
    "--model": "set spec.model.source.uri",
    "--config": "flags in a file could not be checked; list them in spec.engine.args",
    "--served-model-name": "set spec.model.name and spec.model.aliases",
    "--api-key": "the sidecar authenticates; only it reaches the engine",
    "--root-path": "the sidecar relays paths as they are",
    "--ssl-keyfile": "the engine speaks plain HTTP on a Unix socket",
    "--ssl-certfile": "the engine speaks plain HTTP on a Unix socket",
    "--ssl-ca-certs": "the engine speaks plain HTTP on a Unix socket",
    "--headless": "an engine without an API server cannot be reached",
    "--api-server-count": "one API server per engine, so that in-flight counts are exact",
    "--asc": "one API server per engine, so that in-flight counts are exact",
    "--grpc": "the sidecar speaks HTTP to the engine",
    "--scheduler-cls": "set spec.engine.scheduling",
    "--scheduling-policy": "set spec.engine.scheduling",
    "--tensor-parallel-size": "set spec.engine.parallelism.tensor",
    "-tp": "set spec.engine.parallelism.tensor",
    "--pipeline-parallel-size": "set spec.engine.parallelism.pipeline",
    "-pp": "set spec.engine.parallelism.pipeline",
    "--data-parallel-size": "set spec.engine.parallelism.data",
    "-dp": "set spec.engine.parallelism.data",
    "--otlp-traces-endpoint": "set spec.tracing.endpoint",
}


def forbidden_flag(args: Sequence[str]) -> tuple[int, str, str] | None:
    """Return (index, flag, why) of the first argument that Weir must refuse, or None.

    vLLM reads `--flag value`, `--flag=value`, underscores for dashes (`--api_key`) and dotted
    sub-fields (`--flag.field`); all of them count. So do unambiguous prefixes, which argparse
    expands.
    """
    for index, argument in enumerate(args):
        if not argument.startswith("-"):
            continue
        flag = argument.split("=", 1)[0].split(".", 1)[0].replace("_", "-")
        hit = flag if flag in FORBIDDEN else _expanded(flag)
        if hit is not None:
            return index, hit, FORBIDDEN[hit]
    return None


def _expanded(flag: str) -> str | None:
    """Return the forbidden long flag that `flag` abbreviates, or None.

    Four letters and more, so that a short and common word is not taken for a prefix.
    """
    if not flag.startswith("--") or len(flag) < 6:
        return None
    return next((known for known in FORBIDDEN if known.startswith(flag)), None)
