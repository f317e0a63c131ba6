"""vLLM's step loop with Weir's scheduler in it: the decisions are those of `weir_core.step`.

What `weir_engine.scheduling` does inside vLLM is done here in the same order: room is made for
the most urgent waiting request, the step is planned, vLLM's own loop asks the plan what each
prompt gets, and the step's time is learned from. Left out is what vLLM alone can refuse
(adapters, KV connectors), and mode `custom`, for which no simulated system asks.
"""

from __future__ import annotations

import heapq

from weir_core.sched.types import EngineKind
from weir_core.step.mode import Mode
from weir_core.step.order import Prompt
from weir_core.step.plan import Plan, Planner
from weir_core.step.victim import Holder, Need, Preemptions
from weir_core.wire.priority import engine_priority
from weir_sim.engine_model import EngineModel, Job, StepEnd
from weir_sim.profiles import EngineProfile

_LOOKED_AT = 4
"""Waiting requests that a plan reckons with."""


def make_engine_model(
    profile: EngineProfile, kind: EngineKind, mode: Mode | None = None
) -> EngineModel:
    """Return the model of an engine of this kind; only Weir's has a mode."""
    if kind is EngineKind.WEIR:
        return WeirEngineModel(profile, mode)
    return EngineModel(profile, kind)


class WeirEngineModel(EngineModel):
    """One engine with Weir's scheduler."""

    def __init__(self, profile: EngineProfile, mode: Mode | None = None) -> None:
        super().__init__(profile, EngineKind.WEIR)
        most = profile.max_num_batched_tokens
        self._planner = Planner(most, mode)
        self._preemptions = Preemptions(2 * most)

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
        plan = self._plan()
        self._grow_decodes()
        for job in self._prefilling:
            self._chunk(job, plan.chunks.get(job.request_id, 0))
        self._admit_by(plan)

    def _plan(self) -> Plan:
        begun = [_prompt(job, job.computed) for job in self._prefilling]
        return self._planner.plan(
            self.counts.busy_s, len(self._decoding), self._context, begun + self._candidates(begun)
        )

    def _admit_by(self, plan: Plan) -> None:
        while (head := self._head()) is not None and self.running < self.profile.max_num_seqs:
            done = self.kv.cached_tokens(head.hash_ids, head.prompt_tokens)
            tokens = plan.admit(head.rank, head.target - done, done)
            if not tokens or not self._admit(head):
                return
            self._chunk(head, tokens)

    def _candidates(self, begun: list[Prompt]) -> list[Prompt]:
        """Return the waiting prompts that go before a begun one and would find room."""
        slots = self.profile.max_num_seqs - self.running
        last = max((prompt.urgency for prompt in begun), default=None)
        found: list[Prompt] = []
        free = self.kv.available
        taken = []
        while last is not None and len(found) < min(_LOOKED_AT, slots) and self._head() is not None:
            taken.append(heapq.heappop(self._waiting))
            job = taken[-1][2]
            free -= self._blocks(job)
            if _urgency(job) >= last or free < 0:
                break
            found.append(
                _prompt(job, self.kv.cached_tokens(job.hash_ids, job.prompt_tokens), waits=True)
            )
        for entry in taken:
            heapq.heappush(self._waiting, entry)
        return found

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


def _urgency(job: Job) -> int:
    return engine_priority(job.rank, job.due_s)


def _prompt(job: Job, done: int, *, waits: bool = False) -> Prompt:
    return Prompt(job.request_id, job.rank, _urgency(job), job.target - done, done, waits)
