"""Every instrument of the sidecar, bound to the registry it is given.

Names have the prefix `weir_` and base units; label sets are closed. docs/metrics.md describes
each one, and a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, generate_latest
from prometheus_client.registry import Collector

from weir_core.sched.types import Reason
from weir_core.wire.fields import Usage
from weir_core.wire.steps import Facts, Step
from weir_sidecar.outcomes import Outcome
from weir_sidecar.settings import Identity
from weir_sidecar.telemetry.instruments import Count, FastCounter, FastHistogram

METRICS_HEADERS: Final = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
"""Of a page of metrics."""
_LATENCY_BUCKETS_S: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600,
)  # fmt: skip
_SIZE_BUCKETS_BYTES: Final = tuple(256 * 4**power for power in range(10))


_RATIO_BUCKETS: Final = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4, 10)
_STEP_BUCKETS_S: Final = (
    0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 1,
)  # fmt: skip

NO_CLASS: Final = "none"
"""The `class` of requests that ended before they had one."""
OTHER_TENANTS: Final = "other"
"""The `tenant` of all beyond the first `MAX_TENANTS`."""
MAX_TENANTS: Final = 64
NO_TENANT: Final = "none"
"""The `tenant` of requests that ended before they had one."""
_OTHER_MODELS: Final = "other"
_MAX_USED: Final = 256
"""Tenants, classes and models whose usage is told apart."""
_CLIENTS_DOING: Final = frozenset(
    {
        Outcome.CLIENT_GONE,
        Outcome.CLIENT_SLOW,
        Outcome.REJECTED_TENANT_LIMIT,
    }
)
"""Outcomes that say nothing about a target, unless a first token came before them."""
_MAX_NOTED: Final = 256


class _BeforeAll(Collector):
    """Registered first, and so read first: counts what was only noted.

    Args:
        count: Does so.
    """

    def __init__(self, count: Callable[[], None]) -> None:
        self._count = count

    def describe(self) -> Iterable[Metric]:
        """Return that nothing is exported."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Count; there is nothing to export."""
        self._count()
        return []


class ClassMetrics:
    """What is counted for each priority class.

    Args:
        name: The class.
        metrics: The instruments, of which this binds one label.
    """

    def __init__(self, name: str, metrics: Metrics) -> None:
        self._name = name
        self._metrics = metrics
        self._requests: dict[Outcome, Count] = {}
        self._rejections: dict[Reason, Count] = {}
        self.ttft = metrics.ttft.labels(name)
        self.duration = metrics.duration.labels(name)
        self.queue_wait = metrics.queue_wait.labels(name)
        self.preemptions = metrics.preemptions.labels(name)
        self.min_share_dispatches = metrics.min_share_dispatches.labels(name)

    def requests(self, outcome: Outcome) -> Count:
        """Return the counter of one outcome."""
        counter = self._requests.get(outcome)
        if counter is None:
            counter = self._metrics.requests.labels(self._name, outcome.value)
            self._requests[outcome] = counter
        return counter

    def rejections(self, reason: Reason) -> Count:
        """Return the counter of one reason."""
        counter = self._rejections.get(reason)
        if counter is None:
            label = reason.value.removeprefix("rejected-").replace("-", "_")
            counter = self._metrics.rejections.labels(self._name, label)
            self._rejections[reason] = counter
        return counter


class UsageCounts:
    """What is counted for one tenant, class and model.

    Args:
        labels: These three.
        metrics: The instruments, of which this binds the labels.
    """

    def __init__(self, labels: tuple[str, str, str], metrics: Metrics) -> None:
        tenant, class_name, model = labels
        self.requests = metrics.usage_requests.labels(tenant, class_name, model)
        tokens = metrics.usage_tokens
        self.prompt_tokens = tokens.labels(tenant, class_name, model, "prompt")
        self.cached_tokens = tokens.labels(tenant, class_name, model, "cached")
        self.output_tokens = tokens.labels(tenant, class_name, model, "output")
        self.engine_s = metrics.usage_engine_s.labels(tenant, class_name, model)
        self.queue_s = metrics.usage_queue_s.labels(tenant, class_name, model)


