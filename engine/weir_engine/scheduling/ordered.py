"""Weir's order inside vLLM: a plan before each step, and a word in its forming.

vLLM's `schedule` stays as it is. Before it, the plan is made and room is preempted for a higher
class that lacks a slot or KV blocks; during it, vLLM asks `_reserve_prefill_lookahead` of every
request how many tokens it may have (and `_try_schedule_encoder_inputs` before that, of those with
images), and the plan answers. A prompt that is to sit a step out is given none: it keeps its slot
and its blocks, and stays a candidate for vLLM's own preemption.

For decodes, and in steps without prompts, nothing is asked that vLLM would not ask anyway.
"""

from __future__ import annotations

import heapq
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from weir_core.sched.types import StepRecord
from weir_core.step.mode import Mode
from weir_core.step.order import Prompt
from weir_core.step.plan import Plan, Planner
from weir_core.step.victim import Preemptions
from weir_core.wire.priority import rank_of
from weir_engine.scheduling import contract
from weir_engine.scheduling.log import FormedStep, StepLog
from weir_engine.scheduling.room import LOOKED_AT, Room
from weir_engine.scheduling.telling import ModeReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOT_RECKONED_STEPS: Final = 8
"""Steps for which waiting requests are left out of plans after one that vLLM did not admit, and
for which a prompt that vLLM could not go on with, for want of room for its images, comes last."""
LAST: Final = 1 << 64
"""Added to an urgency, makes it come after all others."""


