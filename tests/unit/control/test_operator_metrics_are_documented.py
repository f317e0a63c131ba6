"""docs/metrics.md and the operator's code list the same metrics, labels and texts."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from weir_core.scale.types import Decision, Verdict
from weir_operator.metrics import Metrics

PAGE = (Path(__file__).parents[3] / "docs/metrics.md").read_text()
ROW = re.compile(r"^\| `(weir_\w+)` \| (\w+) \| ([^|]*)\| ([^|]*) \|$", re.MULTILINE)


def test_the_page_lists_what_the_code_exports() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.ended("a service", "settled")
    metrics.definition_lacks.labels("a definition").set(0)
    metrics.unwatched.labels("secrets").set(0)
    condition = {"type": "Ready", "status": "True", "reason": "Serving"}
    pool = {"name": "a", "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1}
    metrics.show(("a", "b"), {"conditions": [condition], "pools": [pool]}, {"a": 1})
    decided = Decision({"cpu": 1}, Verdict.STEADY, "", inputs={"need": 0.5})
    metrics.scaled(("models", "chat"), decided)
    exported = {}
    for family in metrics.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {key for sample in family.samples for key in sample.labels} - {"le"}
        exported[name] = (family.type, labels, family.documentation)
    assert exported == {
        name: (kind, set(re.findall(r"`(\w+)`", labels)), text)
        for name, kind, labels, text in ROW.findall(PAGE)
    }
