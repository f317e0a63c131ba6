"""Real vLLM in this process, step by step: the scheduler is at hand and time is one's own."""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

from weir_core.step.mode import Mode
from weir_core.wire.priority import engine_priority
from weir_engine.launch import SCHEDULER

ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
Kind = Literal["stock", "weir"]


class StepClock:
    """A clock that only steps move on, each by what it computes: the same on every machine.

    Attributes:
        fixed_s: Time of any step.
        token_s: Time of one of its tokens.
    """

    fixed_s: Final = 2e-3
    token_s: Final = 2e-4

    def __init__(self) -> None:
        self._now_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self._now_s

    def step(self, tokens: int) -> None:
        """Let a step pass."""
        self._now_s += self.fixed_s + self.token_s * tokens


@dataclass
class Answer:
    """One request as its client sees it.

    Attributes:
        times_s: When each of its tokens came.
        outcome: Why it ended, or empty.
        each: Its tokens by answer, of which there are several with `n`.
        logprobs: Of the prompt's tokens and of its own, where they were asked for.
        cached: Prompt tokens that were found in the prefix cache.
    """

    arrival_s: float
    tokens: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    outcome: str = ""
    each: dict[int, list[int]] = field(default_factory=dict)
    logprobs: list[float] = field(default_factory=list)
    cached: int = 0

    @property
    def ttft_s(self) -> float:
        """Arrival to first token."""
        return self.times_s[0] - self.arrival_s

    @property
    def gaps_s(self) -> list[float]:
        """The times between its tokens."""
        return [late - early for early, late in pairwise(self.times_s)]


@dataclass
class Formed:
    """One step as it was formed.

    Attributes:
        chunks: Request to its tokens in the step.
        prompts: Of these, requests whose prompt was not complete before.
        scheduling_s: CPU time of `schedule` and of `update_from_output`, which leaves out what
            else the machine did meanwhile.
    """

    chunks: dict[str, int]
    prompts: set[str]
    scheduling_s: float
    preempted: int


