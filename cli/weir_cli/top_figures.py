"""What `weir top` shows, computed from the pages of sidecars and gateways; no I/O and no clock.

A request is counted where its client reached Weir: requests that ended, their rejections and
whether their time to first token was met come from the gateway, and from a replica for those that
were sent to it directly. What waits and what is computed comes from where it is. vLLM does not tell
its classes apart, so a class's TPOT target is held against the requests of all classes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from weir_core.sched.types import ClassPolicy

QUEUE: Final = "weir_queue_requests"
OLDEST: Final = "weir_queue_oldest_seconds"
REQUESTS: Final = "weir_requests_total"
ATTAINMENT: Final = "weir_attainment_requests_total"
TTFT: Final = "weir_time_to_first_token_seconds"
KV_RATIO: Final = "vllm:kv_cache_usage_perc"
PROMPT_TOKENS: Final = "vllm:prompt_tokens_total"
OUTPUT_TOKENS: Final = "vllm:generation_tokens_total"
TPOT: Final = "vllm:request_time_per_output_token_seconds"
REJECTED: Final = "rejected_"
"""How the outcomes of requests that were rejected begin."""
_LARGEST: Final = 2.0**53
"""What is not below it, as NaN is not, is no count: sums of it could not be shown."""
ORDERS: Final = ("name", "waiting", "at engine", "output")

READ: Final = (
    *(QUEUE, OLDEST, REQUESTS, ATTAINMENT, KV_RATIO, PROMPT_TOKENS, OUTPUT_TOKENS),
    *(f"{TPOT}_sum", f"{TPOT}_count", f"{TPOT}_bucket", f"{TTFT}_bucket"),
)

Labels = tuple[tuple[str, str], ...]


class Series(NamedTuple):
    """One series of a page."""

    name: str
    labels: Labels

    def label(self, name: str) -> str:
        """Return the value of a label; empty where there is none."""
        return dict(self.labels).get(name, "")


Page = Mapping[Series, float]
"""A page of metrics, as far as it is shown."""
_NOTHING: Final[Page] = {}


@dataclass(frozen=True)
class Reading:
    """What a process said of itself once.

    Attributes:
        at_s: When, by a clock that only moves forward.
        state: Its page of state, as it came; None where it did not answer.
        page: Its page of metrics; None where it did not answer.
    """

    at_s: float
    state: Any = None
    page: Page | None = None

    @property
    def answered(self) -> bool:
        """Tell whether there was an answer."""
        return self.page is not None

    @cached_property
    def by_name(self) -> Mapping[str, Page]:
        """Its page by the names of series, made once: each frame of a minute looks at it."""
        found: defaultdict[str, dict[Series, float]] = defaultdict(dict)
        for series, value in (self.page or {}).items():
            found[series.name][series] = value
        return dict(found)


@dataclass(frozen=True)
class Process:
    """A replica's sidecar or a gateway, and its readings, oldest first.

    Attributes:
        detail: Its page of state, where that is read apart from its metrics.
        at_engine: Requests in its engine, as another sidecar tells; None where none does.
        slots: Sequences that its engine computes at a time, as another sidecar tells.
        trouble: Why its page of state was not read last; empty where it was, or was not asked for.
    """

    name: str
    phase: str
    readings: tuple[Reading, ...] = ()
    detail: Reading | None = None
    at_engine: int | None = None
    slots: int | None = None
    trouble: str = ""

    @property
    def states(self) -> tuple[Reading, ...]:
        """The readings that have its page of state, oldest first."""
        every = self.readings if self.detail is None else (*self.readings, self.detail)
        return tuple(each for each in every if each.state is not None)


@dataclass(frozen=True)
class Service:
    """One service, its classes, its gateways and its replicas."""

    name: str
    classes: tuple[ClassPolicy, ...]
    gateways: tuple[Process, ...]
    replicas: tuple[Process, ...]
    scaling: str = ""
    """What was decided last of the number of its replicas, and why."""

    @property
    def processes(self) -> tuple[Process, ...]:
        """All that requests can reach."""
        return (*self.gateways, *self.replicas)


@dataclass(frozen=True)
class Choice:
    """What the user wants to see."""

    order: str = ORDERS[0]
    service: str | None = None
    class_name: str | None = None


@dataclass(frozen=True)
class ReplicaRow:
    """One replica, or a gateway; None where it is not known."""

    service: str
    name: str
    state: str
    at_engine: int | None = None
    waiting: Mapping[str, int] = field(default_factory=dict)
    oldest_s: float | None = None
    kv_ratio: float | None = None
    prompt_tokens_s: float | None = None
    output_tokens_s: float | None = None
    tpot_s: float | None = None
    rejected: Mapping[str, int] = field(default_factory=dict)
    answers: bool = True


@dataclass(frozen=True)
class ClassRow:
    """One class of a service; None where it is not known, or not promised."""

    service: str
    name: str
    waiting: Mapping[str, int]
    """By tenant."""
    oldest_s: float | None
    ended: int
    rejected: Mapping[str, int]
    ttft_target_s: float | None
    ttft_met: float | None
    tpot_target_s: float | None
    tpot_met: float | None
    ttft_p99_s: float | None = None
    """By the buckets of a histogram."""


@dataclass(frozen=True)
class Picture:
    """One frame."""

    replicas: tuple[ReplicaRow, ...]
    classes: tuple[ClassRow, ...]
    notes: tuple[str, ...] = ()


def read_page(text: str, names: tuple[str, ...] = READ) -> Page:
    """Read some series of a page of metrics, by how their names begin.

    Raises:
        ValueError: It is not one.
    """
    lines = [line for line in text.splitlines() if line.startswith(names)]
    families = text_string_to_metric_families("\n".join([*lines, ""]))
    page = {
        Series(sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if abs(sample.value) < _LARGEST
    }
    for series in page:
        if series.name.endswith("_bucket"):
            float(series.label("le"))  # raises where a bound is no number
    return page


def picture(
    services: Sequence[Service], choice: Choice, heard_since_s: float, *, since_start: bool
) -> Picture:
    """Return what to show.

    Args:
        services: What was read.
        choice: Which of it, and in which order.
        heard_since_s: A process whose newest answer is older does not answer; by the clock of the
            readings.
        since_start: Count from each process's start on, not over its readings.
    """
    shown = [each for each in services if choice.service in {None, each.name}]
    replicas = []
    classes = []
    for service in shown:
        read = [_Read(each, heard_since_s, since_start) for each in service.processes]
        replicas += [_process_row(service.name, each, choice.class_name) for each in read]
        answering = [each for each in read if each.answers]
        names = (each for each in class_names(service) if choice.class_name in {None, each})
        classes += [_class_row(service, name, answering) for name in names]
    notes = tuple(service.scaling for service in shown if service.scaling)
    return Picture(tuple(sorted(replicas, key=_order(choice.order))), tuple(classes), notes)


def pressed(choice: Choice, key: str, services: Sequence[Service]) -> Choice:
    """Return the choice after a key; a key that means nothing changes nothing."""
    if key == "o":
        following = ORDERS[(ORDERS.index(choice.order) + 1) % len(ORDERS)]
        return Choice(following, choice.service, choice.class_name)
    if key == "s":
        names = [service.name for service in services]
        return Choice(choice.order, _following(choice.service, names), choice.class_name)
    if key == "c":
        names = list(dict.fromkeys(name for each in services for name in class_names(each)))
        return Choice(choice.order, choice.service, _following(choice.class_name, names))
    return choice


def class_names(service: Service) -> list[str]:
    """Return the classes of a service, the highest first, and any other that its pages name."""
    ranked = sorted(service.classes, key=lambda each: -each.rank)
    seen = {
        series.label("class")
        for process in service.processes
        for name in (QUEUE, REQUESTS)
        for series, value in _newest(process).get(name, _NOTHING).items()
        if value
    }
    known = [each.name for each in ranked]
    return [*known, *sorted(seen.difference(known))]


def _following(chosen: str | None, names: Sequence[str]) -> str | None:
    """Return the next of the names; None, which stands for all, is after the last."""
    if chosen is None or chosen not in names:
        return names[0] if names and chosen is None else None
    return next(iter(names[names.index(chosen) + 1 :]), None)


def _order(order: str) -> Callable[[ReplicaRow], tuple[float, str, str]]:
    """Return the key to sort replicas by: the largest first, names where they are equal."""

    def largest(row: ReplicaRow) -> float:
        if order == "waiting":
            return sum(row.waiting.values())
        if order == "at engine":
            return row.at_engine or 0
        return (row.output_tokens_s or 0.0) if order == "output" else 0.0

    return lambda row: (-largest(row), row.service, row.name)


class _Read:
    """What the readings of one process say: each counter's rise is computed once a frame."""

    def __init__(self, process: Process, heard_since_s: float, since_start: bool) -> None:
        self.process = process
        self.answers = _answers(process, heard_since_s)
        self._newest = _newest(process)
        self._since_start = since_start
        self._rises: dict[str, Page] = {}

    def newest(self, name: str) -> Page:
        """Return the newest values of a name."""
        return self._newest.get(name, _NOTHING)

    def rise(self, name: str) -> Page:
        """Return by how much the counters of a name rose over the readings, restarts included."""
        if self._since_start:
            return self.newest(name)
        if name not in self._rises:
            self._rises[name] = _rise_over(self.process.readings, name)
        return self._rises[name]

    def rate(self, name: str) -> float | None:
        """Return how much a counter rises in a second, by the two newest readings."""
        answered = [each for each in self.process.readings if each.answered][-2:]
        if len(answered) < 2 or not all(name in each.by_name for each in answered):
            return None
        before, after = answered
        rise = _rise(before.by_name[name], after.by_name[name])
        return _sum(rise) / (after.at_s - before.at_s)


