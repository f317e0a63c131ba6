"""An InferenceService under test: what the user applied, and everything that follows from it.

Its engine is vLLM, or a mock of vLLM where a scenario is about Kubernetes: see `MOCK_ENGINE`.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from e2e.eventually import eventually
from e2e.hosted import CHECKOUT
from e2e.kube import Manifest, conditions, kind_and_name
from e2e.target import Target
from weir_core.api import labels
from weir_core.wire.state_access import authorization
from weir_operator.render import document_in
from weir_operator.render.patch import patched

NAMESPACE = "weir-e2e"
EXAMPLES = "weir-e2e-examples"
"""Namespace of the project's examples."""
OWNED = (
    "deployments,replicasets,pods,services,endpointslices,poddisruptionbudgets,serviceaccounts,"
    "networkpolicies,configmaps,controllerrevisions,secrets,roles,rolebindings,jobs"
)
# One engine needs 15 s alone on a fast machine and a minute beside another one on two cores.
READY_WITHIN_S = 300.0
MODEL = "tiny"

LONG_GRACE: Manifest = {"spec": {"terminationGracePeriodSeconds": 600}}
"""A pod patch with which a pod that has gone has ended by itself: nothing here waits so long."""

MOCK_ENGINE: Manifest = {
    "spec": {
        "containers": [
            {
                "name": labels.ENGINE_CONTAINER,
                "command": [
                    "python3", "-m", "weir_sim.mock_engine", "--token-gap-ms=10",
                    f"--model={MODEL}", f"--uds={labels.RUN_DIR}/{labels.ENGINE_SOCKET}",
                ],
            }
        ]
    }
}  # fmt: skip
"""A pod patch that starts a mock in the place of vLLM, which computes nothing.

It listens a second after its start. All else of the pod stays: the sidecar, the container that
fetches the model, probes, the drain. It writes no facts, so SchedulingReady calls it no Weir
engine.
"""

NO_MODEL: Manifest = {
    "spec": {"initContainers": [{"name": labels.MODEL_CONTAINER, "command": ["true"]}]}
}
"""A pod patch for mocks: making their model takes longer than all else of a pod's start."""


def quickstart_spec() -> dict[str, Any]:
    """Return the spec of the quickstart example."""
    text = (CHECKOUT / "examples/quickstart.yaml").read_text()
    spec: dict[str, Any] = yaml.safe_load(text)["spec"]
    return spec


