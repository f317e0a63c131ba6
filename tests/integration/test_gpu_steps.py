"""The script that measures steps on a GPU, here on the CPU with a tiny shape."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from weir_core.wire.steps import Facts
from weir_sim.calibrate import calibrate, read_steps

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    *("--device=cpu", "--seconds=0", "--layers=1", "--hidden=64", "--heads=4", "--kv-heads=2"),
    *("--inner=128", "--vocabulary=256", "--kv-tokens=4096", "--most-chunk=256"),
)


def test_a_profile_is_calibrated_by_what_the_script_for_gpus_writes(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    command = [sys.executable, str(ROOT / "bench/gpu/steps.py"), f"--out={path}", *TINY]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=alone
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"weir simulate calibrate {path}" in done.stdout
    steps = read_steps(path)
    assert all(step.prefill_tokens + step.decodes > 0 for step in steps)
    assert any(step.prefill_tokens and step.decodes for step in steps)
    found = calibrate(steps, "tiny", Facts("fcfs", 256, 2048, 4096), 16)
    assert found.steps == len(steps)
    assert found.profile.step_s(256, 0, 256 * 128, 0) > 0
