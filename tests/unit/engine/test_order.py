"""Weir's order over an outline of vLLM's scheduler, step by step."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.engine.vllm_outline import Request, Scheduler, Status, WeirScheduler, request
from weir_core.sched.types import End
from weir_core.step.mode import Mode
from weir_core.wire.policies import EngineMode
from weir_core.wire.steps import NOT_LOOKED_UP, Step, decode_step
from weir_engine.scheduling.ordered import NOT_RECKONED_STEPS
from weir_engine.scheduling.telling import ModeReader, StepSender

INTERACTIVE, STANDARD, BATCH = 100, 0, -100


@pytest.fixture(params=[False, True], ids=["vllm-0.32", "vllm-0.33"], autouse=True)
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is the same over each vLLM that is supported."""
    monkeypatch.setattr(Scheduler, "passes_over", request.param)


class Ordered(WeirScheduler):
    """The scheduler, and short words for requests."""

    def add(self, name: str, rank: int, prompt: int, output: int = 4) -> None:
        self.add_request(request(name, rank, prompt, output))


def test_a_higher_arrival_goes_before_a_lower_prompt_that_was_begun() -> None:
    engine = Ordered(tokens=1000)
    engine.add("low", BATCH, 5000)
    assert engine.step() == {"low": 1000}
    engine.add("high", INTERACTIVE, 1500)
    assert engine.step() == {"high": 1000}
    assert engine.step() == {"high": 500, "low": 500}
    # A decode has begun, and nothing is known yet of how long steps take here.
    assert engine.step() == {"high": 1, "low": 512}
    assert engine.requests["low"].num_computed_tokens == 2012  # its KV stayed


def test_a_high_request_gets_the_slot_of_the_lower_one_that_loses_least() -> None:
    engine = Ordered(slots=2)
    engine.add("long", BATCH, 600, output=50)
    engine.add("short", BATCH, 60, output=50)
    engine.step()
    engine.add("high", INTERACTIVE, 50)
    assert engine.step() == {"long": 1, "high": 50}
    assert engine.requests["short"].status.name == "PREEMPTED"
    for _ in range(60):
        engine.step()
    assert not engine.requests


def test_no_lower_class_is_admitted_where_a_higher_one_gets_nothing() -> None:
    engine = Ordered(tokens=1000)
    engine.add("begun", INTERACTIVE, 5000)
    engine.step()
    engine.add("decoding", INTERACTIVE + 1, 1)
    engine.step()
    engine.planner.change(Mode("latency", tpot_s={INTERACTIVE + 1: 0.001}))
    engine.add("high", STANDARD, 5000)
    engine.add("low", BATCH, 5000)
    engine.add("cached", BATCH, 100)
    engine.requests["cached"].cached = 99
    assert engine.step().keys() == {"begun", "decoding"}


def test_equals_and_lower_classes_wait_for_a_slot() -> None:
    engine = Ordered(slots=1)
    engine.add("running", STANDARD, 60, output=50)
    engine.step()
    engine.add("equal", STANDARD, 60)
    engine.add("lower", BATCH, 60)
    assert engine.step() == {"running": 1}


def test_kv_blocks_are_taken_from_lower_classes_only_if_that_is_enough() -> None:
    engine = Ordered(tokens=2000, blocks=100)  # of 16 tokens
    engine.add("low", BATCH, 800, output=50)
    engine.step()
    engine.add("huge", INTERACTIVE, 1601)
    assert engine.step() == {"low": 1}
    engine.add("high", INTERACTIVE + 1, 1000)
    assert engine.step() == {"high": 1000}


def test_what_is_set_aside_for_one_that_is_not_admitted_is_soon_given_back() -> None:
    engine = Ordered(tokens=1000)
    engine.add("low", BATCH, 9000)
    engine.step()
    engine.add("high", INTERACTIVE, 1000)
    admit = engine.max_num_active_reqs
    held = [request(f"x{n}", BATCH, 1) for n in range(admit - 1)]
    engine.room.free_slots = lambda: 1  # type: ignore[method-assign]
    engine.running += held  # something the room does not know of holds the slots
    for one in held:
        engine.requests[one.request_id] = one
        one.is_prefill_chunk, one.max_tokens = False, 1000
    assert "low" not in engine.step()
    chunks = [engine.step().get("low", 0) for _ in range(NOT_RECKONED_STEPS)]
    assert all(chunks)


