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
ORDERS: Final = ("name", "waiting", "at engine", "output")

_READ: Final = (
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


@dataclass(frozen=True)
class Reading:
    """What a process said of itself once.

    Attributes:
        at_s: When, by a clock that only moves forward.
        state: Its page of state; None of a gateway, or where it did not answer.
        page: Its page of metrics; None where it did not answer.
    """

    at_s: float
    state: Any = None
    page: Page | None = None

    @property
    def answered(self) -> bool:
        """Tell whether there was an answer."""
        return self.page is not None


@dataclass(frozen=True)
class Process:
    """A replica's sidecar or a gateway, and its readings, oldest first."""

    name: str
    phase: str
    readings: tuple[Reading, ...] = ()


@dataclass(frozen=True)
class Service:
    """One service, its classes, its gateway and its replicas."""

    name: str
    classes: tuple[ClassPolicy, ...]
    gateway: Process
    replicas: tuple[Process, ...]
    scaling: str = ""
    """What was decided last of the number of its replicas, and why."""

    @property
    def processes(self) -> tuple[Process, ...]:
        """All that requests can reach."""
        return (self.gateway, *self.replicas)


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


def read_page(text: str, names: tuple[str, ...] = _READ) -> Page:
    """Read some series of a page of metrics, by how their names begin.

    Raises:
        ValueError: It is not one.
    """
    lines = [line for line in text.splitlines() if line.startswith(names)]
    families = text_string_to_metric_families("\n".join([*lines, ""]))
    return {
        Series(sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


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
    replicas = [
        _process_row(service.name, process, choice, heard_since_s, since_start)
        for service in shown
        for process in service.processes
    ]
    classes = [
        _class_row(service, name, heard_since_s, since_start)
        for service in shown
        for name in class_names(service)
        if choice.class_name in {None, name}
    ]
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
        for series, value in _newest(process).items()
        if value and series.name in {QUEUE, REQUESTS}
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


def _process_row(
    service: str, process: Process, choice: Choice, heard_since_s: float, since_start: bool
) -> ReplicaRow:
    if not _answers(process, heard_since_s):
        silent = bool(process.readings) and process.phase == "ready"
        state = "no answer" if silent else process.phase
        return ReplicaRow(service, process.name, state, answers=False)
    page = _newest(process)
    wanted = choice.class_name
    tokens = {each: _rate(process, each) for each in (PROMPT_TOKENS, OUTPUT_TOKENS)}
    counted, spent = (
        _sum(_increase(process, f"{TPOT}_{each}", since_start)) for each in ("count", "sum")
    )
    return ReplicaRow(
        service,
        process.name,
        process.phase,
        at_engine=_at_engine(process),
        waiting=_by(_of(page, QUEUE, wanted), "class"),
        oldest_s=max(_of(page, OLDEST, wanted).values(), default=None),
        kv_ratio=max(_of(page, KV_RATIO).values(), default=None),
        prompt_tokens_s=tokens[PROMPT_TOKENS],
        output_tokens_s=tokens[OUTPUT_TOKENS],
        tpot_s=spent / counted if counted else None,
        rejected=_rejections(_increase(process, REQUESTS, since_start), wanted),
    )


def _class_row(service: Service, name: str, heard_since_s: float, since_start: bool) -> ClassRow:
    policy = next((each for each in service.classes if each.name == name), None)
    answering = [each for each in service.processes if _answers(each, heard_since_s)]
    pages = [_newest(each) for each in answering]
    queues = _total(_of(page, QUEUE, name) for page in pages)
    ends = _total(_of(_increase(p, REQUESTS, since_start), REQUESTS, name) for p in answering)
    judged = _by(
        _total(_of(_increase(p, ATTAINMENT, since_start), ATTAINMENT, name) for p in answering),
        "result",
    )
    times = _total(_increase(p, f"{TPOT}_bucket", since_start) for p in answering)
    tpot_target_s = policy.tpot_target_s if policy else None
    ttft_target_s = policy.ttft_target_s if policy else None
    return ClassRow(
        service.name,
        name,
        waiting=_by(queues, "tenant"),
        oldest_s=max((s for page in pages for s in _of(page, OLDEST, name).values()), default=None),
        ended=round(_sum(ends)),
        rejected=_rejections(ends, name),
        ttft_target_s=ttft_target_s,
        ttft_met=judged.get("met", 0) / sum(judged.values()) if sum(judged.values()) else None,
        tpot_target_s=tpot_target_s,
        tpot_met=None if tpot_target_s is None else share_within(times, tpot_target_s),
        ttft_p99_s=quantile(
            _total(
                _of(_increase(p, f"{TTFT}_bucket", since_start), f"{TTFT}_bucket", name)
                for p in answering
            ),
            0.99,
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
    state = next((each.state for each in reversed(process.readings) if each.answered), None)
    scheduling = state.get("scheduling") if isinstance(state, dict) else None
    return scheduling.get("at_engine") if isinstance(scheduling, dict) else None


def _newest(process: Process) -> Page:
    pages = (each.page for each in reversed(process.readings) if each.page is not None)
    return next(pages, {})


def _of(page: Page, name: str, class_name: str | None = None) -> dict[Series, float]:
    return {
        series: value
        for series, value in page.items()
        if series.name == name and class_name in {None, series.label("class")}
    }


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


def _rejections(ends: Page, class_name: str | None) -> dict[str, int]:
    by_outcome = _by(_of(ends, REQUESTS, class_name), "outcome")
    return {
        outcome.removeprefix(REJECTED): count
        for outcome, count in by_outcome.items()
        if outcome.startswith(REJECTED)
    }


def _sum(page: Page) -> float:
    return sum(page.values())


def _increase(process: Process, name: str, since_start: bool) -> dict[Series, float]:
    """Return by how much the counters of that name rose over the readings, restarts included."""
    pages = [_of(each.page, name) for each in process.readings if each.page is not None]
    if since_start:
        return pages[-1] if pages else {}
    return _total(_rise(before, after) for before, after in pairwise(pages))


def _rise(before: Page, after: Page) -> dict[Series, float]:
    """Return what was counted between; a counter that fell began anew at 0."""
    found = {}
    for series, value in after.items():
        earlier = before.get(series, 0.0)
        found[series] = value - earlier if value >= earlier else value
    return found


def _rate(process: Process, name: str) -> float | None:
    """Return how much a counter rises in a second, by the two newest readings."""
    answered = [each for each in process.readings if each.page is not None][-2:]
    if len(answered) < 2 or not all(_of(each.page or {}, name) for each in answered):
        return None
    before, after = answered
    rise = _rise(_of(before.page or {}, name), _of(after.page or {}, name))
    return _sum(rise) / (after.at_s - before.at_s)
