"""What passes between sidecar and engine as files."""

from __future__ import annotations

import json
from pathlib import Path

from weir_core.wire.steps import Facts, Step
from weir_sidecar.engine_link import StepFile, read_facts, send_mode


def test_steps_are_kept_as_json_lines_up_to_a_size(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    step = Step(seq=1, duration_s=0.01, prefill_tokens=5, started=("a",))
    kept = StepFile(path, limit_bytes=500)
    for _ in range(20):
        kept.write(step)
    kept.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert 1 <= len(lines) < 20
    assert (lines[0]["seq"], lines[0]["prefill_tokens"]) == (1, 5)
    assert path.stat().st_size <= 500


def test_facts_that_are_missing_or_broken_are_none(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    assert read_facts(path) is None
    path.write_bytes(b"{")
    assert read_facts(path) is None
    facts = Facts("weir", 8, 2048, 1000)
    path.write_bytes(facts.encode())
    assert read_facts(path) == facts


def test_a_mode_for_which_nobody_listens_is_not_sent(tmp_path: Path) -> None:
    assert not send_mode(tmp_path / "mode.sock", b"{}")
