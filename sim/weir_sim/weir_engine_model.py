"""vLLM's step loop with Weir's scheduler in it: the decisions are those of `weir_core.step`.

What `weir_engine.scheduling` does inside vLLM is done here in the same order: room is made for
the most urgent waiting request, the step is planned, vLLM's own loop asks the plan what each
prompt gets, and the step's time is learned from. Left out is what vLLM alone can refuse
(adapters, KV connectors).
"""

from __future__ import annotations

import heapq
from itertools import groupby, zip_longest

from weir_core.sched.types import EngineKind
from weir_core.step.mode import Mode
from weir_core.step.order import Prompt
from weir_core.step.plan import Plan, Planner
from weir_core.step.victim import Holder, Need, Preemptions
from weir_core.wire.priority import engine_priority
from weir_sim.engine_model import EngineModel, Job, StepEnd
from weir_sim.kv import SHARED_TOKENS
from weir_sim.profiles import EngineProfile

_LOOKED_AT = 4
"""Waiting requests that a plan reckons with, in each class."""


def make_engine_model(
    profile: EngineProfile,
    kind: EngineKind,
    mode: Mode | None = None,
    shared_tokens: int = SHARED_TOKENS,
) -> EngineModel:
    """Return the model of an engine of this kind; only Weir's has a mode."""
    if kind is EngineKind.WEIR:
        return WeirEngineModel(profile, mode, shared_tokens)
    return EngineModel(profile, kind, shared_tokens)


