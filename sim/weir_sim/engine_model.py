"""vLLM's step loop: which tokens each step computes, and how long it takes.

Each step gives one token to every decode and spends what is left of the token budget on prefill
chunks. Two of the three engines (`EngineKind`) are here:

- `FCFS`: prefills that run go on, then the queue in order of arrival; when the KV cache is full
  the request admitted last is preempted and later computed anew.
- `PRIORITY`: the same, but the queue is in order of rank and arrival, and the lowest rank is
  preempted first (`--scheduling-policy priority`).

The third, Weir's own, is `weir_engine_model`: this one with the core's step decisions in it.

Decodes are not visited one by one: all lengths grow by one per step, so the sums follow by
arithmetic and the ends from a heap. A step costs microseconds whatever the batch's size.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from weir_core.sched.types import EngineKind, StepRecord
from weir_sim.kv import SHARED_TOKENS, KvCache
from weir_sim.profiles import EngineProfile


@dataclass(slots=True, eq=False)
class Job:
    """One request inside the engine.

    Attributes:
        output_tokens: How many it will generate; the engine does not look at it before.
        due_s: When its first token is due; only Weir's engine is told.
        hash_ids: Whole shared blocks of its prompt.
        cached: Prompt tokens that were cached when it was admitted first.
        target: Tokens to have in the KV cache before it decodes: the prompt, and after a
            preemption what it had generated.
        computed: Of these, how many are there.
        generated: Output tokens up to the step `decoding_since`.
    """

    request_id: str
    rank: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    due_s: float = math.inf
    hash_ids: Sequence[int] = ()
    cached: int = -1
    seq: int = 0
    epoch: int = 0
    target: int = 0
    computed: int = 0
    generated: int = 0
    decoding_since: int = -1
    private_blocks: int = 0
    has_answered: bool = False


@dataclass(slots=True)
class StepEnd:
    """What a finished step brought."""

    record: StepRecord
    first_tokens: list[Job] = field(default_factory=list)
    finished: list[Job] = field(default_factory=list)


@dataclass(slots=True)
class EngineCounts:
    """Totals since the start.

    Attributes:
        looked_up_tokens: Of prompts that were looked for in the prefix cache; `cached_tokens` of
            them were found.
    """

    steps: int = 0
    busy_s: float = 0.0
    computed_tokens: int = 0
    recomputed_tokens: int = 0
    looked_up_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0


class EngineModel:
    """One engine; the caller tells it when steps begin and end.

    Args:
        profile: How long steps take.
        kind: How requests are ordered.
        shared_tokens: Prompt tokens that one of a job's `hash_ids` stands for.
    """

    def __init__(
        self, profile: EngineProfile, kind: EngineKind, shared_tokens: int = SHARED_TOKENS
    ) -> None:
        self.profile = profile
        self._shared_tokens = shared_tokens
        self.counts = EngineCounts()
        self.step = 0
        self._kind = kind
        self._seq = 0
        self.crash()

    def crash(self) -> None:
        """Lose all requests and the cache; the totals stay."""
        profile = self.profile
        self.kv = KvCache(profile.kv_blocks, profile.block_tokens, self._shared_tokens)
        self._jobs: dict[str, Job] = {}
        self._waiting: list[tuple[tuple[int, float, int], int, Job]] = []
        self._prefilling: list[Job] = []
        self._decoding: dict[str, Job] = {}
        self._ends: list[tuple[int, int, int, Job]] = []
        self._context = 0
        # Step number modulo block size -> decodes that need a new block then.
        self._growing = [0] * profile.block_tokens
        # The last step whose blocks were taken.
        self._grown_step = -1
        self._chunks: list[tuple[Job, int]] = []
        self._pending: StepRecord | None = None

    @property
    def is_stepping(self) -> bool:
        """Return whether a step is under way."""
        return self._pending is not None

    @property
    def running(self) -> int:
        """Return the sequences in the batch."""
        return len(self._decoding) + len(self._prefilling)

    @property
    def waiting(self) -> int:
        """Return the requests in the engine's own queue."""
        return len(self._jobs) - self.running

    def generated(self, job: Job) -> int:
        """Return how many output tokens `job` has so far."""
        if job.decoding_since < 0:
            return job.generated
        return job.generated + self.step - job.decoding_since

    def decodes(self) -> Iterator[Job]:
        """Return the decodes."""
        return iter(self._decoding.values())

    @property
    def chunks(self) -> Sequence[tuple[Job, int]]:
        """Return the prompts of the step formed last, and how many tokens of each it computes."""
        return self._chunks

    def prompts(self) -> Iterator[Job]:
        """Return the requests without a first token."""
        return (job for job in self._jobs.values() if not job.has_answered)

    def could_compute(self, job: Job) -> bool:
        """Return whether `job` has a slot and KV room, or would find both free."""
        if job in self._prefilling:
            return True
        private = self.kv.private_blocks(job.hash_ids, job.target)
        has_room = self.kv.needed(job.hash_ids, private) <= self.kv.available
        return has_room and self.running < self.profile.max_num_seqs

    def add(self, job: Job) -> None:
        """Queue a request."""
        self._seq += 1
        job.seq = self._seq
        job.target = job.prompt_tokens
        self._jobs[job.request_id] = job
        self._enqueue(job)

    def cancel(self, job: Job) -> None:
        """Drop a request, wherever it is, between two steps or during one."""
        if self._jobs.get(job.request_id) is not job:
            return
        del self._jobs[job.request_id]
        self.counts.recomputed_tokens += self._stop(job)
        job.epoch += 1

    def begin(self) -> float | None:
        """Form the next step and return how long it takes, or None with nothing to do."""
        self._chunks = []
        self._form()
        prefill = sum(tokens for _, tokens in self._chunks)
        decodes = len(self._decoding)
        if not prefill and not decodes:
            return None
        attended = sum(n * (job.computed + n // 2) for job, n in self._chunks)
        duration_s = self.profile.step_s(prefill, decodes, attended, self._context)
        self._pending = StepRecord(duration_s, prefill, decodes, attended, self._context)
        self.counts.steps += 1
        self.counts.busy_s += duration_s
        self.counts.computed_tokens += prefill + decodes
        self.counts.output_tokens += decodes
        return duration_s

    def end(self) -> StepEnd:
        """Finish the step under way: every decode has a token, every chunk is computed."""
        assert self._pending is not None, "no step is under way"
        result = StepEnd(self._pending)
        self._pending = None
        self.step += 1
        self._context += len(self._decoding)
        ends = self._ends
        while ends and ends[0][0] <= self.step:
            _, _, epoch, job = heapq.heappop(ends)
            if epoch == job.epoch:
                self._finish(job, result)
        for job, tokens in self._chunks:
            if self._jobs.get(job.request_id) is job:  # not cancelled meanwhile
                self._computed(job, tokens, result)
        return result

    # ---- forming a step

    def _form(self) -> None:
        """Choose the step's chunks, by the rules of vLLM."""
        budget = self.profile.max_num_batched_tokens - len(self._decoding)
        self._grow_decodes()
        for job in self._prefilling:
            budget -= self._chunk(job, budget)
        while budget > 0 and (head := self._head()) is not None and self._admit(head):
            budget -= self._chunk(head, budget)

    def _grow_decodes(self) -> None:
        slot = self.step % self.profile.block_tokens
        while self._growing[slot] and not self.kv.grow(self._growing[slot]):
            victim = self._victim()
            if victim is None:
                return
            self._preempt(victim)
        self._grown_step = self.step

    def _chunk(self, job: Job, most: int) -> int:
        """Compute up to `most` tokens of a prompt in this step, and return how many it is."""
        tokens = min(most, job.target - job.computed)
        if tokens > 0:
            self._chunks.append((job, tokens))
        return max(0, tokens)

    def _admit(self, job: Job) -> bool:
        if self.running >= self.profile.max_num_seqs:
            return False
        private = self.kv.private_blocks(job.hash_ids, job.target)
        cached = self.kv.cached_tokens(job.hash_ids, job.prompt_tokens)
        if not self.kv.admit(job.hash_ids, private):
            return False
        heapq.heappop(self._waiting)
        job.private_blocks = private
        job.computed = cached
        if job.cached < 0:
            job.cached = cached
        self.counts.looked_up_tokens += job.prompt_tokens
        self.counts.cached_tokens += cached
        self._prefilling.append(job)
        return True

    def _head(self) -> Job | None:
        while self._waiting:
            _, epoch, job = self._waiting[0]
            if epoch == job.epoch:
                return job
            heapq.heappop(self._waiting)
        return None

    def _enqueue(self, job: Job) -> None:
        heapq.heappush(self._waiting, (self._key(job), job.epoch, job))

    def _key(self, job: Job) -> tuple[int, float, int]:
        """Return the place of a request in the queue; the last one is preempted first."""
        if self._kind is EngineKind.FCFS:
            return (0, 0.0, job.seq)
        return (-job.rank, job.arrival_s, job.seq)

    # ---- preemption

    def _victim(self) -> Job | None:
        running = [*self._decoding.values(), *self._prefilling]
        return max(running, key=self._key, default=None)

    def _preempt(self, job: Job) -> None:
        self.counts.preemptions += 1
        self.counts.recomputed_tokens += self._stop(job)
        job.epoch += 1
        self._chunks = [(other, tokens) for other, tokens in self._chunks if other is not job]
        self._enqueue(job)

    def _stop(self, job: Job) -> int:
        """Take `job` out of the batch and return the tokens that are lost by it."""
        lost = job.computed
        if job.request_id in self._decoding:
            length = self._leave_decoding(job)
            job.target = lost = length
        elif job in self._prefilling:
            self._prefilling.remove(job)
            self.kv.release(job.hash_ids, job.private_blocks)
        job.computed = 0
        job.private_blocks = 0
        return lost

    # ---- ends of phases

    def _computed(self, job: Job, tokens: int, result: StepEnd) -> None:
        job.computed += tokens
        if job.computed < job.target:
            return
        self._prefilling.remove(job)
        job.generated += 1
        self.counts.output_tokens += 1
        job.decoding_since = self.step
        self._decoding[job.request_id] = job
        self._context += job.target + 1
        self._growing[self._grows_at(job, self.step)] += 1
        if not job.has_answered:
            job.has_answered = True
            result.first_tokens.append(job)
        left = job.output_tokens - job.generated
        if left <= 0:
            self._finish(job, result)
        else:
            heapq.heappush(self._ends, (self.step + left, job.seq, job.epoch, job))

    def _finish(self, job: Job, result: StepEnd) -> None:
        self._leave_decoding(job)
        del self._jobs[job.request_id]
        job.epoch += 1
        result.finished.append(job)

    def _leave_decoding(self, job: Job) -> int:
        """Remove a decode and return its length; `generated` is then up to date."""
        del self._decoding[job.request_id]
        grown = self.step - job.decoding_since
        length = job.target + 1 + grown
        job.generated += grown
        job.decoding_since = -1
        self._context -= length
        self._growing[self._grows_at(job, self.step - grown)] -= 1
        # The block for the newest token is taken when the step that computes it begins.
        stored = length if self._grown_step == self.step else length - 1
        self.kv.release(job.hash_ids, self.kv.private_blocks(job.hash_ids, stored))
        return length

    def _grows_at(self, job: Job, since: int) -> int:
        """Return the residue of the steps in which the first token of a new block comes."""
        return (since - job.target) % self.profile.block_tokens
