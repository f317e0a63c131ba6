"""The model of vLLM's step loop, and the KV cache below it."""

from __future__ import annotations

import random

import pytest

from weir_core.sched.types import EngineKind
from weir_core.step.mode import Mode
from weir_sim.engine_model import EngineModel, Job
from weir_sim.kv import KvCache
from weir_sim.profiles import PROFILES, EngineProfile
from weir_sim.weir_engine_model import make_engine_model


def profile(slots: int = 8, budget: int = 100, blocks: int = 1000) -> EngineProfile:
    return EngineProfile(
        name="test",
        base_s=0.001,
        weights_s=0.0,
        token_s=0.001,
        sequence_s=0.0,
        prefill_context_s=0.0,
        decode_context_s=0.0,
        max_num_seqs=slots,
        max_num_batched_tokens=budget,
        kv_blocks=blocks,
        block_tokens=16,
        source="made up",
    )


def job(name: str, prompt: int = 10, output: int = 3, rank: int = 0, arrival_s: float = 0.0) -> Job:
    return Job(name, rank, arrival_s, prompt, output)


def step(engine: EngineModel) -> tuple[list[str], list[str]]:
    """Run one step; return who got a first token and who finished."""
    assert engine.begin() is not None
    result = engine.end()
    return [j.request_id for j in result.first_tokens], [j.request_id for j in result.finished]


def test_a_prompt_is_computed_in_chunks_of_the_budget() -> None:
    engine = make_engine_model(profile(budget=100), EngineKind.FCFS)
    engine.add(job("a", prompt=250))
    assert [step(engine)[0] for _ in range(3)] == [[], [], ["a"]]


def test_a_request_ends_with_its_last_token() -> None:
    engine = make_engine_model(profile(), EngineKind.FCFS)
    engine.add(job("a", output=3))
    assert [step(engine) for _ in range(3)] == [(["a"], []), ([], []), ([], ["a"])]
    assert engine.begin() is None


def test_a_single_token_ends_with_the_prefill() -> None:
    engine = make_engine_model(profile(), EngineKind.FCFS)
    engine.add(job("a", output=1))
    assert step(engine) == (["a"], ["a"])


def test_a_step_takes_what_its_tokens_take() -> None:
    engine = make_engine_model(profile(), EngineKind.FCFS)
    engine.add(job("a", prompt=50))
    assert engine.begin() == pytest.approx(0.001 + 0.050)
    engine.end()
    assert engine.begin() == pytest.approx(0.001 + 0.001)


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        pytest.param(EngineKind.FCFS, "low", id="fcfs: who came first"),
        pytest.param(EngineKind.PRIORITY, "low", id="stock priority: who began first"),
        pytest.param(EngineKind.WEIR, "high", id="weir: who matters more"),
    ],
)
def test_who_goes_on_when_a_prefill_has_begun(kind: EngineKind, want: str) -> None:
    engine = make_engine_model(profile(budget=100), kind)
    engine.add(job("low", prompt=150, rank=0, arrival_s=0.0))
    step(engine)
    engine.add(job("high", prompt=100, rank=1, arrival_s=1.0))
    assert step(engine)[0] == [want]


def test_stock_priority_orders_its_queue_by_rank() -> None:
    engine = make_engine_model(profile(slots=1), EngineKind.PRIORITY)
    engine.add(job("low", rank=0))
    engine.add(job("high", rank=1, arrival_s=5.0))
    assert step(engine)[0] == ["high"]


def test_weir_takes_a_slot_from_a_lower_rank_and_gives_it_back() -> None:
    engine = make_engine_model(profile(slots=1), EngineKind.WEIR)
    engine.add(job("low", output=5))
    step(engine)
    engine.add(job("high", rank=1, output=1))
    assert step(engine) == (["high"], ["high"])
    assert engine.counts.recomputed_tokens > 0
    ended = [step(engine)[1] for _ in range(4)]
    assert ended == [[], [], [], ["low"]]