@dataclass(frozen=True)
class Service:
    """One InferenceService made from the quickstart example.

    Args:
        overrides: What differs from the example's spec; without replicas it costs nothing.
        pod_patch: What differs from the pods that the target wants, such as `MOCK_ENGINE`.
        namespace: Where it is; there must be one of that name.
    """

    target: Target
    name: str
    overrides: dict[str, Any] = field(default_factory=dict)
    pod_patch: Manifest = field(default_factory=dict)
    namespace: str = NAMESPACE

    @property
    def manifest(self) -> Manifest:
        """What gets applied."""
        spec = {**quickstart_spec(), **copy.deepcopy(self.target.spec)}
        pods = patched(spec.get("podTemplate", {}), LONG_GRACE)
        spec["podTemplate"] = patched(pods, self.pod_patch)
        return {
            "apiVersion": labels.API_VERSION,
            "kind": "InferenceService",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {**spec, **self.overrides},
        }

    @property
    def selector(self) -> str:
        """Label selector of everything that belongs to it."""
        return f"{labels.SERVICE}={self.name}"

    def apply(self) -> None:
        """Apply it."""
        self.target.kubectl.apply(self.manifest)

    def ensure_ready(self) -> None:
        """Give it its own number of ready replicas, whatever an earlier scenario did to it."""
        found = self.target.kubectl.find("infs", self.name, self.namespace)
        replicas = self.manifest["spec"]["replicas"]
        if found is None:
            self.apply()
        elif found["spec"].get("replicas") != replicas:
            self.patch({"replicas": replicas})
        self.wait_ready(replicas)

    def patch(self, spec: dict[str, Any]) -> None:
        """Merge `spec` into its spec."""
        self.target.kubectl.patch("infs", self.name, self.namespace, {"spec": spec})

    def object(self) -> Manifest:
        """Return it as it is in the cluster."""
        return self.target.kubectl.get("infs", self.name, self.namespace)

    def delete(self) -> None:
        """Delete it; its objects follow in the background."""
        self.target.kubectl(
            "delete", "infs", self.name, f"--namespace={self.namespace}", "--wait=false"
        )

    def wait_ready(self, replicas: int, *, within_s: float = READY_WITHIN_S) -> None:
        """Wait until the newest generation is acted upon and so many replicas take requests."""

        def ready() -> None:
            found = self.object()
            status = found.get("status", {})
            state = conditions(found).get("Ready", {})
            assert status.get("observedGeneration") == found["metadata"]["generation"], status
            assert state.get("status") == "True", state
            assert status.get("readyReplicas", 0) == replicas, status
            pods = self.pods()
            assert len(pods) == replicas, [kind_and_name(pod) for pod in pods]
            # The status of the service may speak of one that is ending.
            unready = [kind_and_name(pod) for pod in pods if not _takes_requests(pod)]
            assert not unready, unready

        eventually(ready, within_s=within_s)

    def wait_replaced(self, uid: str) -> None:
        """Wait until the pod with this uid is ending or gone, and another one is there."""

        def replaced() -> None:
            assert uid not in [pod["metadata"]["uid"] for pod in self.pods()]
            assert self.pods()

        eventually(replaced, within_s=READY_WITHIN_S)

    def wait_gone(self, replicas: int) -> None:
        """Wait until the pods that were ending have ended and only so many are left."""

        def gone() -> None:
            pods = self.target.kubectl.list("pods", self.namespace, self.selector)
            assert len(pods) == replicas, [kind_and_name(pod) for pod in pods]

        eventually(gone)

    def observed(self) -> Manifest:
        """Wait until the operator has acted upon the newest generation; return the object.

        A pass has not acted while objects of an earlier service of this name, which the cluster
        deletes in its own time, stand in its way.
        """

        def acted() -> Manifest:
            found = self.object()
            seen = found.get("status", {}).get("observedGeneration")
            assert seen == found["metadata"]["generation"], found.get("status")
            reasons = {each["reason"] for each in conditions(found).values()}
            assert not reasons & {"Refused", "WaitingForPredecessor"}, found["status"]
            return found

        return eventually(acted)

    def says(self, condition: str, status: str, reason: str) -> Manifest:
        """Wait until a condition has this status and reason; return it."""

        def said() -> Manifest:
            found = conditions(self.object()).get(condition, {})
            assert (found.get("status"), found.get("reason")) == (status, reason), found
            return found

        return eventually(said)

    def pods(self) -> list[Manifest]:
        """Return its pods that are not ending."""
        pods = self.target.kubectl.list("pods", self.namespace, self.selector)
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def pod(self) -> Manifest:
        """Return its only pod."""
        pods = self.pods()
        assert len(pods) == 1, [kind_and_name(pod) for pod in pods]
        return pods[0]

    def metrics(self) -> str:
        """Return what the sidecar of its only pod tells Prometheus."""
        address = self.pod()["status"]["podIP"]
        return httpx.get(f"http://{address}:{labels.ADMIN_PORT}/metrics", timeout=30).text

    def state_of(self, pod: Manifest) -> Manifest:
        """Return what a pod's sidecar knows, which it tells to what holds a key of the service."""
        secret = self.target.kubectl.get("secret", f"{self.name}-policies", self.namespace)
        document = document_in(secret)
        assert document is not None
        shown = authorization(document.peer_keys, pod["metadata"]["name"], time.time())
        url = f"http://{pod['status']['podIP']}:{labels.ADMIN_PORT}/state"
        answer = httpx.get(url, headers={"Authorization": shown}, timeout=5)
        assert answer.status_code == 200, answer.text
        found: Manifest = answer.json()
        return found

    def owned(self) -> list[Manifest]:
        """Return everything in the cluster that belongs to it, and not to one of its name before.

        Once it is deleted, that is whatever carries its label.
        """
        found = self.target.kubectl.list(OWNED, self.namespace, self.selector)
        service = self.target.kubectl.find("infs", self.name, self.namespace)
        return found if service is None else _descendants(service, found)

    def templates(self) -> dict[str, Any]:
        """Return the pod template of each Deployment by its name."""
        found = self.target.kubectl.list("deployments", self.namespace, self.selector)
        return {one["metadata"]["name"]: one["spec"]["template"] for one in found}

    def url(self) -> str:
        """Return where the tests reach it: its ClusterIP, as there is no cluster DNS here."""
        address = urlsplit(self.object()["status"]["url"])
        assert address.hostname is not None
        name, namespace = address.hostname.split(".")[:2]
        service = self.target.kubectl.get("service", name, namespace)
        return f"http://{service['spec']['clusterIP']}:{address.port or 80}"


def folder_claim(name: str, folder: Path, mode: str) -> list[Manifest]:
    """Return a volume that is a folder of the node, and the claim of it, which has its name.

    Args:
        name: Of both.
        folder: It exists.
        mode: How pods may use it, such as `ReadWriteMany`.
    """
    common = {"accessModes": [mode], "storageClassName": ""}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            **common,
            "capacity": {"storage": "1Mi"},
            "hostPath": {"path": str(folder), "type": "Directory"},
            "claimRef": {"name": name, "namespace": NAMESPACE},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            **common,
            "resources": {"requests": {"storage": "1Mi"}},
            "volumeName": name,
        },
    }
    return [volume, claim]


def _takes_requests(pod: Manifest) -> bool:
    return conditions(pod).get("Ready", {}).get("status") == "True"


def restarts(pod: Manifest) -> list[int]:
    """Return how often each container of a pod has started again."""
    status = pod["status"]
    every = [*status["initContainerStatuses"], *status["containerStatuses"]]
    return [each["restartCount"] for each in every]


def _descendants(root: Manifest, found: list[Manifest]) -> list[Manifest]:
    """Return what `root` owns, what that owns, and so on."""
    uids, before = {root["metadata"]["uid"]}, 0
    while len(uids) > before:
        before = len(uids)
        uids |= {one["metadata"]["uid"] for one in found if uids & _owners(one)}
    return [one for one in found if uids & _owners(one)]


def _owners(one: Manifest) -> set[str]:
    return {owner["uid"] for owner in one["metadata"].get("ownerReferences", ())}
