"""A HorizontalPodAutoscaler at an InferenceService of two pools settles where its load fits.

The autoscaler is Kubernetes' own. It asks for the requests that each replica holds, through the
API server, and is answered by a program of ours that reads the sidecars' metrics (`metrics_api`).
The load is a number of streams that the test spreads evenly over all ready replicas itself, so that
the right number of replicas follows from arithmetic.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e import hosted, metrics_api
from e2e.counts import Page
from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.kube import Kubectl, Manifest
from e2e.service import MOCK_ENGINE, MODEL, NAMESPACE, Service, quickstart_spec
from e2e.target import Target
from weir_core.api import labels
from weir_operator.render.patch import patched

METRIC = "weir_requests_running"
FIXED = 2
"""Replicas of the pool that has a number of its own."""
MOST = 6
TARGET = 4
"""Requests that a replica shall hold, in the mean of the replicas that the autoscaler looks at."""
HIGH, LOW = 20, 3
"""Streams. The high load fits 5 replicas: 3 beside the fixed ones. The low one fits those alone."""
LOOKS = 4
"""Decisions that change nothing, by which a number is a settled one."""

SLOW_STREAMS: Manifest = {
    "spec": {
        "initContainers": [{"name": labels.MODEL_CONTAINER, "command": ["true"]}],
        "containers": [
            {
                "name": labels.ENGINE_CONTAINER,
                "command": [
                    *MOCK_ENGINE["spec"]["containers"][0]["command"], "--token-gap-ms=500",
                ],
            }
        ],
    }
}  # fmt: skip
"""MOCKS that need no model and whose streams outlast the scenario at little cost."""


@pytest.fixture
def adapter(target: Target, tmp_path: Path) -> Iterator[str]:
    """The metrics API, answered by our program; its pod's name."""
    kubectl, name = target.kubectl, "metrics-api"
    kubectl.apply(_object("v1", "ServiceAccount", name))
    account = {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    binding = {"roleRef": role, "subjects": [account]}
    kubectl.apply(_object("rbac.authorization.k8s.io/v1", "RoleBinding", name, **binding))
    keys = _keys(kubectl, tmp_path, f"{name}.{NAMESPACE}.svc")
    data = {file: base64.b64encode(content).decode() for file, content in keys.items()}
    kubectl.apply(_object("v1", "Secret", name, data=data))
    kubectl.apply(_adapter_pod(name))
    ports = [{"port": 443, "targetPort": metrics_api.PORT}]
    kubectl.apply(_object("v1", "Service", name, spec={"selector": {"app": name}, "ports": ports}))
    group, _, version = metrics_api.GROUP_VERSION.partition("/")
    kubectl.apply(
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{version}.{group}"},
            "spec": {
                "group": group,
                "version": version,
                "service": {"name": name, "namespace": NAMESPACE},
                "caBundle": data["tls.crt"],
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        }
    )
    kubectl(
        "wait", "--for=condition=Available", f"apiservice/{version}.{group}", "--timeout=60s",
        timeout_s=90,
    )  # fmt: skip
    yield name
    kubectl("delete", "apiservice", f"{version}.{group}")  # an absent API disturbs all discovery
    everything = "pod,service,secret,rolebinding,serviceaccount"
    where = (f"--namespace={NAMESPACE}", "--grace-period=1", "--wait=false")
    kubectl("delete", everything, name, *where)


@pytest.fixture
def two_pools(weir: Installation) -> Iterator[Service]:
    """A service of a pool with a number of its own and one that scales; ready."""
    (pool,) = quickstart_spec()["pools"]
    pools = [{**pool, "name": "fixed", "replicas": FIXED}, {**pool, "name": "open"}]
    service = Service(weir.target, "scaled", {"pools": pools}, pod_patch=SLOW_STREAMS)
    service.apply()
    service.wait_ready(FIXED + 1)
    yield service
    service.delete()
    service.wait_gone(0)


@pytest.fixture
def autoscaler(two_pools: Service, adapter: str) -> Iterator[str]:
    """The HorizontalPodAutoscaler; it decides at once, and as often as the cluster lets it."""
    kubectl = two_pools.target.kubectl
    metric = {
        "metric": {"name": METRIC},
        "target": {"type": "AverageValue", "averageValue": str(TARGET)},
    }
    kubectl.apply(
        _object(
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            two_pools.name,
            spec={
                "scaleTargetRef": {
                    "apiVersion": labels.API_VERSION,
                    "kind": "InferenceService",
                    "name": two_pools.name,
                },
                "minReplicas": 1,
                "maxReplicas": MOST,
                "metrics": [{"type": "Pods", "pods": metric}],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
            },
        )
    )
    yield two_pools.name
    kubectl("delete", "hpa", two_pools.name, f"--namespace={NAMESPACE}")


def test_an_hpa_of_two_pools_settles_where_the_load_fits_and_follows_it_down(
    two_pools: Service, autoscaler: str, adapter: str
) -> None:
    kubectl, streams = two_pools.target.kubectl, Streams()
    try:
        _settles(two_pools, adapter, streams, HIGH, want=3)
        assert _sizes(kubectl, autoscaler) == [2, 3]
        scale = json.loads(kubectl("get", "--raw", _path_of_scale(two_pools)))
        assert scale["status"]["replicas"] == scale["spec"]["replicas"] == 3
        assert len(two_pools.pods()) == FIXED + 3
        _settles(two_pools, adapter, streams, LOW, want=1)
        down = _sizes(kubectl, autoscaler)[2:]
        assert down == sorted(down, reverse=True)
        assert down[-1] == 1
    finally:
        streams.close()


class Streams:
    """Streams that are held open at replicas and never end by themselves."""

    def __init__(self) -> None:
        self._open: defaultdict[str, list[HTTPConnection]] = defaultdict(list)

    def spread(self, number: int, addresses: list[str]) -> None:
        """Have so many, evenly at these replicas and at no other.

        No stream is opened before the replicas have noticed those that were closed: the sum that
        autoscalers see must at no instant be above the number.
        """
        share, more = divmod(number, len(addresses))
        want = {address: share + (at < more) for at, address in enumerate(addresses)}
        for address, held in self._open.items():
            while len(held) > want.get(address, 0):
                held.pop().close()
        eventually(lambda: self._is_seen(addresses))
        for address, count in want.items():
            while len(self._open[address]) < count:
                self._open[address].append(_stream(address))
        eventually(lambda: self._is_seen(addresses))

    def close(self) -> None:
        """End all of them."""
        for held in self._open.values():
            for connection in held:
                connection.close()

    def _is_seen(self, addresses: list[str]) -> None:
        for address in addresses:
            page = httpx.get(f"http://{address}:{labels.ADMIN_PORT}/metrics", timeout=30).text
            assert Page(page).total(METRIC) == len(self._open[address]), address


def _stream(address: str) -> HTTPConnection:
    """Begin a stream at a replica; return its connection when it has begun."""
    connection = HTTPConnection(address, labels.API_PORT, timeout=60)
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": 8000,
        "stream": True,
    }
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    assert connection.getresponse().status == 200
    return connection