def test_custom_shares_hold_between_waiting_classes() -> None:
    engine = Ordered(tokens=1000)
    engine.change(Mode("custom", shares={INTERACTIVE: 0.5, STANDARD: 0.3, BATCH: 0.2}))
    for rank in (INTERACTIVE, STANDARD, BATCH):
        engine.add(f"of {rank}", rank, 5000)
    assert engine.step() == {"of 100": 500, "of 0": 300, "of -100": 200}
    assert engine.step() == {"of 100": 500, "of 0": 300, "of -100": 200}
    assert len(engine.waiting) == 0


def test_custom_shares_hold_where_the_prompts_of_one_class_could_fill_the_cache() -> None:
    engine = Ordered(tokens=1000, blocks=500)  # 8,000 tokens
    engine.change(Mode("custom", shares={INTERACTIVE: 0.5, STANDARD: 0.3, BATCH: 0.2}))
    for rank in (INTERACTIVE, STANDARD, BATCH):
        for number in range(4):
            engine.add(f"{rank}/{number}", rank, 2500)
    assert engine.step() == {"100/0": 500, "0/0": 300, "-100/0": 200}


def test_a_mode_from_the_sidecar_holds_from_the_next_step_on(tmp_path: Path) -> None:
    engine = Ordered(tokens=1000)
    engine.modes = ModeReader(tmp_path / "mode.sock")
    engine.add("decode", INTERACTIVE, 10, output=99)
    engine.step()
    engine.add("low", BATCH, 9000)
    assert engine.step() == {"decode": 1, "low": 512}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sidecar:
        sidecar.sendto(b'{"mode": "throughput"}', str(tmp_path / "mode.sock"))
    assert engine.step() == {"decode": 1, "low": 999}
    assert engine.planner.mode == EngineMode("throughput").for_steps()
    engine.modes.close()


def test_one_that_is_aborted_while_its_first_token_is_computed_never_decodes() -> None:
    engine = Ordered()
    engine.add("left", STANDARD, 60)
    last_chunk = engine.schedule()
    engine.abort("left")
    engine.schedule()  # steps overlap: this one tells of the abort before the tokens come
    engine.update_from_output(last_chunk, None)
    assert len(engine.planner.pace) == 0


def test_one_that_is_preempted_while_its_first_token_is_computed_does_not_decode_yet() -> None:
    engine = Ordered(slots=1)
    engine.add("low", BATCH, 60, output=50)
    last_chunk = engine.schedule()
    engine.add("high", INTERACTIVE, 50)
    engine.schedule()
    engine.update_from_output(last_chunk, None)
    assert engine.requests["low"].status.name == "PREEMPTED"
    assert len(engine.planner.pace) == 0


def test_one_that_is_computed_anew_at_once_decodes_when_its_prompt_is_done() -> None:
    engine = Ordered(tokens=1000)
    engine.add("long", BATCH, 600, output=50)
    last_chunk = engine.schedule()
    (long,) = engine.running
    engine.add("other", INTERACTIVE, 500)
    engine.running.remove(long)
    engine._preempt_request(long, 0.0)
    assert engine.schedule().num_scheduled_tokens == {"other": 500, "long": 500}
    engine.update_from_output(last_chunk, None)
    assert len(engine.planner.pace) == 0
    engine.step()
    assert len(engine.planner.pace) == 1


def test_in_a_pipeline_a_step_counts_for_the_decodes_it_served() -> None:
    engine = Ordered(stages=2)
    parts: list[float] = []
    engine.planner.pace.stepped = parts.append  # type: ignore[assignment, method-assign]
    for name in ("a", "b"):
        engine.add(name, STANDARD, 60)
    engine.step()
    first = engine.schedule()
    engine.add("c", STANDARD, 60)
    second = engine.schedule()
    engine.update_from_output(first, None)
    first = engine.schedule()
    engine.update_from_output(second, None)
    second = engine.schedule()
    assert first.num_scheduled_tokens == {"a": 1, "b": 1}
    assert second.num_scheduled_tokens == {"c": 1}
    engine.update_from_output(first, None)
    engine.update_from_output(second, None)
    assert parts == pytest.approx([1, 1, 0, 2 / 3, 1 / 3])


