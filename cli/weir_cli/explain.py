"""`weir explain NAME`: what is wrong with a service, or where a request is, and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any, Final

from weir_cli import explain_cluster, explain_local
from weir_cli.display import plain
from weir_cli.explain_facts import Explanation, Facts, Finding, Refusal
from weir_cli.explain_findings import explain
from weir_cli.explain_request import explain_request
from weir_cli.records import Instance
from weir_core.api import labels

BETWEEN_S: Final = 2.0
"""Between two readings of counters, so that what is rejected now shows."""
OPERATOR_NAMESPACE: Final = "weir-system"
DOCS: Final = "docs/"


@dataclass(frozen=True)
class Where:
    """Where to look: without a namespace and a context, a `weir up` of this machine first."""

    namespace: str = ""
    context: str = ""
    operator_namespace: str = OPERATOR_NAMESPACE

    @property
    def is_cluster(self) -> bool:
        """Whether a cluster was asked for."""
        return bool(self.namespace or self.context)


def of_service(
    name: str,
    where: Where,
    cache: Path,
    ask: explain_cluster.Ask,
    between_s: float = BETWEEN_S,
) -> Explanation:
    """Return what there is to say of a service."""
    running = None if where.is_cluster else explain_local.find(name, cache)
    if running is not None:
        return explain(explain_local.read(*running, cache, between_s))
    namespace = where.namespace or explain_cluster.namespace_of(ask)
    facts = explain_cluster.read(name, namespace, where.operator_namespace, ask, between_s)
    return explain(facts if where.is_cluster else _or_local(facts, explain_local.names(cache)))


def _or_local(facts: Facts, names: tuple[str, ...]) -> Facts:
    """Return that the name is unknown here, where services run here and no cluster answers."""
    if facts.refusal is not Refusal.NO_CLUSTER or not names:
        return facts
    return replace(
        facts,
        where="`weir up` on this machine, and no cluster answers",
        namespace="",
        refusal=Refusal.UNKNOWN_NAME,
        names=names,
    )


def of_request(
    request_id: str, name: str, where: Where, cache: Path, ask: explain_cluster.Ask
) -> Explanation:
    """Return where a request of a service is."""
    running = None if where.is_cluster else explain_local.find(name, cache)
    if running is not None:
        record, service = running
        reports, unseen = explain_local.requests(request_id, service)
        files = Instance(cache, record.port).logs
        logs = (f"grep -h {quote(request_id)} {files}/*.log",)
        place = f"`weir up` at port {record.port}"
        return explain_request(request_id, name, place, reports, unseen, logs)
    namespace = where.namespace or explain_cluster.namespace_of(ask)
    reports, unseen = explain_cluster.requests(request_id, name, namespace, ask)
    if not reports:  # most often the service is not there, or may not be read
        facts = explain_cluster.read(name, namespace, where.operator_namespace, ask, 0.0)
        if facts.refusal is not None:
            return explain(facts)
    selector = f"{labels.SERVICE}={name}"
    logs = (
        f"kubectl logs -n {namespace} -l {selector} -c sidecar --prefix --tail=-1 "
        f"| grep {quote(request_id)}",
    )
    place = f"namespace {namespace}"
    return explain_request(request_id, name, place, reports, unseen, logs)


# ---- shown


def lines_of(found: Explanation) -> Iterator[str]:
    """Yield what is printed: the verdict, then the evidence, then what to do."""
    yield from map(plain, _lines(found))


def _lines(found: Explanation) -> Iterator[str]:
    yield found.verdict
    for number, each in enumerate(found.findings):
        yield ""
        if number:
            yield f"Also: {each.what}"
        yield from _lines_of(each)
    yield from _section("Noteworthy:" if found.findings else "", found.remarks)
    missed = [f"{each.what}: {each.why}" for each in found.unseen]
    yield from _section("Could not be seen:", missed)


def _lines_of(finding: Finding) -> Iterator[str]:
    if finding.evidence:
        yield "Seen:"
        yield from (f"  {line}" for each in finding.evidence for line in each.splitlines())
    if finding.advice or finding.commands:
        yield "What to do:"
    if finding.advice:
        yield f"  {finding.advice}"
    yield from (f"    {command}" for command in finding.commands)
    if finding.section:
        yield f"  Read on: {DOCS}{finding.section}"


def _section(title: str, lines: tuple[str, ...] | list[str]) -> Iterator[str]:
    if not lines:
        return
    yield ""
    if title:
        yield title
    yield from (f"  {line}" for line in lines)


def as_json(found: Explanation) -> str:
    """Return the same for programs."""
    page: dict[str, Any] = {
        "name": found.name,
        "where": found.where,
        "health": found.health.value,
        "verdict": found.verdict,
        "findings": [each._asdict() for each in found.findings],
        "remarks": found.remarks,
        "unseen": [each._asdict() for each in found.unseen],
    }
    return json.dumps(page, indent=2)