class Engine:
    """An engine of either kind and what its clients saw.

    Args:
        kind: Whose order it has.
        model: Where the weights are.
        clock: Sets how long steps take, for its clients and for Weir's order; the machine's own
            time without one.
        arguments: For vLLM.
    """

    def __init__(
        self, kind: Kind, model: Path, clock: StepClock | None = None, **arguments: Any
    ) -> None:
        prepare()
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        defaults: dict[str, Any] = {
            "model": str(model),
            "max_model_len": 8192,
            "max_num_batched_tokens": 2048,  # what `vllm serve` takes on a CPU
            "max_num_seqs": 32,
            "enable_prefix_caching": False,
            "enforce_eager": True,
            "kv_cache_memory_bytes": 64 << 20,
            "scheduling_policy": "priority",
            "scheduler_cls": SCHEDULER if kind == "weir" else None,
            "distributed_executor_backend": "uni",
            "seed": 0,
        }
        self.llm = LLMEngine.from_engine_args(EngineArgs(**defaults | arguments))
        _keep_kernels()
        self.core: Any = self.llm.engine_core.engine_core
        self.scheduler: Any = self.core.scheduler
        self.clock: Callable[[], float] = clock or time.perf_counter
        self._pass = clock.step if clock else lambda _: None
        if kind == "weir":
            self.scheduler.clock = self.clock
        self.answers: dict[str, Answer] = {}
        self.formed: list[Formed] = []
        self._random = random.Random(7)
        self._sessions: dict[str, str] = {}
        self._watch()

    def add(
        self,
        name: str,
        prompt: int | list[int],
        output_tokens: int,
        rank: int = 0,
        due_s: float = float("inf"),
        lora: Any = None,
        **sampling: Any,
    ) -> Answer:
        """Send a request: a prompt, or the length of a random one."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        tokens = prompt if isinstance(prompt, list) else self.tokens(prompt)
        wishes = {"temperature": 0.0, "ignore_eos": True} | sampling
        parameters = SamplingParams(
            max_tokens=output_tokens, output_kind=RequestOutputKind.DELTA, **wishes
        )
        answer = self.answers[name] = Answer(self.clock())
        self.llm.add_request(
            name, {"prompt_token_ids": tokens}, parameters,
            lora_request=lora, priority=engine_priority(rank, due_s),
        )  # fmt: skip
        return answer

    def say(self, name: str, prompt: int, output_tokens: int, rank: int = 0) -> None:
        """Send a turn of a session, which then waits for the next one, with its KV blocks."""
        self.answers.setdefault(name, Answer(self.clock()))
        self._send_turn(name, self.tokens(prompt), output_tokens, rank, resumable=True)

    def hang_up(self, name: str) -> None:
        """End a session."""
        self._send_turn(name, [0], 1, 0, resumable=False)
        del self._sessions[name]

    def _send_turn(
        self, name: str, tokens: list[int], output_tokens: int, rank: int, *, resumable: bool
    ) -> None:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        parameters = SamplingParams(
            max_tokens=output_tokens, output_kind=RequestOutputKind.DELTA,
            temperature=0.0, ignore_eos=True,
        )  # fmt: skip
        request = self.llm.input_processor.process_inputs(
            self._sessions.get(name, name), {"prompt_token_ids": tokens}, parameters,
            supported_tasks=self.llm.get_supported_tasks(),
            priority=engine_priority(rank), resumable=resumable,
        )  # fmt: skip
        if name in self._sessions:
            request.external_req_id = name
        else:
            self.llm.input_processor.assign_request_id(request)
            self._sessions[name] = request.request_id
        self.llm.output_processor.add_request(request, None, None, 0)
        self.llm.engine_core.add_request(request)

    def tokens(self, count: int) -> list[int]:
        """Return a random prompt."""
        return [self._random.randrange(10, 4000) for _ in range(count)]

    def step(self) -> float:
        """Run one step and return how long it took, in seconds."""
        begin = self.clock()
        outputs = self.llm.step()
        now = self.clock()
        for output in outputs:
            answer = self.answers[output.request_id]
            answer.cached = max(answer.cached, output.num_cached_tokens or 0)
            for one in output.prompt_logprobs or ():
                answer.logprobs += [max(each.logprob for each in one.values())] if one else []
            for one in output.outputs:
                answer.each.setdefault(one.index, []).extend(one.token_ids)
                answer.tokens += one.token_ids
                answer.times_s += [now] * len(one.token_ids)
                pairs = zip(one.token_ids, one.logprobs or (), strict=False)
                answer.logprobs += [known[token].logprob for token, known in pairs]
            if output.finished:
                answer.outcome = str(output.outputs[0].finish_reason)
        return now - begin

    def run(self) -> list[float]:
        """Run until nothing is left and return how long the steps took."""
        steps = []
        while self.llm.has_unfinished_requests():
            steps.append(self.step())
        return steps

    def _watch(self) -> None:
        """Note every step the scheduler forms."""
        schedule, update = self.scheduler.schedule, self.scheduler.update_from_output

        def watched_schedule(throttle_prefills: bool = False) -> Any:
            begin = time.thread_time()
            output = schedule(throttle_prefills)
            took = time.thread_time() - begin
            if output.total_num_scheduled_tokens:
                requests = self.scheduler.requests
                prompts = {
                    own_name(name)
                    for name, tokens in output.num_scheduled_tokens.items()
                    if requests[name].num_computed_tokens - tokens
                    < requests[name].num_prompt_tokens
                }
                chunks = {own_name(k): n for k, n in output.num_scheduled_tokens.items()}
                preempted = len(output.preempted_req_ids or ())
                self.formed.append(Formed(chunks, prompts, took, preempted))
            return output

        def watched_update(scheduler_output: Any, model_output: Any) -> Any:
            if scheduler_output.total_num_scheduled_tokens:
                self._pass(scheduler_output.total_num_scheduled_tokens)
            begin = time.thread_time()
            result = update(scheduler_output, model_output)
            if scheduler_output.total_num_scheduled_tokens:
                self.formed[-1].scheduling_s += time.thread_time() - begin
            return result

        self.scheduler.schedule = watched_schedule
        self.scheduler.update_from_output = watched_update

    def without_model(self) -> None:
        """Compute nothing from now on: every forward pass answers at once, always one token.

        With speculation also as many as it takes of the drafts, and new drafts; both by chance.
        """
        from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

        computed: deque[Any] = deque()
        chance, drafted = random.Random(5), list[str]()

        def execute(scheduler_output: Any, non_block: bool = False) -> Any:
            names = list(scheduler_output.num_scheduled_tokens)
            drafts = scheduler_output.scheduled_spec_decode_tokens
            drafted[:] = [n for n in names if not self.scheduler.requests[n].is_prefill_chunk]
            sampled = [
                [11] * (1 + chance.randrange(1 + len(drafts.get(n, ())))) if n in drafted else []
                for n in names
            ]
            index = {name: position for position, name in enumerate(names)}
            output = ModelRunnerOutput(
                req_ids=names, req_id_to_index=index, sampled_token_ids=sampled
            )
            if self.core.batch_queue is None:
                return _done(output) if non_block else output
            if not names:
                return _done(output)
            computed.append(output)
            return _done(None)

        def sample(grammar_output: Any, non_block: bool = False) -> Any:
            assert grammar_output is None
            return _done(computed.popleft()) if non_block else computed.popleft()

        def draft() -> Any:
            most = self.scheduler.num_spec_tokens
            return DraftTokenIds(drafted, [[11] * chance.randrange(1 + most) for _ in drafted])

        self.core.model_executor.take_draft_token_ids = draft
        self.core.model_executor.execute_model = execute
        self.core.model_executor.sample_tokens = sample

    def run_ahead(self) -> None:
        """Form each step while the one before it computes, as vLLM does on a GPU.

        Only for a scheduler made by `make_asynchronous` or `make_pipelined`, and without a model:
        the CPU's model runner knows no steps that overlap.
        """
        self.core.batch_queue_size = 2
        self.core.batch_queue = deque(maxlen=2)
        self.core.step_fn = self.core.step_with_batch_queue
        self.core.async_scheduling = self.scheduler.scheduler_config.async_scheduling

    def set_mode(self, mode: Mode) -> None:
        """Divide steps by `mode`; stock has none."""
        if hasattr(self.scheduler, "change"):
            self.scheduler.change(mode)

    def warm_up(self, prompts: int = 20) -> None:
        """Run what compiles or fills caches on first use, and teach the step-time model.

        A clock of steps is learned from a few prompts: it has no noise.
        """
        self.add("warm-up-decode", 200, 200)
        for index in range(prompts):
            self.add(f"warm-up-{index}", (64, 300, 900, 2500)[index % 4], 4)
            self.run_steps(8)
        self.run()
        self.clear()

    def clear(self) -> None:
        """Forget what was answered and measured."""
        self.answers.clear()
        self.formed.clear()

    def run_steps(self, count: int) -> None:
        """Run at most so many steps."""
        for _ in range(count):
            if self.llm.has_unfinished_requests():
                self.step()

    def preempted(self) -> int:
        """Return how many preemptions were seen in the steps since the last `clear`."""
        return sum(formed.preempted for formed in self.formed)

    def close(self) -> None:
        """End it and give its memory back."""
        self.llm.engine_core.shutdown()


def make_asynchronous(**arguments: Any) -> Any:
    """Return the scheduler that Weir makes where vLLM schedules asynchronously."""
    from weir_engine.scheduling.factory import make_scheduler

    arguments["vllm_config"].scheduler_config.async_scheduling = True
    return make_scheduler(**arguments)


def make_pipelined(**arguments: Any) -> Any:
    """Return the scheduler that Weir makes for a pipeline of two stages."""
    from weir_engine.scheduling.factory import make_scheduler

    arguments["vllm_config"].parallel_config.pipeline_parallel_size = 2
    return make_scheduler(**arguments)


def _keep_kernels() -> None:
    """Have the process's next engine use the kernels that this one registered.

    Registering looks through every loaded module, and fails where that of n-gram speculation is.
    """
    from vllm.platforms import current_platform

    type(current_platform).register_triton_kernel_overrides = classmethod(lambda _: None)


def own_name(name: str) -> str:
    """Return our name of a request, to which vLLM adds a dash and eight digits."""
    return name[:-9]


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def prepare() -> None:
    """Make this process fit for vLLM, before it is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from weir_engine.vllm_metadata import write_vllm_metadata

    if not any(path.endswith("vllm-metadata") for path in sys.path):
        root = write_vllm_metadata(Path(tempfile.mkdtemp(prefix="weir-bench-")))
        if root is not None:
            sys.path.insert(0, str(root))


def model_path(size: str = "") -> Path:
    """Return where the generated model of a size is, made if need be."""
    from weir_engine.tiny.model import prepare as make

    cache = Path(os.environ.get("WEIR_CACHE") or Path.home() / ".cache/weir")
    directory = cache / "models" / (f"tiny-{size}" if size else "tiny")
    make(size, directory)
    return directory
