"""Weir itself on the cluster under test: by Helm, as the README says, or rendered and applied."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2e.eventually import eventually
from e2e.hosted import CHECKOUT
from e2e.kube import Manifest
from e2e.service import NAMESPACE as SERVICES
from e2e.service import Service
from e2e.target import Target

RELEASE = "weir"
NAMESPACE = "weir-system"
CHART = CHECKOUT / "helm/weir"
DEFINITIONS = CHART / "crds"
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

    def upgrade(self, values: dict[str, Any], chart: Path = CHART) -> None:
        """Install or upgrade with `values` on top of what the cluster needs; wait for it."""
        self.target.helm(
            "upgrade", RELEASE, str(chart), "--install", f"--namespace={NAMESPACE}",
            "--create-namespace", "--wait", "--timeout=120s", "--values=-",
            stdin=self._values(values), timeout_s=180,
        )  # fmt: skip

    def rendered(self, values: dict[str, Any], *arguments: str) -> list[Manifest]:
        """Return what the chart renders, as tools that only render take it."""
        out = self.target.helm(
            "template", RELEASE, str(CHART), f"--namespace={NAMESPACE}", "--values=-", *arguments,
            stdin=self._values(values),
        )  # fmt: skip
        return [manifest for manifest in yaml.safe_load_all(out) if manifest]

    def _values(self, values: dict[str, Any]) -> str:
        operator = {**self.target.values.get("operator", {}), **values.get("operator", {})}
        return json.dumps({**self.target.values, **values, "operator": operator})

    def define(self, *options: str) -> None:
        """Apply the resource definitions, as install.md says for an upgrade."""
        self.target.kubectl(
            "apply", "--server-side", "--force-conflicts", f"--filename={DEFINITIONS}", *options
        )

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
        lease = self.lease() or {}
        return str(lease.get("spec", {}).get("holderIdentity", ""))

    def lease(self) -> Manifest | None:
        """Return the Lease, if there is one."""
        return self.target.kubectl.find("lease", LEASE, NAMESPACE)

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
