"""Proofs on real vLLM: the same words as stock, and nothing lost however requests come and go."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bench.engine.engines import Engine, own_name
from weir_core.sched.shares import Share, StepShares
from weir_core.step.mode import Mode
from weir_core.step.victim import Preemptions
from weir_core.wire.steps import Step

RANKS: Final = (100, 0, -100)
MODES: Final = (
    Mode(),
    Mode("throughput"),
    Mode("custom", shares={100: 0.5, 0: 0.3, -100: 0.2}),
    Mode(tpot_s={100: 1e-4, 0: 1e-3}),
)
COUNTERS: Final = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
STEPS_LIMIT: Final = 5000
"""Steps in which a schedule of a few requests must be done."""


def same_words(stock: Engine, weir: Engine, prompts: int) -> list[str]:
    """Return the prompts to which the two engines, greedy both, gave different answers."""
    for engine in (stock, weir):
        engine.clear()
        choose = random.Random(3)
        for index in range(prompts):
            length = choose.choice((8, 40, 200, 700))
            text = [choose.randrange(10, 4000) for _ in range(length)]
            engine.add(f"r{index}", text, choose.randrange(1, 24), choose.choice(RANKS))
            engine.run_steps(choose.randrange(3))
        engine.run()
    return [
        name
        for name, answer in stock.answers.items()
        if not answer.tokens or answer.tokens != weir.answers[name].tokens
    ]


@dataclass(frozen=True)
class Session:
    """A streaming-input session that waits between two turns, in an otherwise busy engine.

    Attributes:
        bounding: Decodes that bounded steps while it waited alone.
        preempted: Lower requests that gave way to a higher one while it waited.
        tokens: What its two turns of eight tokens brought.
        leaked_blocks: Missing when all had ended.
    """

    bounding: int
    preempted: int
    tokens: int
    leaked_blocks: int


def session(engine: Engine) -> Session:
    """Let a session wait while every slot fills up and a higher request arrives, then go on."""
    engine.clear()
    scheduler = engine.scheduler
    pool = scheduler.kv_cache_manager.block_pool
    free, slots = pool.get_num_free_blocks(), scheduler.max_num_running_reqs
    engine.say("session", 60, 8, RANKS[1])
    engine.run_steps(12)
    assert scheduler.num_waiting_for_streaming_input == 1, "the session does not wait"
    bounding = len(scheduler.planner.pace)
    for index in range(slots):
        engine.add(f"low{index}", 16, 60, RANKS[2])
    engine.run_steps(4)
    high = engine.add("high", 30, 4, RANKS[0])
    engine.run_steps(8)
    preempted = engine.preempted()
    assert high.outcome, "the higher request did not go first"
    engine.say("session", 30, 8, RANKS[1])
    engine.run_steps(60)
    engine.hang_up("session")
    for _ in range(STEPS_LIMIT):
        if scheduler.has_requests():  # the front end hears of no end for who has hung up
            engine.step()
    left = pool.get_num_free_blocks()
    return Session(bounding, preempted, len(engine.answers["session"].tokens), free - left)


class Told:
    """What the step log tells of requests that ended, in place of the socket to the sidecar.

    Attributes:
        ends: Of each request, how often it was told to have ended.
        output: Of each request, its output tokens.
        prompt_tokens: Of all.
        prefill_tokens: Of all, by their ends.
        step_prefill_tokens: Of all, by the steps.
        reasons: How often each of them was given.
        steps_s: The time of all steps.
        engine_s: Of that, what requests were charged for.
    """

    def __init__(self) -> None:
        self.ends, self.output, self.reasons = Counter[str](), Counter[str](), Counter[str]()
        self.prompt_tokens = self.prefill_tokens = self.step_prefill_tokens = 0
        self.steps_s = self.engine_s = 0.0
        self._shares = StepShares()
        self._charged: dict[str, Share] = defaultdict(lambda: Share(1))

    def send(self, step: Step) -> bool:
        """Take a record, and charge requests for it as a sidecar does."""
        self.step_prefill_tokens += step.prefill_tokens
        self.steps_s += step.duration_s
        rank = self._shares.rank(step.engine)
        if step.duration_s > 0:
            self._shares.on_step(step.engine, step.duration_s, step.prefill_tokens, step.decodes)
        for started, prompt in zip(step.started, step.prompts, strict=True):
            self._charged[started].start(rank, prompt[0], max(0, prompt[1]))
        for end in step.ended:
            share = self._charged.pop(end.request, Share(1))
            share.end(rank, end)
            share.charge(share.output_tokens)
            self.engine_s += share.engine_s
            name = own_name(end.request)
            self.ends[name] += 1
            self.output[name] += end.output_tokens
            self.prompt_tokens += end.prompt_tokens
            self.prefill_tokens += end.prefill_tokens
            self.reasons[end.reason] += 1
        return True


def counted(name: str) -> int:
    """Return one of vLLM's own counters, of the engine that this process made last."""
    from prometheus_client import REGISTRY

    samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
    return int(sum(sample.value for sample in samples if sample.name == name))


