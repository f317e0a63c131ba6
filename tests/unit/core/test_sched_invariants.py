"""The scheduler's invariants (docs/invariants.md) under arbitrary, also absurd, histories."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from weir_core.sched.audit import violations
from weir_core.sched.policies import RuleNames
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.types import (
    BUILT_IN_CLASSES,
    Action,
    ClassPolicy,
    Dispatch,
    EngineFacts,
    EngineKind,
    PoolLimits,
    Reject,
    Request,
    Requeue,
    RequeueReason,
    StepRecord,
    TenantPolicy,
)

CLASS_NAMES = ["interactive", "standard", "batch", "twin", "no-such-class"]
ABSURD_COUNTS = st.one_of(st.integers(1, 5000), st.sampled_from([0, -7, 10**9, 10**30]))
MAX_REQUEUES = 2

policies = st.builds(
    ClassPolicy,
    name=st.just(""),
    rank=st.integers(-2, 2),
    weight=st.floats(0.01, 100),
    min_share=st.floats(0, 0.5),
    preemptible=st.booleans(),
    ttft_target_s=st.none() | st.floats(0.001, 30),
    max_queue_wait_s=st.floats(0.01, 100),
    shed=st.sampled_from(["never", "predictive"]),
)


engines = st.builds(
    EngineFacts,
    kind=st.sampled_from(list(EngineKind)),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(1, 3000),
    kv_capacity_tokens=st.integers(10, 20_000),
)


def named(policy: ClassPolicy, name: str) -> ClassPolicy:
    return ClassPolicy(
        name=name,
        rank=policy.rank,
        weight=policy.weight,
        min_share=policy.min_share,
        preemptible=policy.preemptible,
        ttft_target_s=policy.ttft_target_s,
        max_queue_wait_s=policy.max_queue_wait_s,
        shed=policy.shed,
    )


class SchedulerHistory(RuleBasedStateMachine):
    """Sends any events in any order, and follows each request by the actions alone."""

    @initialize(
        engine=st.none() | engines,
        most_waiting=st.integers(1, 12),
        gate=st.sampled_from(["class-aware", "class-blind"]),
    )
    def start(
        self,
        engine: EngineFacts | None,
        most_waiting: int,
        gate: str,
    ) -> None:
        limits = PoolLimits(max_requests=most_waiting, max_bytes=20_000)
        self.scheduler = Scheduler(
            SchedulerSettings(engine, RuleNames(gate=gate), limits), BUILT_IN_CLASSES
        )
        self.now = 0.0
        self.serial = 0
        self.actions: Sequence[Action] = ()
        self.waiting: set[str] = set()
        self.running: dict[str, bool] = {}
        self.requeues: dict[str, int] = {}
        self.ended: set[str] = set()

    def perform(self, actions: Sequence[Action]) -> None:
        self.actions = actions
        for action in actions:
            request_id = action.request_id
            assert request_id not in self.ended
            if isinstance(action, Dispatch):
                self.waiting.remove(request_id)
                self.running[request_id] = False
            elif isinstance(action, Requeue):
                assert not self.running.pop(request_id), "its first byte was sent"
                self.waiting.add(request_id)
                preempted = action.reason is RequeueReason.PREEMPTED
                self.requeues[request_id] = self.requeues.get(request_id, 0) + preempted
                assert self.requeues[request_id] <= MAX_REQUEUES
            else:
                assert isinstance(action, Reject)
                assert 1.0 <= action.retry_after_s < 59.0
                if request_id in self.running:
                    assert not self.running.pop(request_id), "its first byte was sent"
                else:
                    self.waiting.remove(request_id)
                self.ended.add(request_id)

    def chosen(self, among: Sequence[str], index: int) -> str:
        return among[index % len(among)] if among else "nobody"

    @rule(
        class_name=st.sampled_from(CLASS_NAMES),
        tenant=st.sampled_from(["a", "b", "c"]),
        body_bytes=st.integers(0, 30_000),
        prompt_tokens=st.none() | ABSURD_COUNTS,
        cached_tokens=ABSURD_COUNTS,
        max_output_tokens=st.none() | ABSURD_COUNTS,
        age_s=st.floats(0, 20),
        ttft_target_s=st.none() | st.floats(0, 100),
        sequences=st.one_of(st.just(1), st.sampled_from([-3, 0, 2, 5, 10**9])),
    )
    def arrives(
        self,
        *,
        class_name: str,
        tenant: str,
        body_bytes: int,
        prompt_tokens: int | None,
        cached_tokens: int,
        max_output_tokens: int | None,
        age_s: float,
        ttft_target_s: float | None,
        sequences: int,
    ) -> None:
        self.serial += 1
        request_id = f"r{self.serial}"
        self.waiting.add(request_id)
        self.perform(
            self.scheduler.on_arrival(
                Request(
                    request_id=request_id,
                    tenant=tenant,
                    class_name=class_name,
                    arrival_s=self.now - age_s,
                    body_bytes=body_bytes,
                    prompt_tokens=prompt_tokens,
                    cached_tokens=cached_tokens,
                    max_output_tokens=max_output_tokens,
                    ttft_target_s=ttft_target_s,
                    sequences=sequences,
                ),
                self.now,
            )
        )

    @rule(index=st.integers(0, 50), exact=st.none() | ABSURD_COUNTS)
    def answers(self, index: int, exact: int | None) -> None:
        request_id = self.chosen(list(self.running), index)
        if request_id in self.running:
            self.running[request_id] = True
        self.perform(self.scheduler.on_first_token(request_id, self.now, exact))

    @rule(index=st.integers(0, 50))
    def is_taken_to_be_prefilled(self, index: int) -> None:
        request_id = self.chosen(list(self.running), index)
        if request_id in self.running:
            self.running[request_id] = True
        self.perform(self.scheduler.on_prefilled(request_id, self.now))

    @rule(index=st.integers(0, 50), count=st.integers(-5, 10_000))
    def generates(self, index: int, count: int) -> None:
        request_id = self.chosen(list(self.running), index)
        self.perform(self.scheduler.on_tokens(request_id, count, self.now))

    @rule(index=st.integers(0, 50), prompt=st.none() | ABSURD_COUNTS, output=ABSURD_COUNTS)
    def finishes(self, index: int, prompt: int | None, output: int) -> None:
        request_id = self.chosen(list(self.running), index)
        if self.running.pop(request_id, None) is not None:
            self.ended.add(request_id)
        self.perform(self.scheduler.on_finish(request_id, self.now, prompt, output))

    @rule(index=st.integers(0, 50))
    def client_leaves(self, index: int) -> None:
        request_id = self.chosen([*sorted(self.waiting), *self.running], index)
        if request_id in self.waiting or request_id in self.running:
            self.waiting.discard(request_id)
            self.running.pop(request_id, None)
            self.ended.add(request_id)
        self.perform(self.scheduler.on_abort(request_id, self.now))

    @rule(
        duration_s=st.floats(-1, 1e6),
        prefill=st.integers(0, 10_000),
        decodes=st.integers(0, 500),
        context=st.integers(0, 10**9),
    )
    def steps(self, duration_s: float, prefill: int, decodes: int, context: int) -> None:
        record = StepRecord(duration_s, prefill, decodes, context, context)
        self.perform(self.scheduler.on_step(record, self.now))

    @rule(
        class_name=st.sampled_from(CLASS_NAMES),
        tenant=st.sampled_from(["a", "b", "of another replica"]),
        tokens=st.sampled_from([0, 1, 5000, 1 << 53]),
    )
    def is_served_elsewhere(self, class_name: str, tenant: str, tokens: float) -> None:
        self.scheduler.on_served_elsewhere(class_name, tenant, tokens)
        self.actions = ()
        for each in self.scheduler.served_lately(self.now).sums:
            assert 0 <= each.tokens <= 1 << 53

    @rule()
    def engine_goes(self) -> None:
        self.perform(self.scheduler.on_engine_gone(self.now))
        for request_id in list(self.running):  # begun answers end with it
            del self.running[request_id]
            self.ended.add(request_id)
            self.perform(self.scheduler.on_abort(request_id, self.now))

    @rule(engine=engines)
    def engine_is_up(self, engine: EngineFacts) -> None:
        self.perform(self.scheduler.on_engine_up(engine, self.now))

    @rule(passed_s=st.floats(0, 20))
    def time_passes(self, passed_s: float) -> None:
        self.now += passed_s
        self.perform(self.scheduler.on_tick(self.now))

    @rule(passed_s=st.floats(0, 20))
    def time_passes_unseen(self, passed_s: float) -> None:
        """What time alone changes has a tick, so nothing changes before the next one."""
        due_s = self.scheduler.next_tick(self.now)
        before_s = math.inf if due_s is None else math.nextafter(due_s, -math.inf)
        self.now = max(self.now, min(self.now + passed_s, before_s))
        self.actions = ()

    @rule(drawn=st.lists(policies, min_size=1, max_size=4), weight=st.floats(0.01, 100))
    def is_configured(self, drawn: list[ClassPolicy], weight: float) -> None:
        classes = [named(policy, CLASS_NAMES[index]) for index, policy in enumerate(drawn)]
        tenants = [TenantPolicy("a", weight, max_requests=3), TenantPolicy("b", 1.0, None, 6000)]
        self.perform(self.scheduler.configure(classes, tenants, self.now))

    @invariant()
    def holds(self) -> None:
        assert violations(self.scheduler, self.actions, self.now) == []
        tickets = self.scheduler.tickets
        assert set(tickets) == self.waiting | set(self.running)
        assert self.scheduler.counts.outcomes == len(self.ended)
        next_tick = self.scheduler.next_tick(self.now)
        assert next_tick is None or not math.isnan(next_tick)


TestSchedulerHistory = SchedulerHistory.TestCase
TestSchedulerHistory.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
