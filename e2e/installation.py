"""Weir itself on the cluster under test, installed as the README says: by Helm."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from e2e.eventually import eventually
from e2e.hosted import CHECKOUT
from e2e.kube import Manifest
from e2e.service import NAMESPACE as SERVICES
from e2e.service import Service
from e2e.target import Target

RELEASE = "weir"
NAMESPACE = "weir-system"
CHART = CHECKOUT / "helm/weir"
OPERATOR = "app.kubernetes.io/name=weir,app.kubernetes.io/component=operator"
LEASE = "weir-operator"


@dataclass(frozen=True)
class Installation:
    """The Helm release, and the operator it runs."""

    target: Target

    def ensure(self) -> None:
        """Install Weir unless it is there, or repair an upgrade that was cut short."""
        status = self.target.helm.attempt("status", RELEASE, f"--namespace={NAMESPACE}")
        if "STATUS: deployed" not in status.out:
            self.upgrade({})

    def upgrade(self, values: dict[str, Any]) -> None:
        """Install or upgrade with `values` on top of what the cluster needs; wait for it."""
        operator = {**self.target.values.get("operator", {}), **values.get("operator", {})}
        document = {**self.target.values, **values, "operator": operator}
        self.target.helm(
            "upgrade", RELEASE, str(CHART), "--install", f"--namespace={NAMESPACE}",
            "--create-namespace", "--wait", "--timeout=120s", "--values=-",
            stdin=json.dumps(document), timeout_s=180,
        )  # fmt: skip

    def uninstall(self) -> None:
        """Uninstall the release; wait for its pods to end."""
        self.target.helm(
            "uninstall", RELEASE, f"--namespace={NAMESPACE}", "--wait", "--timeout=60s",
            timeout_s=90,
        )  # fmt: skip

    def pods(self) -> list[Manifest]:
        """Return the operator's pods that are not ending."""
        pods = self.target.kubectl.list("pods", NAMESPACE, OPERATOR)
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def holder(self) -> str:
        """Return which pod holds the Lease."""
        lease = self.target.kubectl.get("lease", LEASE, NAMESPACE)
        return str(lease["spec"].get("holderIdentity", ""))

    def ready(self, replicas: int = 1) -> None:
        """Wait until so many operators are ready."""

        def enough() -> None:
            states = [pod["status"].get("containerStatuses", [{}])[0] for pod in self.pods()]
            assert [state.get("ready") for state in states] == [True] * replicas, states

        eventually(enough)

    def acts_on(self, service: Service) -> None:
        """Wait until the running operator has proved that it works on `service`.

        It is asked for something that changes no pod: the budget is deleted and must come back.
        """
        kubectl = self.target.kubectl
        (budget,) = kubectl.list("poddisruptionbudgets", SERVICES, service.selector)
        name, uid = budget["metadata"]["name"], budget["metadata"]["uid"]
        kubectl("delete", "poddisruptionbudget", name, f"--namespace={SERVICES}")

        def back() -> None:
            again = kubectl.get("poddisruptionbudget", name, SERVICES)
            assert again["metadata"]["uid"] != uid

        eventually(back)

    def kill(self) -> None:
        """Kill every operator's process as a crash would."""
        for pod in self.pods():
            self.target.kill(pod, "operator")