@dataclass
class Fuzz:
    """What a fuzz went through."""

    schedules: int = 0
    requests: int = 0
    aborted: int = 0
    preemptions: int = 0
    steps: int = 0
    output_tokens: int = 0
    steps_s: float = 0.0
    engine_s: float = 0.0
    faults: list[str] = field(default_factory=list)


def fuzz(engine: Engine, schedules: int, seed: int = 0, adapters: Sequence[Any] = (None,)) -> Fuzz:
    """Run random schedules, each to its end, and look for what is lost or left behind.

    Args:
        engine: One of Weir's.
        schedules: How many.
        seed: Gives the same ones again.
        adapters: What the requests want, in turn; None is the model itself.
    """
    result = Fuzz()
    for number in range(schedules):
        choose = random.Random(seed * 1_000_003 + number)
        try:
            _one_schedule(engine, choose, result, adapters)
        except AssertionError as error:
            result.faults.append(f"schedule {seed}/{number}: {error or 'an assertion of vLLM'}")
            break
        result.schedules += 1
    return result


def _one_schedule(
    engine: Engine, choose: random.Random, result: Fuzz, adapters: Sequence[Any]
) -> None:
    engine.clear()
    told = engine.scheduler.sender = Told()
    before = [counted(name) for name in COUNTERS]
    engine.set_mode(choose.choice(MODES))
    engine.scheduler.room.preemptions = Preemptions(choose.choice((2_000, 1_000_000)))
    pool = engine.scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    taken = pool.get_new_blocks(choose.randrange(free // 2)) if choose.random() < 0.7 else []
    longest = (free - len(taken)) * engine.scheduler.block_size // 2
    names = [f"r{index}" for index in range(choose.randrange(1, 16))]
    live: dict[str, Any] = {}
    for number, name in enumerate(names):
        output = choose.choice((1, 2, 10, 60))
        prompt = choose.choice((1, 30, 300, 1500, 5000))
        engine.add(
            name, [10 + choose.randrange(3)] * min(prompt, max(1, longest - output)), output,
            choose.choice(RANKS), choose.choice((1.0, 5.0, float("inf"))),
            adapters[number % len(adapters)],
        )  # fmt: skip
        live = engine.scheduler.requests | live
        _some_steps(engine, choose, names, result)
    steps = 0
    while engine.llm.has_unfinished_requests():
        engine.step()
        steps += 1
        assert steps < STEPS_LIMIT, "requests that never end"
    pool.free_blocks(taken)
    result.requests += len(names)
    result.steps += len(engine.formed)
    result.preemptions += sum(request.num_preemptions for request in live.values())
    _check(engine, names, free)
    result.output_tokens += sum(told.output.values())
    result.steps_s += told.steps_s
    result.engine_s += told.engine_s
    _check_ends(engine, told, before)


def _some_steps(engine: Engine, choose: random.Random, names: list[str], result: Fuzz) -> None:
    for _ in range(choose.choice((0, 0, 1, 3, 20))):
        if engine.llm.has_unfinished_requests():
            engine.step()
    victim = choose.choice(names)
    answer = engine.answers.get(victim)
    if choose.random() < 0.15 and answer is not None and not answer.outcome:
        engine.llm.abort_request([victim])
        answer.outcome = "aborted"
        result.aborted += 1
    if choose.random() < 0.1:
        engine.set_mode(choose.choice(MODES))


def _check(engine: Engine, names: list[str], free: int) -> None:
    scheduler = engine.scheduler
    engine.step()  # what ended in the last step is let go of in the next
    without = [name for name in names if not engine.answers[name].outcome]
    assert not without, f"without an outcome: {without}"
    assert not scheduler.running, "still in the batch"
    assert not scheduler.waiting, "still in the queue"
    assert not scheduler.requests, "still known"
    assert not scheduler._inflight_prefills, "still a partial prefill"
    assert not len(scheduler.planner.pace), "still a decode that bounds steps"
    left = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    assert left == free, f"{free - left} blocks leaked"


def _check_ends(engine: Engine, told: Told, before: list[int]) -> None:
    """Hold what the step log told of ended requests to what clients got and vLLM counted."""
    answers = engine.answers
    assert told.ends == Counter(list(answers)), "ends that were told twice, or not"
    wrong = [name for name in answers if told.output[name] != len(answers[name].tokens)]
    assert not wrong, f"told of other output than was put out: {wrong}"
    sums = [told.prompt_tokens, sum(told.output.values())]
    counts = [counted(name) - was for name, was in zip(COUNTERS, before, strict=True)]
    assert sums == counts, f"told of {sums} tokens, vLLM counted {counts}"
    computed = (told.prefill_tokens, told.step_prefill_tokens)
    assert computed[0] == computed[1], f"ends tell of {computed[0]} of {computed[1]} prefill tokens"
    aborted = sum(answer.outcome == "aborted" for answer in answers.values())
    assert told.reasons["abort"] == aborted, f"{dict(told.reasons)}, but {aborted} were aborted"
