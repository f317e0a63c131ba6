"""A short run of the fuzz (`python -m bench.fuzz`): nothing fails, nothing is left behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bench.fuzz.batch import Batch
from weir_sidecar.outcomes import Outcome

BATCHES = 24
RARE = {Outcome.INTERNAL_ERROR, Outcome.CUT}
"""Outcomes that so few batches need not bring."""


def test_nothing_that_clients_and_engines_do_fails_or_is_left_behind(run_dir: Path) -> None:
    outcomes = Counter[str]()
    inputs = 0
    for number in range(BATCHES):
        batch = Batch(seed=12, number=number)
        batch.run(run_dir)
        assert batch.faults == [], f"python -m bench.fuzz --seed 12 --batch {number}"
        inputs += batch.inputs
        outcomes.update(batch.outcomes)
    assert inputs > 3000
    assert {outcome.value for outcome in set(Outcome) - RARE} <= set(outcomes)