def test_in_a_pipeline_a_prompt_is_cut_for_decodes_that_are_under_way() -> None:
    engine = Ordered(tokens=1000, stages=2)
    engine.add("decode", INTERACTIVE, 60, output=50)
    engine.step()
    under_way = engine.schedule()
    engine.add("low", BATCH, 5000)
    # Unbounded it would be 1000, and the decode's next token would wait for all of them.
    assert engine.schedule().num_scheduled_tokens == {"low": 512}
    engine.update_from_output(under_way, None)


def test_an_adapter_keeps_its_place_until_its_last_prompt_has_left() -> None:
    engine = Ordered(tokens=1000, adapters=1)
    engine.change(Mode("throughput"))
    for name, rank, tokens, adapter in (("low", BATCH, 1500, 1), ("high", INTERACTIVE, 1000, 2)):
        engine.add(name, rank, tokens, output=1)
        engine.requests[name].lora_request = SimpleNamespace(lora_int_id=adapter)
        if name == "low":
            engine.step()
    # Did the higher one go first, vLLM would have two adapters and one place when both go on.
    assert engine.step() == {"low": 500}
    assert engine.step() == {"high": 1000}


def test_two_that_are_admitted_at_once_do_not_take_one_place() -> None:
    engine = Ordered(tokens=1000, adapters=1)
    for name, adapter in (("one", 1), ("two", 2)):
        engine.add(name, STANDARD, 100, output=1)
        engine.requests[name].lora_request = SimpleNamespace(lora_int_id=adapter)
    assert engine.step() == {"one": 100}
    assert engine.step() == {"two": 100}


def test_lower_classes_do_not_keep_a_higher_ones_adapter_out() -> None:
    engine = Ordered(tokens=1000, adapters=1)
    add_adapted(engine, "low", BATCH, adapter=1)
    engine.step()
    add_adapted(engine, "high", INTERACTIVE, adapter=2)
    for n in range(20):  # as many as it takes to keep the place without end
        add_adapted(engine, f"low {n}", BATCH, adapter=1)
    engine.add("without", BATCH, 16, output=1)
    assert engine.step() == {"low": 1, "without": 16}, "who wants no adapter takes nobody's place"
    assert [engine.step() for _ in range(3)] == [{"low": 1}, {"low": 1}, {"high": 16}]
    for _ in range(40):
        engine.step()
    assert not engine.requests


def test_equals_keep_an_adapters_place_as_in_stock_vllm() -> None:
    engine = Ordered(tokens=1000, adapters=1)
    add_adapted(engine, "one", STANDARD, adapter=1)
    engine.step()
    add_adapted(engine, "two", STANDARD, adapter=2)
    add_adapted(engine, "zero", STANDARD, adapter=1)
    assert engine.step() == {"one": 1, "zero": 16}


def test_who_lacks_a_place_does_not_stop_those_behind() -> None:
    """The place's holder is in the pipeline's other step, so that vLLM itself sees a free one."""
    engine = Ordered(adapters=1, stages=2)
    add_adapted(engine, "holder", STANDARD, adapter=1)
    engine.step()
    under_way = engine.schedule()
    add_adapted(engine, "high", INTERACTIVE, adapter=2)
    engine.add("low", BATCH, 16)
    assert engine.schedule().num_scheduled_tokens == {"low": 16}
    engine.update_from_output(under_way, None)


def add_adapted(engine: Ordered, name: str, rank: int, *, adapter: int) -> None:
    engine.add(name, rank, 16)
    engine.requests[name].lora_request = SimpleNamespace(lora_int_id=adapter)


def test_a_step_has_room_for_the_drafts_there_are() -> None:
    engine = Ordered(tokens=100, drafts=3)
    engine.change(Mode("throughput"))
    for name in ("lucky", "plain"):
        engine.add(name, INTERACTIVE, 16, output=50)
    engine.step()
    engine.requests["lucky"].drafts = 3
    engine.add("low", BATCH, 500)
    assert engine.step() == {"lucky": 4, "plain": 1, "low": 95}
    assert engine.requests["lucky"].num_tokens == 16 + 2