def _process_row(service: str, read: _Read, wanted: str | None) -> ReplicaRow:
    process = read.process
    if not read.answers:
        silent = bool(process.readings) and process.phase == "ready"
        state = "no answer" if silent else process.phase
        return ReplicaRow(service, process.name, state, answers=False)
    counted, spent = (_sum(read.rise(f"{TPOT}_{each}")) for each in ("count", "sum"))
    return ReplicaRow(
        service,
        process.name,
        process.phase,
        at_engine=_at_engine(process),
        waiting=_by(_of(read.newest(QUEUE), wanted), "class"),
        oldest_s=max(_of(read.newest(OLDEST), wanted).values(), default=None),
        kv_ratio=max(read.newest(KV_RATIO).values(), default=None),
        prompt_tokens_s=read.rate(PROMPT_TOKENS),
        output_tokens_s=read.rate(OUTPUT_TOKENS),
        tpot_s=spent / counted if counted else None,
        rejected=_rejections(_of(read.rise(REQUESTS), wanted)),
    )


def _class_row(service: Service, name: str, answering: Sequence[_Read]) -> ClassRow:
    policy = next((each for each in service.classes if each.name == name), None)
    queues = _total(_of(each.newest(QUEUE), name) for each in answering)
    ends = _total(_of(each.rise(REQUESTS), name) for each in answering)
    judged = _by(_total(_of(each.rise(ATTAINMENT), name) for each in answering), "result")
    oldest = (s for each in answering for s in _of(each.newest(OLDEST), name).values())
    tpot_target_s = policy.tpot_target_s if policy else None
    times: Page = _NOTHING
    if tpot_target_s is not None:
        times = _total(each.rise(f"{TPOT}_bucket") for each in answering)
    return ClassRow(
        service.name,
        name,
        waiting=_by(queues, "tenant"),
        oldest_s=max(oldest, default=None),
        ended=round(_sum(ends)),
        rejected=_rejections(ends),
        ttft_target_s=policy.ttft_target_s if policy else None,
        ttft_met=judged.get("met", 0) / sum(judged.values()) if sum(judged.values()) else None,
        tpot_target_s=tpot_target_s,
        tpot_met=None if tpot_target_s is None else share_within(times, tpot_target_s),
        ttft_p99_s=quantile(
            _total(_of(each.rise(f"{TTFT}_bucket"), name) for each in answering), 0.99
        ),
    )


