"""What the load does to a service, of its sidecars' metrics and states. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from weir_cli.explain_causes import finding
from weir_cli.explain_facts import Facts, Finding, Replica
from weir_cli.replica import Phase
from weir_cli.top_figures import ATTAINMENT, OLDEST, QUEUE, REJECTED, REQUESTS, Page

DRAINING: Final = "weir_draining"
READ: Final = (REQUESTS, ATTAINMENT, QUEUE, OLDEST, DRAINING)
"""How the metrics begin that are read here."""
MOST_SHED: Final = 0.05
"""Share of a class's requests above which it is overloaded, as `alerts.thresholds.shedRatio`."""
_FOR_LOAD: Final = frozenset({"saturated", "ttl_expired", "queue_full", "memory_full"})
_FEWEST: Final = 5
"""Requests of a class that ended between two readings, below which a share says little."""


def overload(facts: Facts) -> Iterator[Finding]:
    """Yield the classes of which too much is rejected now."""
    twice = [each for each in facts.replicas if each.first is not None and each.later is not None]
    before, after = _ended(twice, later=False), _ended(twice, later=True)
    for name, outcomes in _less(after, before):
        total = sum(outcomes.values())
        shed = {why: outcomes[f"{REJECTED}{why}"] for why in _FOR_LOAD}
        refused = sum(shed.values())
        if total >= _FEWEST and refused > MOST_SHED * total:
            what = (
                f"it is overloaded: {refused} of {total} requests of class {name} were rejected "
                f"in the last {facts.between_s:.0f} s"
            )
            yield finding("Overload", what, facts, (f"class {name}: {_counts(shed)}",))


def remarks(facts: Facts) -> Iterator[str]:
    """Yield what is noteworthy: what waits, what was rejected or late, what leaves."""
    yield from _waiting(facts.replicas)
    yield from _rejected(_ended(facts.replicas, later=True))
    yield from _missed(facts.replicas)
    for replica in facts.replicas:
        if is_draining(replica):
            yield f"{replica.name} drains: it takes no new requests and finishes what it has"
    if facts.left_out:
        yield f"{facts.left_out} further replicas were not asked"


def is_draining(replica: Replica) -> bool:
    """Tell whether a replica is about to leave."""
    if replica.phase == Phase.DRAINING.value or (replica.pod is not None and replica.pod.leaves):
        return True
    state = replica.state if isinstance(replica.state, dict) else {}
    if state.get("phase", "serving") != "serving":
        return True
    return any(value for _, value in _series(_newest(replica), DRAINING))


def _waiting(replicas: Iterable[Replica]) -> Iterator[str]:
    waiting: Counter[str] = Counter()
    oldest: dict[str, float] = {}
    for page in map(_newest, replicas):
        for labels, value in _series(page, QUEUE):
            waiting[labels.get("class", "")] += int(value)
        for labels, value in _series(page, OLDEST):
            name = labels.get("class", "")
            oldest[name] = max(value, oldest.get(name, 0.0))
    for name, number in sorted(waiting.items()):
        if number:
            yield f"class {name}: {number} wait, the oldest for {oldest.get(name, 0.0):.1f} s"


def _rejected(ended: dict[str, Counter[str]]) -> Iterator[str]:
    for name, outcomes in sorted(ended.items()):
        shed = {
            outcome.removeprefix(REJECTED): number
            for outcome, number in outcomes.items()
            if outcome.startswith(REJECTED) and number
        }
        if shed:
            total, refused = sum(outcomes.values()), sum(shed.values())
            yield (
                f"class {name}: {refused} of {total} requests were rejected since the replicas "
                f"started: {_counts(shed)}"
            )


def _missed(replicas: Iterable[Replica]) -> Iterator[str]:
    judged: dict[str, Counter[str]] = {}
    for page in map(_newest, replicas):
        for labels, value in _series(page, ATTAINMENT):
            of_class = judged.setdefault(labels.get("class", ""), Counter())
            of_class[labels.get("result", "")] += int(value)
    for name, results in sorted(judged.items()):
        if results["missed"]:
            total = sum(results.values())
            yield (
                f"class {name}: {results['missed']} of {total} requests missed their time to "
                "first token since the replicas started"
            )


def _ended(replicas: Iterable[Replica], *, later: bool) -> dict[str, Counter[str]]:
    """Return by class how many requests ended, by how, as all replicas read it."""
    found: dict[str, Counter[str]] = {}
    for replica in replicas:
        for labels, value in _series(_newest(replica) if later else replica.first, REQUESTS):
            of_class = found.setdefault(labels.get("class", ""), Counter())
            of_class[labels.get("outcome", "")] += int(value)
    return found


def _less(
    after: dict[str, Counter[str]], before: dict[str, Counter[str]]
) -> list[tuple[str, Counter[str]]]:
    """Return what came between; a process that started anew counts from nothing."""
    return [(name, outcomes - before.get(name, Counter())) for name, outcomes in after.items()]


def _newest(replica: Replica) -> Page | None:
    return replica.first if replica.later is None else replica.later


def _series(page: Page | None, name: str) -> Iterator[tuple[dict[str, str], float]]:
    for series, value in (page or {}).items():
        if series.name == name:
            yield dict(series.labels), value


def _counts(numbers: dict[str, int]) -> str:
    shown = sorted(numbers.items(), key=lambda each: -each[1])
    return ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in shown if number)