class Metrics:
    """The sidecar's instruments; tests make a fresh one each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._classes: dict[str, ClassMetrics] = {}
        self._tenants: set[str] = set()
        self._used: dict[tuple[str, str, str], UsageCounts] = {}
        self._ended: list[tuple[str, Outcome, float, float | None, int, Usage | None]] = []
        registry.register(_BeforeAll(self._count_ended))
        self.requests = FastCounter(
            "weir_requests_total",
            "Requests that ended, by how.",
            ["class", "outcome"],
            registry=registry,
        )
        self.running = Gauge(
            "weir_requests_running",
            "Requests the sidecar holds now.",
            registry=registry,
        )
        self.ttft = FastHistogram(
            "weir_time_to_first_token_seconds",
            "Arrival at the sidecar to the first token; to the first byte of an answer that is "
            "not streamed, where no step log tells the token.",
            label="class",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._attainment = FastCounter(
            "weir_attainment_requests_total",
            "Requests that were promised a time to first token, by whether they got it.",
            ["class", "result"],
            registry=registry,
        )
        self.duration = FastHistogram(
            "weir_request_duration_seconds",
            "Arrival at the sidecar to the request's end.",
            label="class",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.body_bytes = FastHistogram(
            "weir_request_body_bytes",
            "Size of request bodies.",
            buckets=_SIZE_BUCKETS_BYTES,
            registry=registry,
        ).labels()
        self.streamed_bytes = FastCounter(
            "weir_streamed_bytes_total",
            "Bytes of answers received from the engine and relayed.",
            registry=registry,
        ).labels()
        self._forwarding(registry)
        self._tokens(registry)
        self._prefixes(registry)
        self._scheduling(registry)
        self._engine(registry)
        self._usage(registry)
        self._health(registry)
        self._peers(registry)
        # So that each outcome is there, at zero, before the first request.
        for outcome in Outcome:
            self.of_class(NO_CLASS).requests(outcome)

    def _forwarding(self, registry: CollectorRegistry) -> None:
        self.forwards = Counter(
            "weir_forwards_total",
            "Requests sent to another replica, by what came of it.",
            ["result"],
            registry=registry,
        )
        self._forwarded = Counter(
            "weir_forwarded_requests_total",
            "Requests that another sidecar sent here, by how they ended; weir_requests_total "
            "counts them there.",
            ["outcome"],
            registry=registry,
        )

    def forwarded_ended(self, outcome: Outcome) -> None:
        """Count a request of another sidecar's client."""
        self._forwarded.labels(outcome.value).inc()

    def _tokens(self, registry: CollectorRegistry) -> None:
        self.prompt_tokens = FastCounter(
            "weir_prompt_tokens_total",
            "Prompt tokens of answers that reported usage.",
            registry=registry,
        ).labels()
        self.output_tokens = FastCounter(
            "weir_output_tokens_total",
            "Output tokens of answers that reported usage.",
            registry=registry,
        ).labels()

    def _usage(self, registry: CollectorRegistry) -> None:
        labels = ["tenant", "class", "model"]
        self.usage_requests = FastCounter(
            "weir_usage_requests_total",
            "Requests that ended, by who sent them.",
            labels,
            registry=registry,
        )
        self.usage_tokens = FastCounter(
            "weir_usage_tokens_total",
            "Tokens of requests that ended, by who sent them and by kind.",
            [*labels, "kind"],
            registry=registry,
        )
        self.usage_engine_s = FastCounter(
            "weir_usage_engine_seconds_total",
            "Shares of the engine's steps that requests took, by who sent them.",
            labels,
            registry=registry,
        )
        self.usage_queue_s = FastCounter(
            "weir_usage_queue_seconds_total",
            "Time for which requests waited for their places at the engine, by who sent them.",
            labels,
            registry=registry,
        )
        self.access_lines_lost = FastCounter(
            "weir_access_lines_lost_total",
            "Lines of the access log that could not be written in time.",
            registry=registry,
        ).labels()

    def usage_of(self, tenant: str, class_name: str, model: str) -> UsageCounts:
        """Return what is counted for a tenant, a class and a model, or for those beyond a bound."""
        labels = (tenant, class_name, model)
        found = self._used.get(labels)
        if found is None:
            labels = (self._tenant(tenant), class_name, model)
            if labels not in self._used and len(self._used) >= _MAX_USED:
                labels = (OTHER_TENANTS, class_name, _OTHER_MODELS)
            found = self._used.get(labels)
        if found is None:
            found = self._used[labels] = UsageCounts(labels, self)
        return found

    def _prefixes(self, registry: CollectorRegistry) -> None:
        self._prefix_prompt_tokens = FastCounter(
            "weir_prefix_prompt_tokens_total",
            "Prompt tokens of requests of which the cached part was predicted.",
            registry=registry,
        ).labels()
        self._prefix_predicted_tokens = FastCounter(
            "weir_prefix_predicted_tokens_total",
            "Of those, tokens that the sidecar believed to be in the engine's prefix cache.",
            registry=registry,
        ).labels()
        self._prefix_cached_tokens = FastCounter(
            "weir_prefix_cached_tokens_total",
            "Of those, tokens that the engine found in its prefix cache.",
            registry=registry,
        ).labels()
        error = FastCounter(
            "weir_prefix_error_tokens_total",
            "Differences between predicted and found tokens, over all requests: over, believed "
            "but not found; under, found but not believed.",
            ["direction"],
            registry=registry,
        )
        self._prefix_over, self._prefix_under = error.labels("over"), error.labels("under")

    def prefix(self, prompt_tokens: int, predicted_tokens: int, cached_tokens: int) -> None:
        """Set what was believed to be cached of a prompt against what was found."""
        self._prefix_prompt_tokens.inc(prompt_tokens)
        self._prefix_predicted_tokens.inc(predicted_tokens)
        self._prefix_cached_tokens.inc(cached_tokens)
        self._prefix_over.inc(max(0, predicted_tokens - cached_tokens))
        self._prefix_under.inc(max(0, cached_tokens - predicted_tokens))

    def _scheduling(self, registry: CollectorRegistry) -> None:
        self.queue = Gauge(
            "weir_queue_requests",
            "Requests that wait for the engine.",
            ["class", "tenant"],
            registry=registry,
        )
        self.queue_oldest = Gauge(
            "weir_queue_oldest_seconds",
            "Longest wait so far of the requests that wait for the engine.",
            ["class", "tenant"],
            registry=registry,
        )
        self.queue_bytes = Gauge(
            "weir_queue_body_bytes",
            "Bodies of the requests that wait for the engine.",
            registry=registry,
        )
        self.queue_wait = FastHistogram(
            "weir_queue_wait_seconds",
            "Arrival in the pool to dispatch, of requests that were dispatched.",
            label="class",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.rejections = FastCounter(
            "weir_rejections_total",
            "Requests the scheduler rejected, by why.",
            ["class", "reason"],
            registry=registry,
        )
        self.preemptions = FastCounter(
            "weir_preemptions_total",
            "Requests that were requeued for a higher rank before their first byte, by class.",
            ["class"],
            registry=registry,
        )
        self.min_share_dispatches = FastCounter(
            "weir_min_share_dispatches_total",
            "Requests that went before a higher class because theirs was owed its minimum share.",
            ["class"],
            registry=registry,
        )
        self.inversions = FastCounter(
            "weir_inversions_total",
            "Requests dispatched while one of a higher class waited, minimum shares aside; "
            "anything but 0 is a bug.",
            registry=registry,
        ).labels()
        self.bubble = FastCounter(
            "weir_bubble_seconds_total",
            "Time in which requests waited and the engine held none.",
            registry=registry,
        ).labels()
        self.estimate = FastHistogram(
            "weir_estimate_ratio",
            "Estimated over true value, when the truth is known; 1 is perfect.",
            label="of",
            buckets=_RATIO_BUCKETS,
            registry=registry,
        )
        self.estimates = {
            of: self.estimate.labels(of) for of in ("prompt_tokens", "output_tokens", "first_token")
        }
        self.policies_refused = Counter(
            "weir_policies_refused_total",
            "Policy documents that could not be used; the last good one stayed in force.",
            registry=registry,
        )

    def _engine(self, registry: CollectorRegistry) -> None:
        self.step = FastHistogram(
            "weir_engine_step_seconds",
            "Duration of the engine's steps, from its step log.",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.schedule = FastHistogram(
            "weir_engine_schedule_seconds",
            "Time that scheduling took in each of the engine's steps.",
            buckets=_STEP_BUCKETS_S,
            registry=registry,
        )
        self.steps_lost = Counter(
            "weir_engine_steps_lost_total",
            "Step records that never arrived here.",
            registry=registry,
        )
        self.scheduler_info = Gauge(
            "weir_engine_scheduler_info",
            "1, with how the engine orders requests; fallback is 1 where Weir's scheduler was "
            "wanted and could not be used; mode is what divided its newest step.",
            ["kind", "fallback", "mode"],
            registry=registry,
        )
        self._last_step = 0
        self._facts: Facts | None = None
        self._mode = ""

    def engine_step(self, step: Step) -> None:
        """Note one record of the step log."""
        if step.duration_s > 0:
            self.step.observe(step.duration_s)
            self.schedule.observe(step.schedule_s)
        if self._last_step < step.seq - 1 and self._last_step:
            self.steps_lost.inc(step.seq - 1 - self._last_step)
        self._last_step = step.seq
        if step.mode != self._mode:
            self._mode = step.mode
            self._show_scheduler()

    def describe_engine(self, facts: Facts) -> None:
        """Say how the engine orders requests."""
        self._facts, self._mode = facts, ""
        self._show_scheduler()

    def _show_scheduler(self) -> None:
        if self._facts is None:
            return
        self.scheduler_info.clear()
        fallback = "1" if self._facts.fallback else "0"
        self.scheduler_info.labels(self._facts.kind, fallback, self._mode).set(1)

    def of_class(self, name: str) -> ClassMetrics:
        """Return the instruments of one priority class; classes are few and set by platforms."""
        found = self._classes.get(name)
        if found is None:
            found = self._classes[name] = ClassMetrics(name, self)
        return found

    def ended(
        self,
        class_name: str,
        outcome: Outcome,
        duration_s: float,
        ttft_s: float | None,
        received_bytes: int,
        usage: Usage | None,
    ) -> None:
        """Note a request that has ended; it is counted with many others, before the next reading.

        Args:
            class_name: Its priority class.
            outcome: How it ended.
            duration_s: From its arrival.
            ttft_s: From its arrival to its first token; None where none came.
            received_bytes: Of the engine's answer.
            usage: What the answer said of its tokens.
        """
        self._ended.append((class_name, outcome, duration_s, ttft_s, received_bytes, usage))
        if len(self._ended) >= _MAX_NOTED:
            self._count_ended()

    def judge(
        self, class_name: str, outcome: Outcome, ttft_s: float | None, target_s: float
    ) -> None:
        """Count whether a request that was promised a time to its first token got it.

        Args:
            class_name: Its priority class.
            outcome: How it ended; a failure and a rejection miss the target.
            ttft_s: From its arrival to its first token; None where none came.
            target_s: What was promised.
        """
        # The first byte of an error is no token.
        if outcome is Outcome.CLIENT_ERROR or (ttft_s is None and outcome in _CLIENTS_DOING):
            return
        whole = outcome is Outcome.OK or outcome in _CLIENTS_DOING
        met = whole and ttft_s is not None and ttft_s <= target_s
        # Both are there from the class's first request on: the first miss is a rise from 0.
        self._attainment.labels(class_name, "met").inc(1.0 if met else 0.0)
        self._attainment.labels(class_name, "missed").inc(0.0 if met else 1.0)

    def _count_ended(self) -> None:
        for class_name, outcome, duration_s, ttft_s, received_bytes, usage in self._ended:
            of_class = self.of_class(class_name)
            of_class.requests(outcome).inc()
            of_class.duration.observe(duration_s)
            if ttft_s is not None:
                of_class.ttft.observe(ttft_s)
            self.streamed_bytes.inc(received_bytes)
            if usage is not None:
                self.prompt_tokens.inc(usage.prompt_tokens)
                self.output_tokens.inc(usage.output_tokens)
        self._ended.clear()

    def show_queue(self, waits: Iterable[tuple[str, str, float]], body_bytes: int) -> None:
        """Set the gauges of what waits, each by class, tenant and seconds; for each scrape."""
        self.queue.clear()
        self.queue_oldest.clear()
        oldest: dict[tuple[str, str], float] = {}
        for class_name, name, waited_s in waits:
            tenant = self._tenant(name)
            self.queue.labels(class_name, tenant).inc()
            oldest[class_name, tenant] = max(waited_s, oldest.get((class_name, tenant), 0.0))
        for (class_name, tenant), waited_s in oldest.items():
            self.queue_oldest.labels(class_name, tenant).set(waited_s)
        self.queue_bytes.set(body_bytes)

    def _tenant(self, name: str) -> str:
        """Return a label value: tenants are named by users, so their number is bounded."""
        if name not in self._tenants and len(self._tenants) < MAX_TENANTS:
            self._tenants.add(name)
        return name if name in self._tenants else OTHER_TENANTS

    def _health(self, registry: CollectorRegistry) -> None:
        self.engine_up = Gauge(
            "weir_engine_up",
            "1 while the engine is loaded and makes progress.",
            registry=registry,
        )
        self.engine_losses = Counter(
            "weir_engine_losses_total",
            "Times a loaded engine was gone, or stalled: it held requests and did nothing.",
            ["how"],
            registry=registry,
        )
        for how in ("down", "stalled"):
            self.engine_losses.labels(how)
        self.draining = Gauge(
            "weir_draining",
            "1 from the start of a drain.",
            registry=registry,
        )
        self.adapters = Gauge(
            "weir_adapters",
            "Adapters that are declared, by whether the engine has loaded them: ready or lacking.",
            ["state"],
            registry=registry,
        )
        for state in ("ready", "lacking"):
            self.adapters.labels(state)
        self.engine_retries = Counter(
            "weir_engine_retries_total",
            "Requests sent again because a kept engine connection had died.",
            registry=registry,
        )
        self.client_stalls = Counter(
            "weir_client_stalls_total",
            "Times reading from the engine paused because a client was slow to take its bytes.",
            registry=registry,
        )
        self.connections_refused = Counter(
            "weir_connections_refused_total",
            "Client connections ended at once because file descriptors run out.",
            registry=registry,
        )
        self.task_failures = Counter(
            "weir_task_failures_total",
            "Failures of the sidecar's background tasks; each is logged and starts the task again.",
            registry=registry,
        )
        self._build = Gauge(
            "weir_build_info",
            "1, with the version and what this replica serves as labels.",
            ["version", "service", "namespace", "pool", "model"],
            registry=registry,
        )

    def _peers(self, registry: CollectorRegistry) -> None:
        self.peers = Gauge(
            "weir_peers",
            "Other sidecars of the service that this one knows, by what they are to it.",
            ["state"],
            registry=registry,
        )
        self.peer_load_age = Gauge(
            "weir_peer_load_age_seconds",
            "Age of the oldest load by which a peer may get requests.",
            registry=registry,
        )
        self.heartbeats = FastCounter(
            "weir_peer_heartbeats_total",
            "Heartbeats, by whether one of ours was answered or failed, or one of a peer was "
            "heard.",
            ["outcome"],
            registry=registry,
        )
        self.heartbeat_bytes = FastCounter(
            "weir_peer_heartbeat_bytes_total",
            "Bytes of heartbeats and of the answers to them, without HTTP's heads.",
            ["direction"],
            registry=registry,
        )
        self._places = FastCounter(
            "weir_tenant_places_total",
            "Requests of tenants with limits that are counted over all replicas, by what was said.",
            ["verdict"],
            registry=registry,
        )
        for verdict in ("granted", "refused", "alone"):
            self._places.labels(verdict)

    def places(self, verdict: str) -> None:
        """Count what was said to a request of a tenant whose limits all replicas share."""
        self._places.labels(verdict).inc()

    def describe(self, identity: Identity) -> None:
        """Say what this replica is."""
        self._build.labels(
            version("weir-serving"),
            identity.service,
            identity.namespace,
            identity.pool,
            identity.model,
        ).set(1)

    def outcomes(self) -> dict[str, int]:
        """Return how many requests ended in each way so far."""
        self._count_ended()
        found = {outcome.value: 0 for outcome in Outcome}
        for (_, outcome), count in self.requests.counts().items():
            found[outcome] += int(count)
        return found

    def render(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self.registry)
