"""What `weir explain` reads of a service on a cluster, by kubectl: as the user who asks.

kubectl knows the user's cluster, proxies and logins, and its words for a refusal are the ones that
people look up. What it cannot read is left out and told; nothing here waits without a bound.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from weir_cli.explain_facts import Event, Facts, Lease, Refusal, Replica, Unseen
from weir_cli.explain_load import READ
from weir_cli.top_figures import Page, read_page
from weir_core.api import labels
from weir_core.wire.request_state import RequestReport
from weir_operator.views import Container, Pod, view

SERVICES: Final = f"inferenceservices.{labels.GROUP}"
TENANTS: Final = f"inferencetenants.{labels.GROUP}"
LEASE: Final = "weir-operator"
_PATIENCE_S: Final = 15.0
_AT_ONCE: Final = 8
_MOST_ASKED: Final = 8
"""Replicas that are looked into; of a large fleet those that are not ready come first."""
_LINES: Final = 60
"""Of an engine's log: a traceback of vLLM's fits."""
_REFUSALS: Final = (
    ("(NotFound)", Refusal.UNKNOWN_NAME),
    ("doesn't have a resource type", Refusal.DEFINITIONS_MISSING),
    ("could not find the requested resource", Refusal.DEFINITIONS_MISSING),
    ("(Forbidden)", Refusal.FORBIDDEN),
)
_FETCHED: Final = frozenset({labels.ENGINE_CONTAINER, labels.MODEL_CONTAINER})


class Answer(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str = ""

    @property
    def why(self) -> str:
        """What it said last, where it failed."""
        said = [each for each in self.err.splitlines() if each.strip()]
        return said[-1].strip() if said else f"kubectl ended with {self.code}"


Ask = Callable[..., Answer]


def kubectl(context: str = "") -> Ask:
    """Return what asks a cluster: that of the kubeconfig's current context, or another."""
    chosen = (f"--context={context}",) if context else ()

    def ask(*arguments: str) -> Answer:
        try:
            done = subprocess.run(
                ["kubectl", *chosen, *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_PATIENCE_S,
                stdin=subprocess.DEVNULL,
            )
        except FileNotFoundError:
            return Answer(127, "", "kubectl is not installed, or not on the PATH")
        except subprocess.TimeoutExpired:
            return Answer(124, "", f"no answer within {_PATIENCE_S:.0f} s")
        return Answer(done.returncode, done.stdout, done.stderr)

    return ask


@dataclass
class _Reading:
    """One look at one service."""

    ask: Ask
    namespace: str
    unseen: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def get(self, *arguments: str) -> Answer:
        """Return objects of the namespace, as JSON."""
        return self.ask("get", *arguments, f"--namespace={self.namespace}", "--output=json")

    def items(self, what: str, *arguments: str) -> list[dict[str, Any]] | None:
        """Return a list of objects; None where it cannot be read, which is noted."""
        answer = self.get(*arguments)
        if answer.code:
            self.miss(what, "", answer.why)
            return None
        found: list[dict[str, Any]] = json.loads(answer.out).get("items") or []
        return found

    def miss(self, what: str, whose: str, why: str) -> None:
        """Note what could not be read."""
        self.unseen.setdefault((what, why), []).append(whose)

    @property
    def missed(self) -> tuple[Unseen, ...]:
        """All that was noted, equal reasons together."""
        found = []
        for (what, why), whose in self.unseen.items():
            names = ", ".join(sorted(filter(None, whose)))
            found.append(Unseen(f"{what} of {names}" if names else what, why))
        return tuple(found)


def namespace_of(ask: Ask) -> str:
    """Return the namespace of the kubeconfig's context."""
    found = ask("config", "view", "--minify", "--output=jsonpath={..namespace}")
    return found.out.strip() if not found.code and found.out.strip() else "default"


def read(name: str, namespace: str, operator_namespace: str, ask: Ask, between_s: float) -> Facts:
    """Return what can be read of a service.

    Args:
        name: Of the InferenceService.
        namespace: Its own.
        operator_namespace: Where the operators' Lease is.
        ask: Runs kubectl.
        between_s: Seconds between two readings of metrics, of a service that serves.
    """
    reading = _Reading(ask, namespace)
    facts = Facts(
        name,
        f"namespace {namespace}",
        namespace=namespace,
        operator_namespace=operator_namespace,
    )
    answer = reading.get(SERVICES, name)
    if answer.code:
        return _refused(facts, answer, reading)
    facts = replace(facts, body=json.loads(answer.out))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        lease = pool.submit(_lease, reading, operator_namespace)
        tenants = pool.submit(reading.items, "tenants", TENANTS)
        events = pool.submit(reading.items, "events", "events", "--field-selector=type=Warning")
        pods = reading.items("pods", "pods", f"--selector={labels.SERVICE}={name}") or []
        chosen = sorted(pods, key=lambda each: view(Pod, each).is_ready)[:_MOST_ASKED]
        replicas = list(pool.map(lambda each: _replica(reading, each), chosen))
        if any(each.first for each in replicas) and between_s:
            time.sleep(between_s)
            replicas = list(pool.map(lambda each: _again(reading, each), replicas))
            facts = replace(facts, between_s=between_s)
        found = tenants.result()
        about = {name, *(each["metadata"]["name"] for each in pods)}
        return replace(
            facts,
            replicas=tuple(replicas),
            left_out=len(pods) - len(chosen),
            events=_events(events.result() or (), about, name),
            lease=lease.result(),
            tenants=None if found is None else len(found),
            unseen=reading.missed,
        )


def _refused(facts: Facts, answer: Answer, reading: _Reading) -> Facts:
    """Return why there is nothing to say; near names, where that is the reason."""
    refusal = next((each for text, each in _REFUSALS if text in answer.err), Refusal.NO_CLUSTER)
    names: tuple[str, ...] = ()
    if refusal is Refusal.UNKNOWN_NAME:
        there = reading.items("the names of other services", SERVICES) or ()
        names = tuple(each["metadata"]["name"] for each in there)
    return replace(facts, refusal=refusal, refused=answer.why, names=names, unseen=reading.missed)


def _lease(reading: _Reading, namespace: str) -> Lease | None:
    answer = reading.ask("get", "lease", LEASE, f"--namespace={namespace}", "--output=json")
    if "(NotFound)" in answer.err:
        return Lease()
    if answer.code:
        reading.miss("the operators' Lease", "", answer.why)
        return None
    spec = json.loads(answer.out).get("spec") or {}
    renewed = spec.get("renewTime")
    age_s = 0.0
    if renewed:
        age_s = (datetime.now(UTC) - datetime.fromisoformat(renewed)).total_seconds()
    return Lease(
        spec.get("holderIdentity") or "", age_s, float(spec.get("leaseDurationSeconds") or 0)
    )


_MAKERS: Final = frozenset({"Deployment", "ReplicaSet", "LeaderWorkerSet", "StatefulSet"})
"""Kinds that make pods, the one through the other."""


def _events(found: Iterable[Mapping[str, Any]], about: set[str], name: str) -> tuple[Event, ...]:
    """Return the warnings about the service, its pods and what makes them, the newest last."""
    mine = []
    for each in found:
        of = each.get("involvedObject") or {}
        makes_pods = of.get("kind") in _MAKERS
        whose = str(of.get("name", ""))
        if whose in about or (makes_pods and whose.startswith(f"{name}-")):
            when = each.get("lastTimestamp") or each.get("eventTime") or ""
            told = Event(whose, each.get("reason", ""), each.get("message", "").strip())
            mine.append((when, told))
    return tuple(told for _, told in sorted(mine))


# ---- one replica


def _replica(reading: _Reading, manifest: dict[str, Any]) -> Replica:
    pod = view(Pod, manifest)
    spec = manifest.get("spec") or {}
    containers = (*spec.get("initContainers", ()), *spec.get("containers", ()))
    found = Replica(
        pod.name,
        pod=pod,
        engine_ended_s=_engine_ended_s(pod),
        images={each["name"]: each.get("image", "") for each in containers},
        last_lines={
            each.name: lines
            for each in pod.containers
            if each.name in _FETCHED and each.has_failed
            if (lines := _last_lines(reading, pod.name, each))
        },
    )
    sidecar = next((c for c in pod.containers if c.name == labels.SIDECAR_CONTAINER), None)
    if sidecar is None or not sidecar.is_running:
        return found
    found = replace(found, first=_page(reading, pod.name))
    return found if pod.is_gateway else replace(found, state=_state(reading, pod.name))


def _engine_ended_s(pod: Pod) -> float | None:
    end = None if pod.engine is None else pod.engine.ended
    if end is None or end.finished_at is None:
        return None
    return (datetime.now(UTC) - end.finished_at).total_seconds()


def _again(reading: _Reading, replica: Replica) -> Replica:
    if replica.first is None:
        return replica
    return replace(replica, later=_page(reading, replica.name))


def _last_lines(reading: _Reading, pod: str, container: Container) -> tuple[str, ...]:
    """Return the end of what the last run wrote that has ended."""
    before = () if container.state.terminated else ("--previous",)
    answer = reading.ask(
        "logs", pod, f"--namespace={reading.namespace}", f"--container={container.name}",
        f"--tail={_LINES}", *before,
    )  # fmt: skip
    if answer.code:
        reading.miss(f"the log of container {container.name}", pod, answer.why)
        return ()
    return tuple(answer.out.splitlines())


def _in_sidecar(reading: _Reading, pod: str, *command: str) -> Answer:
    return reading.ask(
        "exec", pod, f"--namespace={reading.namespace}",
        f"--container={labels.SIDECAR_CONTAINER}", "--", "weir-sidecar", *command,
    )  # fmt: skip


def _state(reading: _Reading, pod: str) -> Any:
    answer = _in_sidecar(reading, pod, "state")
    if answer.code:
        reading.miss("the sidecar's state", pod, answer.why)
        return None
    try:
        return json.loads(answer.out)
    except (ValueError, RecursionError):  # of JSON that is nested deeply
        reading.miss("the sidecar's state", pod, "it is no JSON")
        return None


def _page(reading: _Reading, pod: str) -> Page | None:
    """Return a sidecar's metrics, which the API server fetches."""
    path = f"/api/v1/namespaces/{reading.namespace}/pods/{pod}:{labels.ADMIN_PORT}/proxy/metrics"
    answer = reading.ask("get", "--raw", path)
    if answer.code:
        reading.miss("the metrics", pod, answer.why)
        return None
    try:
        return read_page(answer.out, READ)
    except ValueError as error:
        reading.miss("the metrics", pod, str(error))
        return None


# ---- one request


def requests(
    request_id: str, name: str, namespace: str, ask: Ask
) -> tuple[list[RequestReport], tuple[Unseen, ...]]:
    """Return what the sidecars of a service say of a request, and which did not."""
    reading = _Reading(ask, namespace)
    pods = reading.items("pods", "pods", f"--selector={labels.SERVICE}={name}") or []
    names = [view(Pod, each).name for each in pods]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda each: _report(reading, each, request_id), names))
    return [each for each in found if each is not None], reading.missed


def _report(reading: _Reading, pod: str, request_id: str) -> RequestReport | None:
    answer = _in_sidecar(reading, pod, "request", "--", request_id)
    if answer.code:
        reading.miss("the requests", pod, answer.why)
        return None
    try:
        return RequestReport.decode(answer.out.encode())
    except msgspec.MsgspecError as error:
        reading.miss("the requests", pod, str(error))
        return None