def share_within(buckets: Page, limit_s: float) -> float | None:
    """Return which share of a histogram is at most `limit_s`; None where it is empty.

    Inside a bucket the observations are taken to be spread evenly.
    """
    by_bound = _by_bound(buckets)
    total = by_bound.get(float("inf"))
    if not total:
        return None
    below, reached = 0.0, 0.0
    for bound, within in sorted(by_bound.items()):
        if limit_s < bound:
            part = (limit_s - below) / (bound - below)
            return (reached + part * (within - reached)) / total
        below, reached = bound, within
    return 1.0


def quantile(buckets: Page, ratio: float) -> float | None:
    """Return below which value so many of a histogram's observations are; None where it is empty.

    Inside a bucket they are taken to be spread evenly. What is above the last bound counts as it.
    """
    by_bound = _by_bound(buckets)
    wanted = ratio * by_bound.get(float("inf"), 0.0)
    below, reached = 0.0, 0.0
    for bound, within in sorted(by_bound.items()):
        if wanted and within >= wanted:
            part = (wanted - reached) / (within - reached)
            return below if bound == float("inf") else below + part * (bound - below)
        below, reached = bound, within
    return None


def _by_bound(buckets: Page) -> dict[float, float]:
    """Return how many observations are at most as large as each bound."""
    found: defaultdict[float, float] = defaultdict(float)
    for series, value in buckets.items():
        found[float(series.label("le"))] += value
    return dict(found)