def test_weir_lets_a_lower_prompt_keep_what_it_has_computed() -> None:
    engine = make_engine_model(profile(budget=100), EngineKind.WEIR)
    low = job("low", prompt=150, rank=0)
    engine.add(low)
    step(engine)
    engine.add(job("high", prompt=200, rank=1))
    assert step(engine)[0] == []
    assert low.computed == 100
    assert step(engine)[0] == ["high"]
    assert step(engine)[0] == ["low"]
    assert engine.counts.preemptions == engine.counts.recomputed_tokens == 0


def test_weir_takes_no_slot_from_an_equal() -> None:
    engine = make_engine_model(profile(slots=1), EngineKind.WEIR)
    engine.add(job("first", output=5))
    step(engine)
    engine.add(job("second", output=1))
    assert [step(engine)[1] for _ in range(4)] == [[], [], [], ["first"]]
    assert engine.counts.preemptions == 0


def test_weir_preempts_nobody_in_vain() -> None:
    engine = make_engine_model(profile(blocks=20), EngineKind.WEIR)
    engine.add(job("low", prompt=60, output=5, rank=0))
    engine.add(job("equal", prompt=150, output=5, rank=1))
    for _ in range(3):
        step(engine)
    # Even all that the lower one holds would not be enough.
    engine.add(job("high", prompt=200, output=1, rank=1))
    ended = [step(engine)[1] for _ in range(3)]
    assert ["high"] not in ended
    assert engine.counts.preemptions == 0


def test_of_one_rank_weir_serves_first_whose_answer_is_due_first() -> None:
    engine = make_engine_model(profile(slots=1), EngineKind.WEIR)
    for name, due_s in (("later", 9.0), ("sooner", 2.0)):
        one = job(name, output=1)
        one.due_s = due_s
        engine.add(one)
    assert step(engine)[0] == ["sooner"]


def test_weir_gives_every_token_to_prefills_in_mode_throughput() -> None:
    engine = make_engine_model(profile(budget=1000), EngineKind.WEIR, Mode("throughput"))
    engine.add(job("chat", output=200))
    step(engine)
    engine.add(job("book", prompt=5000))
    engine.begin()
    assert engine.end().record.prefill_tokens == 999


def test_weir_divides_steps_by_shares_in_mode_custom() -> None:
    mode = Mode("custom", tpot_s={}, shares={100: 0.5, 0: 0.3, -100: 0.2})
    engine = make_engine_model(profile(budget=1000, blocks=10_000), EngineKind.WEIR, mode)
    ranks = (100, 0, -100)
    jobs = [job(f"{rank}/{n}", prompt=3000, rank=rank) for rank in ranks for n in range(8)]
    for one in jobs:
        engine.add(one)
    for _ in range(20):
        assert engine.begin() is not None
        engine.end()
    got = {rank: sum(min(one.target, one.computed) for one in jobs if one.rank == rank)
           for rank in ranks}  # fmt: skip
    parts = [got[rank] / sum(got.values()) for rank in ranks]
    assert parts == pytest.approx([0.5, 0.3, 0.2], abs=0.02)


def test_a_class_without_prompts_lends_its_share() -> None:
    mode = Mode("custom", tpot_s={}, shares={100: 0.5, 0: 0.3, -100: 0.2})
    engine = make_engine_model(profile(budget=1000), EngineKind.WEIR, mode)
    engine.add(job("alone", prompt=5000, rank=-100))
    engine.begin()
    assert engine.end().record.prefill_tokens == 1000


def test_weir_leaves_the_decodes_what_their_target_needs() -> None:
    mode = Mode(tpot_s={0: 0.2})
    engine = make_engine_model(profile(budget=1000), EngineKind.WEIR, mode)
    for serial in range(40):  # from which it learns how long steps take
        engine.add(job(f"r{serial}", prompt=20 + 15 * serial))
        while engine.begin() is not None:
            engine.end()
    engine.add(job("chat", output=200))
    step(engine)
    engine.add(job("book", prompt=5000))
    for _ in range(10):
        duration_s = engine.begin()
        assert duration_s is not None
        assert 0.05 < duration_s <= 0.2
        engine.end()