class StepOrder(StepLog):
    """A mixin over vLLM's scheduler; `orders` set to False leaves every step to vLLM."""

    modes: ModeReader | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.missing += contract.missing_attributes(self, contract.ORDER_ATTRIBUTES)
        self.orders = not self.missing
        if not self.orders:
            return
        stages = self.vllm_config.parallel_config.pipeline_parallel_size
        self.planner = Planner(self.max_num_scheduled_tokens, stages=stages)
        self.room = Room(self, Preemptions(2 * self.max_num_scheduled_tokens))
        self._most_decode_tokens = 1 + self.num_spec_tokens
        # Adapters of the requests in the batch, those that sit the step out included.
        self._adapters: set[int] = set()
        # The class of the first waiting request whose adapter has no place.
        self._rank_without_place: int | None = None
        # Sessions that decode, which stop to wait for input without ending.
        self._sessions: set[str] = set()
        self._plan: Plan | None = None
        # What the plan gave to waiting requests that vLLM is about to admit.
        self._admitted: dict[str, int] = {}
        # A waiting request got nothing: nor does any behind it.
        self._is_full = False
        self._not_reckoned = 0
        # Begun prompts that vLLM could not go on with, and until which step they come last.
        self._stuck: dict[str, int] = {}
        # Drafters of several tokens want the end of a prompt in one chunk; others want nothing.
        self._reserves_nothing = self.num_prefill_lookahead <= 1 and self.lora_config is None

    def form(self, throttle_prefills: bool) -> Any:
        """Form the next step by a plan, where prompts want to be computed."""
        if not self.orders:
            return super().form(throttle_prefills)
        self._hear()
        if not (self.waiting or self._inflight_prefills):
            return self._noted(super().form(throttle_prefills))
        self._note_adapters()
        self.room.make()
        prompts = list(self._begun())
        candidates = self._candidates(prompts)
        prompts += map(self._waiting_prompt, candidates)
        begun = prompts[: len(prompts) - len(candidates)]
        tokens, context, others = self._next_decodes(begun)
        self._plan = plan = self.planner.plan(self.clock(), tokens, context, prompts, others)
        try:
            output = self._form_planned(throttle_prefills, plan, candidates)
        finally:
            self._plan = None
            self._admitted.clear()
            self._is_full = False
        self._not_reckoned = self._disappointment(output, candidates, plan)
        if not throttle_prefills:
            self._note_stuck(output, begun, plan)
        return self._noted(output)

    def mode_kind(self) -> str:
        """Return the mode that divides the steps."""
        return self.planner.mode.kind if self.orders else super().mode_kind()

    def on_step(self, formed: FormedStep, duration_s: float) -> None:
        """Learn from a step that ended."""
        if not self.orders:
            return
        record = StepRecord(
            duration_s, formed.prefill_tokens, formed.decode_tokens,
            formed.prefill_context, formed.decode_context,
        )  # fmt: skip
        decoding = [one for one in formed.decoding if self._decodes(one[0])]
        known = len(self.planner.pace)
        part = min(1.0, formed.decodes / known) if self.use_pp and known else 1.0
        self.planner.stepped(record, decoding, self.clock(), part)
        self.room.preemptions.earn(formed.prefill_tokens + formed.decodes)
        self._note_sessions(decoding)

    def _note_sessions(self, decoding: list[tuple[str, int]]) -> None:
        """Note the sessions that decode no more because they wait for input, or for a slot."""
        self._sessions.update(name for name, _ in decoding if self.requests[name].resumable)
        for name in [name for name in self._sessions if not self._decodes(name)]:
            self._sessions.discard(name)
            self.planner.pace.gone(name)

    def _next_decodes(self, begun: list[Prompt]) -> tuple[int, int, int]:
        """Return the next step's decode tokens, the tokens they attend to, and the other decodes.

        Only with drafts or in a pipeline do decodes differ, so that each is looked at.
        """
        if not (self.num_spec_tokens or self.use_pp):
            held = self.held_tokens - sum(prompt.done for prompt in begun)
            return len(self.running) - len(begun), max(0, held), 0
        tokens = context = others = 0
        for request in self.running:
            if request.is_prefill_chunk:
                continue
            if wanted := self._decode_tokens(request):
                tokens += wanted
                context += request.num_computed_tokens
            else:
                others += 1
        return tokens, context, others

    def _decode_tokens(self, request: Any) -> int:
        """Return what a decode gets in the next step: one token and its drafts, or nothing yet."""
        if self.current_step + 1 < request.next_decode_eligible_step:
            return 0
        known = request.num_tokens_with_spec + request.num_output_placeholders
        return max(0, int(known - request.num_computed_tokens))

    def _decodes(self, request_id: str) -> bool:
        """Return whether a request whose prompt a step completed is still in the batch with it.

        Where steps overlap, the next one is formed by now: it told of who was aborted or
        preempted meanwhile, and nobody will tell of them again.
        """
        request = self.requests.get(request_id)
        is_running = request is not None and request.status.name == "RUNNING"
        return is_running and request not in self._inflight_prefills

    def _reserve_prefill_lookahead(
        self, request: Any, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        if not self.orders:
            return super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        if num_new_tokens == 1 and self._reserves_nothing and not self._is_full:
            return 1  # a decode, mostly: hundreds in each step
        wanted = self._cut(request, num_computed_tokens, num_new_tokens)
        return super()._reserve_prefill_lookahead(request, num_computed_tokens, wanted)

    def _try_schedule_encoder_inputs(
        self,
        request: Any,
        num_computed_tokens: int,
        num_new_tokens: int,
        encoder_compute_budget: int,
        shift_computed_tokens: int = 0,
    ) -> tuple[list[int], int, int, list[int], list[int]]:
        """Cut a prompt before vLLM chooses its images: it keeps room for those it chose."""
        if self.orders:
            num_new_tokens = self._cut(request, num_computed_tokens, num_new_tokens)
        if num_new_tokens == 0:
            return [], 0, encoder_compute_budget, [], []
        return super()._try_schedule_encoder_inputs(
            request, num_computed_tokens, num_new_tokens, encoder_compute_budget,
            shift_computed_tokens,
        )  # fmt: skip

    def _cut(self, request: Any, done: int, wanted: int) -> int:
        """Return what the plan leaves of the tokens that vLLM wants to give a request.

        vLLM 0.32 admits none behind a waiting request that gets nothing; later ones pass it over,
        and would admit a lower class in its place.
        """
        plan = self._plan
        if plan is None or not wanted:
            return wanted
        if request.status.name == "RUNNING":
            return self._given(plan, request, done, wanted)
        given = 0 if self._is_full else self._given(plan, request, done, wanted)
        self._is_full = not given
        return given

    def _given(self, plan: Plan, request: Any, done: int, wanted: int) -> int:
        if self.lora_config is not None and not self._take_place(request):
            return 0
        if wanted <= self._most_decode_tokens:
            return wanted
        planned = self._planned(plan, request, done)
        # Where images are not to be cut in two, such a prompt gets its chunk whole, or none.
        uncut = request.has_encoder_inputs and self.scheduler_config.disable_chunked_mm_input
        return wanted if uncut and planned else min(planned, wanted)

    def _note_adapters(self) -> None:
        if self.lora_config is None:
            return
        self._adapters = {
            request.lora_request.lora_int_id for request in self.running if request.lora_request
        }
        first = self.room.first(self.waiting._heap, LOOKED_AT)
        without = (one for one in first if not self._has_place(one))
        self._rank_without_place = next((rank_of(one.priority) for one in without), None)

    def _may_enter(self, request: Any) -> bool:
        """Return whether a waiting request's adapter has a place, and no higher class wants it.

        Adapters of lower classes would else keep a higher one's out for as long as requests for
        them keep coming.
        """
        if self.lora_config is None or request.lora_request is None:
            return True
        wanted = self._rank_without_place
        gives_way = wanted is not None and rank_of(request.priority) < wanted
        return not gives_way and self._has_place(request)

    def _has_place(self, request: Any) -> bool:
        """Return whether a request's adapter has a place beside those of the whole batch.

        vLLM counts only adapters that this step computes. That of a prompt which sits it out
        would be one too many when the prompt goes on.
        """
        if self.lora_config is None or request.lora_request is None:
            return True
        is_held = request.lora_request.lora_int_id in self._adapters
        return is_held or len(self._adapters) < self.lora_config.max_loras

    def _take_place(self, request: Any) -> bool:
        """Return whether it has a place, and note that the adapter has it from now on."""
        if not self._has_place(request):
            return False
        if request.lora_request is not None:
            self._adapters.add(request.lora_request.lora_int_id)
        return True

    def _planned(self, plan: Plan, request: Any, done: int) -> int:
        name, left = request.request_id, int(request.num_tokens - done)
        if request.status.name == "RUNNING":
            # What is neither begun nor waiting decodes, with drafts to verify.
            return plan.chunks.get(name, left)
        if name not in self._admitted:  # asked for twice where there are images
            self._admitted[name] = plan.admit(rank_of(request.priority), left, done)
        return self._admitted[name]

    def _begun(self) -> Iterator[Prompt]:
        for request in self._inflight_prefills:
            if request.status.name == "RUNNING":  # others wait for KV blocks from elsewhere
                done = request.num_computed_tokens
                is_last = self._stuck.get(request.request_id, 0) > self.current_step
                yield Prompt(
                    request.request_id, rank_of(request.priority),
                    request.priority + LAST * is_last, request.num_tokens - done, done,
                )  # fmt: skip

    def _waiting_prompt(self, request: Any) -> Prompt:
        # What holds KV blocks already was computed so far: a session's turn, what was loaded.
        done = request.num_computed_tokens
        if not done:
            done = self.kv_cache_manager.get_computed_blocks(request)[1]
        return Prompt(
            request.request_id, rank_of(request.priority), request.priority,
            request.num_tokens - done, done, waits=True,
        )  # fmt: skip

    def _candidates(self, begun: list[Prompt]) -> list[Any]:
        """Return the waiting requests to reckon with: those that go before a begun prompt."""
        slots = self.room.free_slots()
        if self._not_reckoned or slots <= 0 or not (self.waiting or self.kv_holding_waiting):
            return []
        custom = self.planner.mode.kind == "custom"
        last = max((prompt.urgency for prompt in begun), default=None)
        if not custom and last is None:
            return []
        count = min(LOOKED_AT, slots)
        held = list(self.room.ready(self.kv_holding_waiting._heap, count))
        if custom:
            heads = [self.room.ready(heap, count) for heap in self._heaps()]
            # The first of each class, then the second: none takes all the KV blocks in the plan.
            in_turn = [one for ones in zip_longest(*heads) for one in ones if one is not None]
            return held + self.room.fitting(in_turn)
        queue = self.waiting
        if held or (queue and last is not None and queue.peek_request().priority < last):
            held += self.room.fitting(self.room.ready(queue._heap, count))
        return [one for one in held if last is None or one.priority < last][:count]

    def _heaps(self) -> list[list[Any]]:
        """Return the waiting requests by rank."""
        heaps: dict[int, list[Any]] = {}
        for request in self.waiting._heap:
            heapq.heappush(heaps.setdefault(rank_of(request.priority), []), request)
        return list(heaps.values())

    def _form_planned(self, throttle_prefills: bool, plan: Plan, candidates: list[Any]) -> Any:
        if not candidates:
            plan.grants = None  # what is left is for whom vLLM admits
        turn = {one for one in candidates if plan.chunks[one.request_id]}

        def is_passed_over(one: Any) -> bool:  # who cannot be admitted anyway may be seen
            return one not in turn and self.room.is_ready(one)

        with ExitStack() as hidden:
            if candidates:
                # vLLM admits these before all others, whatever their class.
                hidden.enter_context(self._hiding(self.kv_holding_waiting, is_passed_over))
            if plan.grants is not None:
                # None is admitted behind a waiting request that gets nothing, but by shares a lower
                # class may have its part while a higher one has had its own.
                hidden.enter_context(self._hiding(self.waiting, is_passed_over))
            elif self._rank_without_place is not None:
                hidden.enter_context(
                    self._hiding(self.waiting, lambda one: not self._may_enter(one))
                )
            return super().form(throttle_prefills)

    @contextmanager
    def _hiding(self, queue: Any, hides: Callable[[Any], bool]) -> Iterator[None]:
        """Hide some of a queue from vLLM."""
        hidden = [one for one in queue._heap if hides(one)]
        if hidden:
            queue.remove_requests(set(hidden))
        try:
            yield
        finally:
            queue.prepend_requests(hidden)

    def _disappointment(self, output: Any, candidates: list[Any], plan: Plan) -> int:
        """Return for how many steps not to reckon with waiting requests.

        What was set aside for one that vLLM did not admit after all, say for want of an adapter's
        place, was lost to the others, among them perhaps who holds what it waits for.
        """
        if not any(plan.chunks[one.request_id] for one in candidates):
            return max(0, self._not_reckoned - 1)
        is_any_admitted = output.scheduled_new_reqs or any(
            one.request_id in output.num_scheduled_tokens for one in candidates
        )
        return 0 if is_any_admitted else NOT_RECKONED_STEPS

    def _note_stuck(self, output: Any, begun: list[Prompt], plan: Plan) -> None:
        """Note whom vLLM could not go on with although there were tokens for it.

        The room for images that it waits for may be with a prompt that comes after it.
        """
        now = self.current_step
        if self._stuck:
            self._stuck = {name: until for name, until in self._stuck.items() if until > now}
        for prompt in begun:
            name = prompt.request_id
            if plan.chunks[name] and name not in output.num_scheduled_tokens:
                self._stuck[name] = now + NOT_RECKONED_STEPS

    def _noted(self, output: Any) -> Any:
        """Note who decodes no more."""
        for request_id in output.finished_req_ids:
            self.planner.pace.gone(request_id)
            self.room.preemptions.forget(request_id)
        for request_id in output.preempted_req_ids or ():
            self.planner.pace.gone(request_id)
        return output

    def _hear(self) -> None:
        message = self.modes.newest() if self.modes is not None else None
        if message is not None and (mode := message.for_steps()) != self.planner.mode:
            self.change(mode)

    def change(self, mode: Mode) -> None:
        """Divide steps by another mode from the next one on."""
        self.planner.change(mode)