def _answers(process: Process, heard_since_s: float) -> bool:
    answers = [each.at_s for each in process.readings if each.answered]
    return bool(answers) and answers[-1] >= heard_since_s


def _at_engine(process: Process) -> int | None:
    if process.at_engine is not None:
        return process.at_engine
    state = next((each.state for each in reversed(process.readings) if each.answered), None)
    match state:
        case {"scheduling": {"at_engine": told}}:
            return count_of(told)
    return None


def count_of(told: Any) -> int | None:
    """Return a number that a page of state has; None where it is no count."""
    return told if type(told) is int and 0 <= told < _LARGEST else None


def _newest(process: Process) -> Mapping[str, Page]:
    """Return the newest page that was read, by the names of series."""
    return next((each.by_name for each in reversed(process.readings) if each.answered), {})


def _of(page: Page, class_name: str | None) -> Page:
    """Return the series of a class; all of them for None."""
    if class_name is None:
        return page
    return {s: value for s, value in page.items() if ("class", class_name) in s.labels}


def _total(pages: Iterable[Page]) -> dict[Series, float]:
    found: defaultdict[Series, float] = defaultdict(float)
    for page in pages:
        for series, value in page.items():
            found[series] += value
    return dict(found)


def _by(page: Page, label: str) -> dict[str, int]:
    """Return the sums by the values of a label, but for those of 0."""
    found: Counter[str] = Counter()
    for series, value in page.items():
        found[series.label(label)] += round(value)
    return {name: count for name, count in found.items() if count}


def _rejections(ends: Page) -> dict[str, int]:
    return {
        outcome.removeprefix(REJECTED): count
        for outcome, count in _by(ends, "outcome").items()
        if outcome.startswith(REJECTED)
    }


def _sum(page: Page) -> float:
    return sum(page.values())


def _rise_over(readings: Sequence[Reading], name: str) -> Page:
    pages = [each.by_name.get(name, _NOTHING) for each in readings if each.answered]
    return _total(_rise(before, after) for before, after in pairwise(pages))


def _rise(before: Page, after: Page) -> Page:
    """Return what was counted between; a counter that fell began anew at 0."""
    found = {}
    for series, value in after.items():
        earlier = before.get(series, 0.0)
        found[series] = value - earlier if value >= earlier else value
    return found