def test_a_full_cache_preempts_and_recomputes_but_loses_nobody() -> None:
    engine = make_engine_model(profile(slots=8, blocks=12), EngineKind.FCFS)
    for serial in range(6):
        engine.add(job(f"r{serial}", prompt=30, output=40))
    ended: list[str] = []
    while engine.begin() is not None:
        ended += [j.request_id for j in engine.end().finished]
    assert sorted(ended) == [f"r{serial}" for serial in range(6)]
    assert engine.counts.preemptions > 0
    assert engine.kv.held == 0


KINDS = [
    *((kind, Mode()) for kind in EngineKind),
    (EngineKind.WEIR, Mode("custom", shares={2: 0.5, 1: 0.3, 0: 0.2})),
]


@pytest.mark.parametrize(("kind", "mode"), KINDS, ids=lambda one: getattr(one, "kind", None))
@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_conserved_whatever_happens(kind: EngineKind, mode: Mode, seed: int) -> None:
    rng = random.Random(seed)
    engine = make_engine_model(profile(slots=6, budget=64, blocks=60), kind, mode)
    jobs: list[Job] = []
    ended: set[str] = set()
    for serial in range(200):
        if serial < 150 and rng.random() < 0.5:
            new = job(f"r{serial}", rng.randint(1, 200), rng.randint(1, 60), rng.randint(0, 2))
            new.arrival_s = float(serial)
            jobs.append(new)
            engine.add(new)
        if engine.begin() is None:
            continue
        if jobs and rng.random() < 0.1:
            gone = rng.choice(jobs)
            engine.cancel(gone)
            ended.add(gone.request_id)
        result = engine.end()
        assert 0 <= engine.kv.held <= 60
        ended |= {j.request_id for j in result.finished}
    while engine.begin() is not None:
        ended |= {j.request_id for j in engine.end().finished}
    assert ended == {j.request_id for j in jobs}
    assert engine.kv.held == 0
    assert engine.running == engine.waiting == 0


def test_a_shared_prefix_is_computed_once() -> None:
    engine = make_engine_model(profile(budget=4096), EngineKind.FCFS)
    first, second = job("first", prompt=1100), job("second", prompt=1100)
    first.hash_ids = second.hash_ids = (1, 2)
    engine.add(first)
    assert engine.begin() == pytest.approx(0.001 + 1.100)
    engine.end()
    engine.add(second)
    assert engine.begin() == pytest.approx(0.001 + 0.001 + 0.076)
    assert engine.counts.cached_tokens == 1024


def test_cached_blocks_give_way_the_least_recently_used_first() -> None:
    cache = KvCache(blocks=64, block_tokens=16)
    assert cache.admit((1,), 0)
    cache.release((1,), 0)
    assert cache.admit((2,), 0)
    cache.release((2,), 0)
    assert cache.cached_tokens((1,), 600) == 512
    assert cache.admit((3,), 0)
    assert cache.cached_tokens((1,), 600) == 0
    assert cache.cached_tokens((2,), 600) == 512


def test_blocks_in_use_are_not_given_away() -> None:
    cache = KvCache(blocks=40, block_tokens=16)
    assert cache.admit((1,), 4)
    assert not cache.admit((2,), 0)
    assert not cache.grow(5)
    assert cache.grow(4)


def test_the_last_token_of_a_cached_prompt_is_computed() -> None:
    cache = KvCache(blocks=64, block_tokens=16)
    cache.admit((1,), 0)
    assert cache.cached_tokens((1,), 512) == 511


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_profile_says_where_it_comes_from(name: str) -> None:
    known = PROFILES[name]
    assert known.source
    assert known.step_s(0, 1, 0, 100) > 0
    assert known.kv_tokens > known.max_num_batched_tokens
