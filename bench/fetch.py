"""`python -m bench.fetch`: how long a replica's fetch takes, by what is in the cache already.

Each fetch is a process of `weir-engine fetch`, as in a pod, from a hub on the loopback; how long a
network would take comes on top of the first one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.unit.engine.local_http import serving
from tests.unit.engine.local_hub import Hub
from weir_core.api.model import Source
from weir_core.wire.engine import EngineConfig

MIB = 2**20


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--mib", type=int, default=1024, help="size of the model")
    options.add_argument("--directory", type=Path, help="where the cache is for the time")
    given = options.parse_args()
    files = {"config.json": b"{}", "model.safetensors": os.urandom(MIB) * given.mib}
    with (
        tempfile.TemporaryDirectory(dir=given.directory) as models,
        serving(Hub({"org/model": files})) as hub,
    ):
        for what, uri, replicas in (
            (f"{given.mib} MiB, the first replica", "hf://org/model@v1", 1),
            ("the same, a later one", "hf://org/model@v1", 1),
            (f"{given.mib} MiB, two at once", "hf://org/model@v2", 2),
            ("tiny://, the first replica", "tiny://", 1),
            ("the same, a later one", "tiny://", 1),
        ):
            print(f"{what}: {fetched_in_s(Path(models), hub, uri, replicas):.1f} s", flush=True)


def fetched_in_s(models: Path, hub: str, uri: str, replicas: int) -> float:
    config = EngineConfig(name="m", source=Source(uri=uri)).model_dump_json()
    environment = {"WEIR_ENGINE_CONFIG": config, "WEIR_MODEL_DIR": str(models), "HF_ENDPOINT": hub}
    command = [sys.executable, "-m", "weir_engine", "fetch"]
    started = time.monotonic()
    running = [
        subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
        for _ in range(replicas)
    ]
    codes = [each.wait() for each in running]
    took = time.monotonic() - started
    if any(codes):
        raise SystemExit(f"{uri}: the fetch ended with code {max(codes)}")
    return took


if __name__ == "__main__":
    main()
