"""What the load does to a service, of its sidecars' metrics and states. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from weir_cli.explain_causes import finding
from weir_cli.explain_facts import Facts, Finding, Replica
from weir_cli.replica import Phase
from weir_cli.top_figures import ATTAINMENT, OLDEST, QUEUE, REJECTED, REQUESTS, Page

DRAINING: Final = "weir_draining"
PEERS: Final = "weir_peers"
REFUSED: Final = "weir_policies_refused_total"
LOSSES: Final = "weir_engine_losses_total"
READ: Final = (REQUESTS, ATTAINMENT, QUEUE, OLDEST, DRAINING, PEERS, REFUSED, LOSSES)
"""How the metrics begin that are read here."""
MOST_SHED: Final = 0.05
"""Share of a class's requests above which it is overloaded, as `alerts.thresholds.shedRatio`."""
MOST_LATE: Final = 0.1
"""Share of a class's requests that miss their target now, above which it is said to be late."""
_FOR_LOAD: Final = frozenset({"saturated", "ttl_expired", "queue_full", "memory_full"})
_FEWEST: Final = 5
"""Requests of a class that ended between two readings, below which a share says little."""
_FEWEST_LATE: Final = 2
_STRANGER: Final = "unknown_key"
_USABLE: Final = "usable"


def overload(facts: Facts) -> Iterator[Finding]:
    """Yield the classes of which too much is rejected now, and those that are late now."""
    twice = [each for each in facts.replicas if each.first is not None and each.later is not None]
    rejects = set()
    for name, outcomes in _between(twice, REQUESTS, "outcome"):
        total = sum(outcomes.values())
        shed = {why: outcomes[f"{REJECTED}{why}"] for why in _FOR_LOAD}
        refused = sum(shed.values())
        if total >= _FEWEST and refused > MOST_SHED * total:
            rejects.add(name)
            what = (
                f"it is overloaded: {refused} of {total} requests of class {name} were rejected "
                f"in the last {facts.between_s:.0f} s"
            )
            yield finding("Overload", what, facts, (f"class {name}: {_counts(shed)}",))
    for name, results in _between(twice, ATTAINMENT, "result"):
        total, missed = sum(results.values()), results["missed"]
        if name not in rejects and missed >= _FEWEST_LATE and missed > MOST_LATE * total:
            yield _late(name, f"{missed} of {total}", facts)


def _late(name: str, share: str, facts: Facts) -> Finding:
    what = (
        f"it is late: {share} requests of class {name} missed their time to first token in the "
        f"last {facts.between_s:.0f} s"
    )
    waits = _waiting(facts.replicas).get(name)
    if waits is None:
        return finding("LateByEngine", what, facts)
    return finding("LateByQueue", what, facts, (waits,))


def without_peers(facts: Facts) -> Iterator[Finding]:
    """Yield that sidecars cannot forward to each other, if so."""
    states = {
        replica.name: _states_of_peers(replica)
        for replica in facts.replicas
        if any(_series(_newest(replica), PEERS)) and not is_draining(replica)
    }
    strangers = {name: each for name, each in states.items() if each[_STRANGER]}
    alone = {name: each for name, each in states.items() if not each[_USABLE]}
    if strangers:
        named = ", ".join(strangers)
        what = f"the keys of sidecars differ, so they do not forward to each other: {named}"
        yield finding("StaleKeys", what, facts, _seen_peers(strangers))
    elif alone and sum(is_ready(each) and not is_draining(each) for each in facts.replicas) > 1:
        what = f"{', '.join(alone)} can forward to no other replica"
        yield finding("WithoutPeers", what, facts, _seen_peers(alone))


def _states_of_peers(replica: Replica) -> Counter[str]:
    found = _series(_newest(replica), PEERS)
    return Counter({labels.get("state", ""): int(value) for labels, value in found})


def _seen_peers(states: Mapping[str, Counter[str]]) -> tuple[str, ...]:
    return tuple(f"peers of {name}: {_counts(each) or 'none'}" for name, each in states.items())


def is_ready(replica: Replica) -> bool:
    """Tell whether a replica takes requests; a gateway is none."""
    if replica.pod is not None:
        return replica.pod.is_ready and not replica.pod.is_gateway
    return replica.phase == Phase.READY.value


