"""For whom room is made, step by step over an outline of vLLM's scheduler."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.engine.vllm_outline import PauseState, Status, WeirScheduler, request
from weir_engine.scheduling.room import LOOKED_AT

INTERACTIVE, STANDARD, BATCH = 100, 0, -100


class Ordered(WeirScheduler):
    """The scheduler, and short words for requests."""

    def add(self, name: str, rank: int, prompt: int = 50, adapter: int = 0) -> Any:
        """Add a request, and return it."""
        one = request(name, rank, prompt, output=50, due_s=len(self.requests))
        one.lora_request = SimpleNamespace(lora_int_id=adapter) if adapter else None
        self.add_request(one)
        return one

    def add_structured(self, name: str, rank: int, grammar: Any) -> None:
        """Add a request whose answer has a grammar, which is None while it is compiled."""
        one = self.add(name, rank)
        one.status = Status.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        one.structured_output_request = SimpleNamespace(grammar=grammar)


def full(**arguments: int) -> Ordered:
    """Return an engine whose one slot a batch request holds."""
    engine = Ordered(slots=1, **arguments)
    engine.add("low", BATCH)
    engine.step()
    return engine


def preempted(engine: Ordered) -> list[str]:
    return [name for name, one in engine.requests.items() if one.status is Status.PREEMPTED]


def test_room_is_made_for_a_request_whose_grammar_is_there() -> None:
    engine = full()
    engine.add_structured("high", INTERACTIVE, grammar=object())
    assert engine.step() == {"high": 50}


@pytest.mark.parametrize("grammar", [None, ValueError("no such grammar")])
def test_who_waits_for_a_grammar_stands_in_nobodys_way(grammar: Any) -> None:
    engine = full()
    engine.add_structured("pending", INTERACTIVE, grammar)
    assert engine.step() == {"low": 1}
    engine.add("high", INTERACTIVE)
    assert engine.step() == {"high": 50}


def test_only_the_first_few_are_looked_at_and_in_their_order() -> None:
    engine = full()
    for number in range(LOOKED_AT - 1):
        engine.add_structured(f"pending {number}", INTERACTIVE, None)
    looked_at: list[str] = []
    is_ready = engine.room.is_ready

    def noting(request: Any) -> bool:
        looked_at.append(request.request_id)
        return is_ready(request)

    engine.room.is_ready = noting  # type: ignore[method-assign]
    for number in range(20):
        engine.add(f"high {number}", INTERACTIVE)
    engine.room.make()
    assert looked_at == ["pending 0", "pending 1", "pending 2", "high 0"]
    assert preempted(engine) == ["low"]


def test_no_room_is_made_while_tokens_of_before_its_preemption_are_still_to_come() -> None:
    engine = full()
    high = engine.add("high", INTERACTIVE)
    high.num_stale_output_tokens = 1
    engine.room.make()
    assert not preempted(engine)
    high.drop_stale_output = True
    engine.room.make()
    assert preempted(engine) == ["low"]


def test_a_paused_engine_preempts_nobody() -> None:
    engine = full()
    engine.add("high", INTERACTIVE)
    engine._pause_state = PauseState.PAUSED_NEW
    engine.room.make()
    assert not preempted(engine)
    engine._pause_state = PauseState.UNPAUSED
    engine.room.make()
    assert preempted(engine) == ["low"]


def test_a_load_from_elsewhere_stops_preemption_only_when_it_has_ended() -> None:
    engine = full()
    engine.add("high", INTERACTIVE)
    loading = request("loading", STANDARD, 50)
    loading.status = Status.WAITING_FOR_REMOTE_KVS
    engine.kv_holding_waiting.prepend_requests([loading])
    engine.finished_recving_kv_req_ids.add("loading")
    engine.room.make()
    assert not preempted(engine)
    engine.finished_recving_kv_req_ids.clear()
    engine.room.make()
    assert preempted(engine) == ["low"]


def test_nobody_goes_for_a_request_whose_adapter_has_no_place_but_for_the_next_one() -> None:
    engine = full(adapters=1)
    engine.requests["low"].lora_request = SimpleNamespace(lora_int_id=1)
    engine.add("low too", BATCH, adapter=1)
    engine.max_num_active_reqs = 2
    engine.step()
    engine.add("other adapter", INTERACTIVE, adapter=2)
    engine.room.make()
    assert not preempted(engine)
    engine.add("plain", INTERACTIVE)
    assert engine.step()["plain"] == 50


def blocks(numbers: range, held: int) -> Any:
    """Return blocks that `held` requests hold."""
    group = [SimpleNamespace(block_id=n, ref_cnt=held, is_null=False) for n in numbers]
    return SimpleNamespace(blocks=(group,))


def sharing() -> Ordered:
    """Return an engine whose one request holds 10 blocks of 24, and shares 6 with who comes."""
    engine = Ordered(blocks=24)
    engine.add("low", BATCH, prompt=10 * 16)
    engine.step()
    cache = engine.kv_cache_manager
    cache.get_blocks = lambda _: blocks(range(10), held=1)
    cache.get_computed_blocks = lambda _: (blocks(range(6), held=1), 96, 0)
    return engine


def test_a_prefix_that_is_shared_with_the_victim_makes_no_room() -> None:
    engine = sharing()
    # It takes 23 with 6 of them at hand, so of 14 that are free 3 are lacking, and 4 are freed.
    engine.add("fits", INTERACTIVE, prompt=23 * 16)
    engine.room.make()
    assert preempted(engine) == ["low"]


def test_nobody_goes_whose_blocks_are_mostly_those_the_head_would_share() -> None:
    engine = sharing()
    engine.add("too much", INTERACTIVE, prompt=25 * 16)
    engine.room.make()
    assert not preempted(engine)


def test_what_a_prompt_takes_is_what_vllm_reckons() -> None:
    engine = Ordered(blocks=24)
    engine.add("low", BATCH, prompt=10 * 16)
    engine.step()
    # A window of 8 blocks: however long the prompt is, more are not taken.
    engine.kv_cache_manager.coordinator.get_num_blocks_to_allocate = lambda **_: 8
    long = engine.add("long", INTERACTIVE, prompt=5000)
    assert engine.room.fitting([long]) == [long]
    engine.room.make()
    assert not preempted(engine)