def _settles(service: Service, adapter: str, streams: Streams, number: int, want: int) -> None:
    """Spread so many streams until the autoscaler has come to `want` replicas and stays there."""
    kubectl = service.target.kubectl
    settled_at: int | None = None

    def settled() -> None:
        nonlocal settled_at
        service.wait_ready(FIXED + int(service.object()["spec"]["replicas"]))
        streams.spread(number, sorted(pod["status"]["podIP"] for pod in service.pods()))
        asked = kubectl("logs", adapter, f"--namespace={NAMESPACE}").count(METRIC)
        if service.object()["spec"]["replicas"] != want:
            settled_at = None
        elif settled_at is None:
            settled_at = asked
        assert settled_at is not None, service.object()["spec"]["replicas"]
        assert asked >= settled_at + LOOKS, asked

    eventually(settled)


def _sizes(kubectl: Kubectl, autoscaler: str) -> list[int]:
    """Return the numbers that an autoscaler has set, by its events."""
    uid = kubectl.get("hpa", autoscaler, NAMESPACE)["metadata"]["uid"]
    words = [
        event["message"]
        for event in kubectl.list("events", NAMESPACE)
        if event["involvedObject"].get("uid") == uid and event["reason"] == "SuccessfulRescale"
    ]
    return [int(size) for size in re.findall(r"New size: (\d+)", "\n".join(words))]


def _path_of_scale(service: Service) -> str:
    where = f"namespaces/{NAMESPACE}/inferenceservices/{service.name}"
    return f"/apis/{labels.API_VERSION}/{where}/scale"


def _object(version: str, kind: str, name: str, **rest: Any) -> Manifest:
    meta = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": version, "kind": kind, "metadata": meta, **rest}


def _adapter_pod(name: str) -> Manifest:
    """Return the pod of the program, with its keys."""
    folder = "/keys"
    pod = hosted.pod(name, NAMESPACE, ["python3", "-m", "e2e.metrics_api", folder])
    keys: Manifest = {
        "spec": {
            "serviceAccountName": name,
            "volumes": [{"name": "keys", "secret": {"secretName": name}}],
            "containers": [{"name": name, "volumeMounts": [{"name": "keys", "mountPath": folder}]}],
        }
    }
    return patched(pod, keys)


def _keys(kubectl: Kubectl, folder: Path, host: str) -> dict[str, bytes]:
    """Return a key, its certificate, and the authority by which the API server shows itself."""
    subprocess.run(
        [
            "openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-days", "2",
            "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=metrics",
            "-addext", f"subjectAltName=DNS:{host}", "-keyout", folder / "tls.key",
            "-out", folder / "tls.crt",
        ],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    settings = kubectl.get("configmap", "extension-apiserver-authentication", "kube-system")
    return {
        "tls.crt": (folder / "tls.crt").read_bytes(),
        "tls.key": (folder / "tls.key").read_bytes(),
        "front-proxy-ca.crt": settings["data"]["requestheader-client-ca-file"].encode(),
    }