def remarks(facts: Facts) -> Iterator[str]:
    """Yield what is noteworthy: what waits, what was rejected or late, what ended or leaves."""
    yield from _waiting(facts.replicas).values()
    yield from _rejected(_ended(facts.replicas, REQUESTS, "outcome", later=True))
    yield from _missed(facts.replicas)
    for replica in facts.replicas:
        yield from _of_replica(replica)
    if facts.left_out:
        yield f"{facts.left_out} further replicas were not asked"


def _of_replica(replica: Replica) -> Iterator[str]:
    since = "since its sidecar started"
    if lost := _sum(replica, LOSSES):
        yield f"the engine of {replica.name} ended or hung {_times(lost)} {since}"
    if refused := _sum(replica, REFUSED):
        yield (
            f"{replica.name} could not use its policies {_times(refused)} {since}, and kept the "
            'last good ones; its sidecar\'s log has "the policies are refused"'
        )
    if is_draining(replica):
        yield f"{replica.name} drains: it takes no new requests and finishes what it has"


def _sum(replica: Replica, name: str) -> int:
    return int(sum(value for _, value in _series(_newest(replica), name)))


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def is_draining(replica: Replica) -> bool:
    """Tell whether a replica is about to leave."""
    if replica.phase == Phase.DRAINING.value or (replica.pod is not None and replica.pod.leaves):
        return True
    state = replica.state if isinstance(replica.state, dict) else {}
    if state.get("phase", "serving") != "serving":
        return True
    return any(value for _, value in _series(_newest(replica), DRAINING))


def _waiting(replicas: Iterable[Replica]) -> dict[str, str]:
    """Return by class what there is to say of its requests that wait."""
    waiting: dict[str, Counter[str]] = {}
    oldest: dict[str, float] = {}
    for page in map(_newest, replicas):
        for labels, value in _series(page, QUEUE):
            of_class = waiting.setdefault(labels.get("class", ""), Counter())
            of_class[labels.get("tenant", "")] += int(value)
        for labels, value in _series(page, OLDEST):
            name = labels.get("class", "")
            oldest[name] = max(value, oldest.get(name, 0.0))
    said = {}
    for name, tenants in sorted(waiting.items()):
        if number := sum(tenants.values()):
            longest = f"the oldest for {oldest.get(name, 0.0):.1f} s"
            said[name] = f"class {name}: {number} wait (of tenants: {_counts(tenants)}), {longest}"
    return said


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


def _missed(replicas: Sequence[Replica]) -> Iterator[str]:
    judged = _ended(replicas, ATTAINMENT, "result", later=True)
    for name, results in sorted(judged.items()):
        if results["missed"]:
            total = sum(results.values())
            yield (
                f"class {name}: {results['missed']} of {total} requests missed their time to "
                "first token since the replicas started"
            )


def _between(replicas: Sequence[Replica], name: str, by: str) -> list[tuple[str, Counter[str]]]:
    """Return by class what came between the readings; a process that started anew began at 0."""
    before = _ended(replicas, name, by, later=False)
    after = _ended(replicas, name, by, later=True)
    return [(each, counts - before.get(each, Counter())) for each, counts in after.items()]


def _ended(
    replicas: Iterable[Replica], name: str, by: str, *, later: bool
) -> dict[str, Counter[str]]:
    """Return by class how many requests ended, by a label, as all replicas read it."""
    found: dict[str, Counter[str]] = {}
    for replica in replicas:
        for labels, value in _series(_newest(replica) if later else replica.first, name):
            of_class = found.setdefault(labels.get("class", ""), Counter())
            of_class[labels.get(by, "")] += int(value)
    return found


def _newest(replica: Replica) -> Page | None:
    return replica.first if replica.later is None else replica.later


def _series(page: Page | None, name: str) -> Iterator[tuple[dict[str, str], float]]:
    for series, value in (page or {}).items():
        if series.name == name:
            yield dict(series.labels), value


def _counts(numbers: Mapping[str, int]) -> str:
    shown = sorted(numbers.items(), key=lambda each: -each[1])
    return ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in shown if number)