def test_what_decodes_cost_is_learned_for_each_token_with_its_drafts() -> None:
    engine = Ordered(drafts=3)
    engine.add("lucky", INTERACTIVE, 16, output=50)
    engine.step()
    engine.requests["lucky"].drafts = 3
    formed = engine._observe(engine.schedule(), (), 0.0)
    assert (formed.decodes, formed.decode_tokens) == (1, 4)


def test_a_session_that_waits_for_input_bounds_no_step() -> None:
    engine = Ordered(tokens=1000)
    engine.add("session", INTERACTIVE, 60, output=50)
    engine.requests["session"].resumable = True
    engine.add("other", INTERACTIVE, 60, output=50)
    engine.step()
    assert len(engine.planner.pace) == 2
    engine.wait_for_input("session")
    engine.step()
    assert len(engine.planner.pace) == 1


def test_a_session_that_waits_for_input_stands_in_nobodys_way() -> None:
    engine = Ordered(slots=1)
    engine.add("session", STANDARD, 60, output=50)
    engine.requests["session"].resumable = True
    engine.step()
    engine.wait_for_input("session")
    engine.add("low", BATCH, 60, output=50)
    engine.step()
    engine.add("high", INTERACTIVE, 50)
    assert engine.step() == {"high": 50}
    assert engine.requests["low"].status.name == "PREEMPTED"


def with_turns(engine: Ordered, name: str, rank: int) -> None:
    """Have a session wait for its second turn."""
    session = request(name, rank, 100)
    session.resumable = True
    engine.add_request(session)
    engine.step()
    engine.wait_for_input(name)


def test_a_sessions_turn_goes_before_a_lower_prompt_that_was_begun() -> None:
    engine = Ordered(tokens=1000)
    with_turns(engine, "session", INTERACTIVE)
    engine.add("low", BATCH, 5000)
    engine.step()
    engine.go_on("session", 200)
    assert engine.step() == {"low": 799, "session": 201}


def test_a_low_sessions_turn_takes_nothing_from_a_higher_request() -> None:
    engine = Ordered(tokens=1000)
    with_turns(engine, "session", BATCH)
    engine.add("begun", STANDARD, 5000)
    engine.step()
    engine.go_on("session", 800)
    engine.add("high", INTERACTIVE, 900)
    assert engine.step() == {"begun": 100, "high": 900}
    assert [one.request_id for one in engine.kv_holding_waiting] == ["session"]
    for _ in range(30):
        engine.step()
    assert not engine.requests


def test_who_cannot_be_admitted_yet_holds_up_neither_its_class_nor_what_was_begun() -> None:
    engine = Ordered(tokens=1000)
    engine.add("low", BATCH, 5000)
    engine.step()
    waiting = request("compiles", INTERACTIVE, 300, due_s=1.0)
    waiting.status = Status.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    waiting.structured_output_request = SimpleNamespace(grammar=None)
    engine.add_request(waiting)
    assert engine.step() == {"low": 1000}
    engine.add("high", INTERACTIVE, 300)
    assert engine.step() == {"low": 700, "high": 300}


def image(name: str, rank: int, prompt: int, image_at: int = 0) -> Request:
    made = request(name, rank, prompt)
    made.has_encoder_inputs, made.image_at = True, image_at
    return made


@pytest.mark.parametrize(("in_parts", "chunk"), [(True, 512), (False, 900)])
def test_a_prompt_with_an_image_is_cut_unless_images_are_not_to_be_cut(
    in_parts: bool, chunk: int
) -> None:
    engine = Ordered(tokens=1000)
    engine.scheduler_config.disable_chunked_mm_input = not in_parts
    engine.add("stream", INTERACTIVE, 50, output=50)
    engine.step()
    engine.add_request(image("pictured", BATCH, 900))
    assert engine.step() == {"stream": 1, "pictured": chunk}


def test_a_higher_prompt_without_room_for_its_image_lets_the_one_that_has_it_finish() -> None:
    engine = Ordered(tokens=1000)
    engine.add_request(image("low", BATCH, 3000))
    assert engine.step() == {"low": 1000}
    engine.add_request(image("high", INTERACTIVE, 2000, image_at=500))
    assert engine.step() == {"high": 500}
    assert engine.step() == {}  # it has the whole step, and no room
    assert engine.step() == {"low": 1000}
    for _ in range(20):
        engine.step()
    assert not engine.requests