class WeirEngineModel(EngineModel):
    """One engine with Weir's scheduler."""

    def __init__(
        self,
        profile: EngineProfile,
        mode: Mode | None = None,
        shared_tokens: int = SHARED_TOKENS,
    ) -> None:
        self._started_with = mode
        super().__init__(profile, EngineKind.WEIR, shared_tokens)

    def crash(self) -> None:
        """Lose all requests, the cache, and what was learned."""
        super().crash()
        most = self.profile.max_num_batched_tokens
        self._planner = Planner(most, self._started_with)
        self._preemptions = Preemptions(2 * most)

    @property
    def mode(self) -> Mode:
        """Return how steps are divided."""
        return self._planner.mode

    def change(self, mode: Mode) -> None:
        """Divide steps by another mode from the next one on."""
        self._planner.change(mode)

    def end(self) -> StepEnd:
        """Finish the step under way, and learn from it."""
        chunks = self._chunks
        result = super().end()
        decoding = [
            (job.request_id, job.rank)
            for job, _ in chunks
            if self._decoding.get(job.request_id) is job
        ]
        # While anything decodes, steps follow each other at once: time that is busy is time.
        self._planner.stepped(result.record, decoding, self.counts.busy_s)
        self._preemptions.earn(result.record.prefill_tokens + result.record.decodes)
        return result

    def _form(self) -> None:
        head = self._head()
        if head is None and not self._prefilling:
            self._grow_decodes()
            return
        if head is not None:
            self._make_room(head)
        begun = [_prompt(job, job.computed) for job in self._prefilling]
        candidates = self._candidates(begun)
        plan = self._planner.plan(
            self.counts.busy_s,
            len(self._decoding),
            self._context,
            begun + [_prompt(job, self._cached(job), waits=True) for job in candidates],
        )
        self._grow_decodes()
        for job in self._prefilling:
            self._chunk(job, plan.chunks.get(job.request_id, 0))
        self._admit_planned(plan, candidates)

    def _admit_planned(self, plan: Plan, candidates: list[Job]) -> None:
        if not candidates:
            plan.grants = None  # what is left is for whoever is admitted
        if plan.grants is None:
            self._admit_by(plan)
            return
        # By shares a lower class may have its part while a higher one has had its own.
        turn = {job.request_id for job in candidates if plan.chunks[job.request_id]}
        everyone = self._waiting
        rest = [entry for entry in everyone if entry[2].request_id not in turn]
        self._waiting = [entry for entry in everyone if entry[2].request_id in turn]
        heapq.heapify(self._waiting)
        self._admit_by(plan)
        self._waiting += rest
        heapq.heapify(self._waiting)

    def _admit_by(self, plan: Plan) -> None:
        while (head := self._head()) is not None and self.running < self.profile.max_num_seqs:
            done = self._cached(head)
            tokens = plan.admit(head.rank, head.target - done, done)
            if not tokens or not self._admit(head):
                return
            self._chunk(head, tokens)

    def _candidates(self, begun: list[Prompt]) -> list[Job]:
        """Return the waiting requests to reckon with, as far as there is room for them."""
        slots = min(_LOOKED_AT, self.profile.max_num_seqs - self.running)
        if slots <= 0:
            return []
        if self._planner.mode.kind == "custom":
            heads = self._heads_by_rank(slots)
        else:
            heads = self._heads_before(max((one.urgency for one in begun), default=None), slots)
        free, found = self.kv.available, []
        for job in heads:
            free -= self._blocks(job)
            if free < 0:
                break
            found.append(job)
        return found

    def _heads_by_rank(self, count: int) -> list[Job]:
        """Return the first of each class, then the second of each, and so on."""
        entries = [entry for entry in self._waiting if entry[1] == entry[2].epoch]
        by_rank = groupby(sorted(entries, key=_rank), key=_rank)
        heads = [[entry[2] for entry in heapq.nsmallest(count, ones)] for _, ones in by_rank]
        return [job for ones in zip_longest(*heads) for job in ones if job is not None]

    def _heads_before(self, last: int | None, count: int) -> list[Job]:
        """Return the first ones of all that go before a begun prompt of this urgency."""
        taken: list[tuple[tuple[int, float, int], int, Job]] = []
        while last is not None and len(taken) < count and (head := self._head()) is not None:
            if _urgency(head) >= last:
                break
            taken.append(heapq.heappop(self._waiting))
        for entry in taken:
            heapq.heappush(self._waiting, entry)
        return [entry[2] for entry in taken]

    def _cached(self, job: Job) -> int:
        return self.kv.cached_tokens(job.hash_ids, job.prompt_tokens)

    def _make_room(self, head: Job) -> None:
        """Preempt for the most urgent waiting request what it lacks, if lower ranks have it."""
        need = Need(
            head.rank,
            slots=0 if self.running < self.profile.max_num_seqs else 1,
            blocks=max(0, self._blocks(head) - self.kv.available),
        )
        if not (need.slots or need.blocks):
            return
        if not self._preemptions.is_worth_a_look(head.request_id):
            return
        jobs = {
            job.request_id: job
            for job in (*self._decoding.values(), *self._prefilling)
            if job.rank < head.rank
        }
        victims = self._preemptions.choose(need, [self._holder(job) for job in jobs.values()])
        self._preemptions.looked(head.request_id, victims)
        for victim in victims:
            self._preempt(jobs[victim.request_id])

    def _holder(self, job: Job) -> Holder:
        decodes = job.decoding_since >= 0
        computed = job.target + self.step - job.decoding_since if decodes else job.computed
        stored = computed if decodes else job.target
        # Blocks that others share stay; counting none of the shared ones errs towards nobody.
        blocks = self.kv.private_blocks(job.hash_ids, stored)
        return Holder(job.request_id, job.rank, computed, blocks)

    def _blocks(self, job: Job) -> int:
        return self.kv.needed(job.hash_ids, self.kv.private_blocks(job.hash_ids, job.target))

    def _key(self, job: Job) -> tuple[int, float, int]:
        return (_urgency(job), job.arrival_s, job.seq)

    def _stop(self, job: Job) -> int:
        if self._jobs.get(job.request_id) is not job:
            self._preemptions.forget(job.request_id)
        return super()._stop(job)

    def _finish(self, job: Job, result: StepEnd) -> None:
        super()._finish(job, result)
        self._preemptions.forget(job.request_id)

    def _leave_decoding(self, job: Job) -> int:
        self._planner.pace.gone(job.request_id)
        return super()._leave_decoding(job)


def _rank(entry: tuple[tuple[int, float, int], int, Job]) -> int:
    return -entry[2].rank


def _urgency(job: Job) -> int:
    return engine_priority(job.rank, job.due_s)


def _prompt(job: Job, done: int, *, waits: bool = False) -> Prompt:
    return Prompt(job.request_id, job.rank, _urgency(job), job.target - done, done, waits)
