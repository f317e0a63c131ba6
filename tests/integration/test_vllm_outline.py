"""What Weir builds on in the installed vLLM, written down by version.

`tests/unit/engine/test_vllm_versions.py` reads all versions that are written down; this test keeps
the installed one true. `UPDATE_GOLDEN=1` writes it anew, under `make integration` for the CPU build
and under `make integration-gpu-lock` for the version in the lock for GPUs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from weir_engine.scheduling import contract
from weir_engine.vllm_metadata import with_path, write_vllm_metadata

GOLDEN = Path(__file__).resolve().parents[1] / "golden/vllm"

SCRIPT = """
import inspect, json, sys
try:
    from vllm.entrypoints.common.cli_args import make_arg_parser
except ImportError:  # before 0.33
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm import envs
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.version import __version__

parser = make_arg_parser(FlexibleArgumentParser())
flags = {}
for spelling, action in parser._option_string_actions.items():
    flags.setdefault(action.dest, []).append(spelling)
methods = {
    name: list(inspect.signature(getattr(AsyncScheduler, name)).parameters)[1:]
    for name in json.load(sys.stdin) if hasattr(AsyncScheduler, name)
}
print(json.dumps({
    "version": __version__,
    "methods": methods,
    "flags": sorted(sorted(spellings) for spellings in flags.values()),
    "environment": sorted(envs.environment_variables),
}))
"""


def test_what_is_written_down_of_this_vllm_is_so(tmp_path: Path) -> None:
    root = write_vllm_metadata(tmp_path)
    wanted = [*contract.LOG_METHODS, *contract.ORDER_METHODS]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=with_path(dict(os.environ), root), cwd=tmp_path, input=json.dumps(wanted),
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    golden = GOLDEN / f"{found['version']}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        lines = [f" {json.dumps(key)}: {_lines(value)}" for key, value in found.items()]
        golden.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    assert found == json.loads(golden.read_text())


def _lines(value: object) -> str:
    """Return a list as a line an item, so that a difference shows what changed."""
    if not isinstance(value, list):
        return json.dumps(value)
    return "[\n" + ",\n".join(f"  {json.dumps(item)}" for item in value) + "\n ]"