def test_an_engine_that_may_not_order_serves_as_vllm_would() -> None:
    engine = Ordered(tokens=1000, slots=1)
    engine.orders = False
    engine.add("low", BATCH, 1500)
    engine.step()
    engine.add("high", INTERACTIVE, 50)
    assert engine.step() == {"low": 500}
    assert engine.mode_kind() == ""


def test_each_step_is_told_to_the_sidecar(tmp_path: Path) -> None:
    engine = Ordered(tokens=1000)
    engine.clock = map(float, itertools.count()).__next__
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sidecar:
        sidecar.bind(str(tmp_path / "steps.sock"))
        engine.sender = StepSender(tmp_path / "steps.sock")
        engine.add("chatcmpl-mine-00c0ffee", STANDARD, 1200, output=2)
        engine.add("chatcmpl-next-00c0ffee", BATCH, 300)
        for _ in range(3):
            engine.step()
        steps = [decode_step(sidecar.recv(4096)) for _ in range(3)]
    engine.sender.close()
    assert [step.seq for step in steps] == [1, 2, 3]
    assert [step.prefill_tokens for step in steps] == [1000, 500, 0]
    assert [step.decodes for step in steps] == [0, 0, 2]
    assert [step.started for step in steps] == [(), ("mine", "next"), ()]
    assert [step.prefill_left for step in steps] == [{STANDARD: 200, BATCH: 300}, {}, {}]
    assert steps[0].prefill_context == 1000 * 500
    assert steps[2].decode_context == 1200 + 300 + 2
    assert all(isinstance(step, Step) and 0 < step.schedule_s < step.duration_s for step in steps)


