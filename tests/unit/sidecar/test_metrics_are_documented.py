"""docs/metrics.md and the code list the same metrics, labels and outcomes."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from weir_core.sched.types import Reason
from weir_core.wire.steps import Facts
from weir_sidecar.outcomes import Outcome
from weir_sidecar.settings import Identity
from weir_sidecar.telemetry.metrics import Metrics

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `(weir_\w+)` \| (\w+) \| ([^|]*)\|[^|]*\| ([^|]*) \|$", re.MULTILINE)


def documented() -> dict[str, tuple[str, frozenset[str], str]]:
    return {
        name: (kind, frozenset(re.findall(r"`(\w+)`", labels)), text.partition("; see")[0])
        for name, kind, labels, text in ROW.findall(PAGE)
    }


def coded() -> dict[str, tuple[str, frozenset[str], str]]:
    metrics = Metrics(CollectorRegistry())
    metrics.describe(Identity())
    metrics.describe_engine(Facts("weir", 1, 1, 1))
    metrics.of_class("batch").rejections(Reason.SATURATED)
    metrics.show_queue([("batch", "nightly", 1.0)], 0)
    metrics.judge("batch", Outcome.OK, 1.0, 2.0)
    metrics.usage_of("nightly", "batch", "tiny")
    metrics.forwards.labels("lost")
    metrics.forwarded_ended(Outcome.OK)
    metrics.peers.labels("usable")
    metrics.heartbeats.labels("heard")
    metrics.heartbeat_bytes.labels("sent")
    found = {}
    for family in metrics.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {key for sample in family.samples for key in sample.labels} - {"le"}
        found[name] = (family.type, frozenset(labels), family.documentation.rstrip("."))
    return found


def test_the_page_lists_what_the_code_exports() -> None:
    page = {
        name: (kind, labels, text.rstrip("."))
        for name, (kind, labels, text) in documented().items()
    }
    assert page == coded()


def test_the_page_lists_every_outcome() -> None:
    section = PAGE.partition("## Outcomes")[2]
    assert re.findall(r"^\| `(\w+)` \| [^h]", section, re.MULTILINE)[1:] == [
        outcome.value for outcome in Outcome
    ]


def test_names_follow_the_conventions() -> None:
    allowed = re.compile(
        r"weir_[a-z_]+?(_seconds|_bytes|_total|_ratio|_info|_requests|_running|_up|_draining)?"
    )
    assert all(allowed.fullmatch(name) for name in coded())


def test_outcomes_are_counted_from_zero() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.of_class("batch").requests(Outcome.OK).inc()
    assert metrics.outcomes() == {o.value: int(o is Outcome.OK) for o in Outcome}


def test_what_waits_is_shown_by_class_and_tenant_and_tenants_are_bounded() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.show_queue([("batch", f"t{n}", float(n)) for n in range(100)], 5)
    value = metrics.registry.get_sample_value
    assert value("weir_queue_requests", {"class": "batch", "tenant": "t3"}) == 1
    assert value("weir_queue_requests", {"class": "batch", "tenant": "other"}) == 36
    assert value("weir_queue_oldest_seconds", {"class": "batch", "tenant": "other"}) == 99
    metrics.show_queue([], 0)
    assert value("weir_queue_requests", {"class": "batch", "tenant": "t3"}) is None
