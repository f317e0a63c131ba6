"""A short run of the fuzz (`python -m bench.fuzz`): nothing fails, nothing is left behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench.fuzz.batch import Batch
from weir_sidecar.outcomes import Outcome

RARE = {Outcome.INTERNAL_ERROR, Outcome.CUT}
"""Outcomes that so few batches need not bring."""


@pytest.mark.parametrize(
    ("kind", "batches", "least_inputs"),
    [pytest.param("sidecar", 24, 3000, id="sidecar"), pytest.param("fleet", 5, 1500, id="fleet")],
)
def test_nothing_that_clients_and_engines_do_fails_or_is_left_behind(
    kind: str, batches: int, least_inputs: int, run_dir: Path
) -> None:
    outcomes = Counter[str]()
    inputs = 0
    for number in range(batches):
        batch = Batch(seed=12, number=number, kind=kind)
        batch.run(run_dir)
        assert batch.faults == [], f"python -m bench.fuzz --seed 12 --batch {number} --kind {kind}"
        inputs += batch.inputs
        outcomes.update(batch.outcomes)
    assert inputs > least_inputs
    assert {outcome.value for outcome in set(Outcome) - RARE} <= set(outcomes)


@pytest.mark.parametrize("kind", ["sidecar", "fleet"])
def test_a_batch_repeats_itself(kind: str, run_dir: Path) -> None:
    batches = [Batch(seed=3, number=1, only=range(0, 290, 3), kind=kind) for _ in range(2)]
    for batch in batches:
        batch.run(run_dir)
    assert batches[0].inputs == batches[1].inputs
    assert batches[0].outcomes == batches[1].outcomes