@pytest.fixture
def told(tmp_path: Path) -> Iterator[tuple[Ordered, socket.socket]]:
    """An engine, and the sidecar's end of its step log."""
    engine = Ordered(tokens=1000, slots=2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sidecar:
        sidecar.bind(str(tmp_path / "steps.sock"))
        sidecar.setblocking(False)
        engine.sender = StepSender(tmp_path / "steps.sock")
        yield engine, sidecar
        engine.sender.close()


def prompts_told(engine: Ordered, sidecar: socket.socket) -> list[tuple[str, tuple[int, int]]]:
    """Run the engine to its end; return what was told of each prompt, in order."""
    found: list[tuple[str, tuple[int, int]]] = []
    while engine.requests:
        engine.step()
        step = decode_step(sidecar.recv(4096))
        found += zip(step.started, step.prompts, strict=True)
    return found


def test_the_step_that_completes_a_prompt_tells_what_was_cached_of_it(
    told: tuple[Ordered, socket.socket],
) -> None:
    engine, sidecar = told
    for name, cached, skips in (("new", 0, False), ("known", 64, False), ("echo", 64, True)):
        one = request(name, STANDARD, 100)
        one.cached, one.skip_reading_prefix_cache = cached, skips
        engine.add_request(one)
    assert sorted(prompts_told(engine, sidecar)) == [
        ("echo", (100, NOT_LOOKED_UP)),
        ("known", (100, 64)),
        ("new", (100, 0)),
    ]


def test_several_answers_under_one_name_are_told_of_by_the_first(
    told: tuple[Ordered, socket.socket],
) -> None:
    engine, sidecar = told
    for number, cached in enumerate((0, 96)):
        one = request(f"{number}_chatcmpl-same-0000000{number}", STANDARD, 100)
        one.cached = cached
        engine.add_request(one)
    assert prompts_told(engine, sidecar) == [("same", (100, 0))]


def test_a_prompt_that_is_computed_again_does_not_tell_of_its_own_blocks(
    told: tuple[Ordered, socket.socket],
) -> None:
    engine, sidecar = told
    engine.add("low", BATCH, 5000)
    engine.step()
    engine.step()
    low = engine.requests["low"]
    engine.running.remove(low)
    engine._preempt_request(low, 0.0)
    low.cached = 1984  # what it computed stays in the prefix cache
    chunks = engine.step()
    assert chunks == {"low": 1000}
    assert low.num_computed_tokens == 2984
    for _ in range(3):
        sidecar.recv(4096)
    assert prompts_told(engine, sidecar) == [("low", (5000, 0))]


def test_a_sessions_next_turn_tells_of_nothing_cached(
    told: tuple[Ordered, socket.socket],
) -> None:
    engine, sidecar = told
    one = request("turn", STANDARD, 100)
    one.num_computed_tokens = 40  # of the turn before, with whose output vLLM gave its note away
    one.prefill_stats = None
    engine.add_request(one)
    assert prompts_told(engine, sidecar) == [("turn", (100, NOT_LOOKED_UP))]


def ends_told(sidecar: socket.socket) -> list[End]:
    """Return what has been told of ended requests so far."""
    found: list[End] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found += decode_step(sidecar.recv(4096)).ended
    return found


def test_the_end_of_a_request_is_told_with_what_was_computed_for_it(
    told: tuple[Ordered, socket.socket],
) -> None:
    engine, sidecar = told
    engine.add("whole", INTERACTIVE, 40, output=2)
    engine.add("left", BATCH, 30, output=50)
    engine.step()
    engine.abort("left")
    assert ends_told(sidecar) == []
    engine.step()
    assert ends_told(sidecar) == [
        End("left", "abort", 30, 0, 1, 30, 1),
        End("whole", "length", 40, 0, 2, 40, 1),
    ]


def test_a_prompt_that_was_left_before_its_first_token_counts_only_what_it_cost(
    told: tuple[Ordered, socket.socket],
) -> None:
    engine, sidecar = told
    engine.add("left", BATCH, 5000)
    engine.step()
    engine.abort("left")
    engine.schedule()  # nothing is left to compute
    first, idle = (decode_step(sidecar.recv(4096)) for _ in range(2))
    assert (first.ended, idle.seq, idle.duration_s) == ((), first.seq + 1, 0.0)
    assert idle.ended == (End("left", "abort", 0, 0, 0, 1000, 0),)


def test_an_end_is_told_after_the_step_in_flight_that_computed_for_it(
    told: tuple[Ordered, socket.socket],
) -> None:
    engine, sidecar = told
    engine.add("left", BATCH, 60, output=50)
    in_flight = engine.schedule()
    engine.abort("left")
    engine.schedule()  # nothing is left to compute, and that step has not ended
    assert ends_told(sidecar) == []
    engine.update_from_output(in_flight, None)
    step = decode_step(sidecar.recv(4096))
    assert (step.seq, step.prefill_tokens) == (1, 60)
    assert [end.request for end in step.ended] == ["left"]


def test_what_is_computed_again_after_a_preemption_is_told_apart_from_the_prompt(
    told: tuple[Ordered, socket.socket],
) -> None:
    engine, sidecar = told
    engine.max_num_running_reqs = engine.max_num_active_reqs = 1
    engine.add("low", BATCH, 60, output=4)
    engine.step()
    engine.add("high", INTERACTIVE, 50, output=1)
    while engine.requests:
        engine.step()
    low = next(end for end in ends_told(sidecar) if end.request == "low")
    assert low == End("low", "length", 60, 0, 4, 60 + 61, 2)


def test_ends_that_nothing_took_are_told_with_a_later_step(tmp_path: Path) -> None:
    engine = Ordered()
    engine.sender = StepSender(tmp_path / "steps.sock")
    engine.add("first", INTERACTIVE, 40, output=1)
    engine.step()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as late:
        late.bind(str(tmp_path / "steps.sock"))
        late.setblocking(False)
        engine.add("second", INTERACTIVE, 40, output=1)
        engine.step()
        ends = ends_told(late)
    engine.sender.close()
    assert [end.request for end in ends] == ["first", "second"]


def test_a_preempted_sequence_is_told_of(tmp_path: Path) -> None:
    engine = Ordered(slots=1)
    engine.add("low", BATCH, 60, output=50)
    engine.step()
    engine.add("high", INTERACTIVE, 50)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sidecar:
        sidecar.bind(str(tmp_path / "steps.sock"))
        engine.sender = StepSender(tmp_path / "steps.sock")
        engine.step()
        assert decode_step(sidecar.recv(4096)).preempted == 1
    engine.sender.close()
