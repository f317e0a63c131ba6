"""What the cluster looked like when a scenario failed: objects, events and the ends of logs."""

from __future__ import annotations

from collections.abc import Iterable

from e2e.kube import Kubectl, Manifest

LOG_LINES = 40


def collect(kubectl: Kubectl, namespaces: Iterable[str]) -> list[tuple[str, str]]:
    """Return titled sections for a test report; never fail."""
    sections = []
    for namespace in namespaces:
        where = f"--namespace={namespace}"
        everything = "infs,deployments,replicasets,pods,services,leases"
        for title, arguments in (
            ("objects", ("get", everything, where, "--output=wide")),
            ("conditions", ("get", "infs", where, "--output=jsonpath={.items[*].status}")),
            ("events", ("get", "events", where, "--sort-by=.lastTimestamp")),
        ):
            sections.append((f"{title} in {namespace}", _output(kubectl, *arguments)))
        for pod in _pods(kubectl, namespace):
            sections.extend(_logs(kubectl, pod))
    return sections


def _pods(kubectl: Kubectl, namespace: str) -> list[Manifest]:
    try:
        return kubectl.list("pods", namespace)
    except Exception:  # evidence must not hide the failure it is about
        return []


def _logs(kubectl: Kubectl, pod: Manifest) -> Iterable[tuple[str, str]]:
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    spec, status = pod["spec"], pod["status"]
    states = status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
    restarted = {state["name"] for state in states if state["restartCount"]}
    where = (f"--namespace={namespace}", f"--tail={LOG_LINES}")
    for container in (*spec.get("initContainers", []), *spec["containers"]):
        log = ("logs", name, *where, f"--container={container['name']}")
        yield f"log of {name} {container['name']}", _output(kubectl, *log)
        if container["name"] in restarted:
            yield f"its log before the restart: {name}", _output(kubectl, *log, "--previous")


def _output(kubectl: Kubectl, *arguments: str) -> str:
    try:
        done = kubectl.attempt(*arguments, timeout_s=15)
    except Exception as error:  # evidence must not hide the failure it is about
        return f"(not to be had: {error})"
    return done.out + done.err
