"""What passes between sidecar and engine as files."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from weir_core.sched.types import End
from weir_core.wire.steps import Facts, Step, decode_step
from weir_sidecar.upstreams.engine_link import OneCount, StepFile, read_facts, send_mode


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


def test_facts_that_cannot_be_read_now_are_not_taken_for_none(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.mkdir()
    with pytest.raises(OSError, match=r"engine\.json"):
        read_facts(path)


def test_an_engine_of_an_earlier_version_is_understood() -> None:
    step = decode_step(msgspec.msgpack.encode({"seq": 1, "duration_s": 0.01, "started": ["a"]}))
    assert (step.started, step.prompts, step.ended) == (("a",), (), ())
    numbers = {"max_num_seqs": 8, "max_num_batched_tokens": 2048, "kv_capacity_tokens": 1000}
    facts = Facts.decode(msgspec.json.encode({"kind": "weir"} | numbers))
    assert (facts.block_tokens, facts.prefix_caching, facts.tells_ends) == (0, True, False)


def test_what_an_engine_of_a_later_version_tells_besides_is_left_aside() -> None:
    ended = [["mine", "abort", 100, 64, 7, 36, 1, "and more"]]
    record = {"seq": 1, "duration_s": 0.01, "prompts": [[100, 64]], "later": {"than": "this"}}
    assert decode_step(msgspec.msgpack.encode(record | {"ended": ended})) == Step(
        1, 0.01, prompts=((100, 64),), ended=(End("mine", "abort", 100, 64, 7, 36, 1),)
    )


def test_a_mode_for_which_nobody_listens_is_not_sent(tmp_path: Path) -> None:
    assert not send_mode(tmp_path / "mode.sock", b"{}")


@pytest.mark.parametrize(
    ("ranks_and_counts", "want"),
    [
        pytest.param([(0, 7), (0, 8), (0, 11)], [7, 8, 11], id="one rank keeps its own count"),
        pytest.param([(0, 5), (1, 3), (0, 6), (1, 4)], [5, 6, 7, 8], id="two ranks, none lost"),
        pytest.param([(0, 5), (1, 3), (1, 6), (0, 6)], [5, 6, 9, 10], id="two of the second lost"),
        pytest.param([(0, 5), (0, 6), (0, 1), (0, 2)], [5, 6, 7, 8], id="an engine began anew"),
    ],
)
def test_steps_of_all_ranks_are_counted_in_one_line(
    ranks_and_counts: list[tuple[int, int]], want: list[int]
) -> None:
    count = OneCount()
    steps = [Step(seq, 0.01, engine=rank) for rank, seq in ranks_and_counts]
    assert [count.counted(step).seq for step in steps] == want
