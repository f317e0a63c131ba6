"""HorizontalPodAutoscalers at InferenceServices, by a metric of the engines and by Weir's number.

The autoscaler is Kubernetes' own. It asks the API server for its metric, and a program of ours
answers (`metrics_api`). One is at a service of two pools, by how many requests the engines run, in
the mean of all replicas. Its load is a number of streams that do not end. Which replica runs which
of them does not matter to the mean, so the right number of replicas follows from arithmetic. The
other one is that of autoscaling.md.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from e2e import hosted, metrics_api
from e2e.eventually import eventually
from e2e.installation import NAMESPACE as OPERATOR
from e2e.installation import Installation
from e2e.kube import Kubectl, Manifest
from e2e.service import (
    MOCK_ENGINE,
    MODEL,
    NAMESPACE,
    NO_MODEL,
    READY_WITHIN_S,
    Service,
    quickstart_spec,
)
from e2e.test_scaling_by_work import MOCK, MORE, SPEC
from e2e.test_scaling_by_work import MOST as MOST_BY_WORK
from e2e.traffic import chatting
from weir_core.api import labels
from weir_operator.render.patch import patched

METRIC = "vllm:num_requests_running"
FIXED = 2
"""Replicas of the pool that has a number of its own."""
MOST = 6
TARGET = 4
"""Streams that a replica shall run."""
REQUEST_WITHIN_S = 60.0
HIGH, LOW = 20, 3
"""The high load fits 5 replicas: 3 beside the fixed ones. The low one would fit those alone."""
LOOKS = 4
"""Decisions that change nothing, by which a number is a settled one."""

SLOW_STREAMS: Manifest = {
    "spec": {
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
"""MOCKS whose streams outlast the scenario at little cost."""


@pytest.fixture
def starting(weir: Installation) -> Iterator[Service]:
    """A service of a pool with a number of its own and one that scales; its replicas start."""
    (pool,) = quickstart_spec()["pools"]
    pools = [{**pool, "name": "fixed", "replicas": FIXED}, {**pool, "name": "open"}]
    mock = patched(SLOW_STREAMS, NO_MODEL)
    service = Service(weir.target, "scaled", {"pools": pools}, pod_patch=mock)
    service.apply()
    yield service
    service.delete()


@pytest.fixture
def adapter(starting: Service, tmp_path: Path) -> Iterator[str]:
    """The metrics API, answered by our program; its pod's name."""
    with answering(starting.target.kubectl, tmp_path) as name:
        yield name


@contextmanager
def answering(kubectl: Kubectl, tmp_path: Path, *arguments: str) -> Iterator[str]:
    """Have our program, with these arguments, answer the metrics API; yield its pod's name."""
    name = "metrics-api"
    kubectl.apply(_object("v1", "ServiceAccount", name))
    account = {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    binding = {"roleRef": role, "subjects": [account]}
    kubectl.apply(_object("rbac.authorization.k8s.io/v1", "RoleBinding", name, **binding))
    keys = _keys(kubectl, tmp_path, f"{name}.{NAMESPACE}.svc")
    data = {file: base64.b64encode(content).decode() for file, content in keys.items()}
    kubectl.apply(_object("v1", "Secret", name, data=data))
    kubectl.apply(_adapter_pod(name, *arguments))
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
    api = f"apiservice/{version}.{group}"
    try:
        kubectl("wait", "--for=condition=Available", api, "--timeout=60s", timeout_s=90)
        yield name
    finally:
        kubectl("delete", api)  # an absent API disturbs all discovery
        everything = "pod,service,secret,rolebinding,serviceaccount"
        kubectl("delete", everything, name, f"--namespace={NAMESPACE}", "--grace-period=1")


@pytest.fixture
def two_pools(starting: Service, adapter: str) -> Service:
    """The service, ready."""
    starting.wait_ready(FIXED + 1)
    return starting


@pytest.fixture
def autoscaler(two_pools: Service) -> Iterator[str]:
    """The HorizontalPodAutoscaler; it decides at once, and as often as the cluster lets it."""
    kubectl = two_pools.target.kubectl
    labelled = {"matchLabels": {labels.SERVICE: two_pools.name}}
    metric = {
        "metric": {"name": METRIC, "selector": labelled},
        "target": {"type": "Value", "value": str(TARGET)},
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
                "metrics": [{"type": "External", "external": metric}],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
            },
        )
    )
    yield two_pools.name
    kubectl("delete", "hpa", two_pools.name, f"--namespace={NAMESPACE}")


def test_an_hpa_of_two_pools_settles_where_the_load_fits_and_follows_it_down(
    two_pools: Service, autoscaler: str, adapter: str
) -> None:
    kubectl = two_pools.target.kubectl
    with ExitStack() as streams:
        for _ in range(HIGH - LOW):
            streams.enter_context(_stream(two_pools.url()))
        with ExitStack() as lasting:
            for _ in range(LOW):
                lasting.enter_context(_stream(two_pools.url()))
            _settles(two_pools, adapter, want=3)
            assert _sizes(kubectl, autoscaler) == [2, 3]
            scale = json.loads(kubectl("get", "--raw", _path_of_scale(two_pools)))
            assert scale["status"]["replicas"] == scale["spec"]["replicas"] == 3
            assert len(two_pools.pods()) == FIXED + 3
            streams.close()
            _settles(two_pools, adapter, want=1)
    down = _sizes(kubectl, autoscaler)[2:]
    assert down == sorted(down, reverse=True)
    assert down[-1] == 1


@pytest.fixture
def advised(weir: Installation, patient_classes: None, tmp_path: Path) -> Iterator[Service]:
    """A service of one replica, scaled by the HPA of autoscaling.md alone."""
    kubectl = weir.target.kubectl
    overrides = {**SPEC, "replicas": 1, "scaling": {**SPEC["scaling"], "mode": "Advise"}}
    service = Service(weir.target, "chat", overrides, pod_patch=MOCK)
    service.apply()
    page = kubectl.get("service", "weir-metrics", OPERATOR)["spec"]["clusterIP"]
    with answering(kubectl, tmp_path, f"http://{page}:{labels.METRICS_PORT}/metrics"):
        service.wait_ready(1)
        kubectl.apply(documented("HorizontalPodAutoscaler"))
        yield service
        kubectl("delete", "hpa", service.name, f"--namespace={NAMESPACE}")
    service.delete()


def documented(kind: str) -> Manifest:
    """Return the object of a kind that autoscaling.md shows."""
    text = (hosted.CHECKOUT / "docs/autoscaling.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (found,) = (yaml.safe_load(each) for each in blocks if f"\nkind: {kind}\n" in each)
    return {**found, "metadata": {**found["metadata"], "namespace": NAMESPACE}}


def test_an_hpa_follows_what_weir_says_the_work_takes_and_no_request_fails(
    advised: Service,
) -> None:
    with ExitStack() as crowd:
        more = [crowd.enter_context(chatting(advised.url(), MODEL)) for _ in range(MORE)]
        advised.wait_ready(MOST_BY_WORK)
    assert [each.failures for each in more] == [[]] * MORE
    advised.wait_ready(1)
    sizes = _sizes(advised.target.kubectl, advised.name)
    assert max(sizes) == MOST_BY_WORK
    assert sizes[-1] == 1


@contextmanager
def _stream(url: str) -> Iterator[None]:
    """Have a stream run for the length of the context."""
    where = urlsplit(url)
    connection = HTTPConnection(str(where.hostname), where.port or 80, timeout=REQUEST_WITHIN_S)
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": 8000,
        "stream": True,
    }
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    with closing(connection), connection.getresponse() as answer:
        assert answer.status == 200
        yield


def _settles(service: Service, adapter: str, want: int) -> None:
    """Wait until the autoscaler has come to `want` replicas; see that it stays there."""

    def there() -> None:
        assert service.object()["spec"]["replicas"] == want

    def asked() -> int:
        return service.target.kubectl("logs", adapter, f"--namespace={NAMESPACE}").count(METRIC)

    eventually(there, within_s=READY_WITHIN_S)
    service.wait_ready(FIXED + want)
    before = asked()

    def looked_again() -> None:
        assert asked() >= before + LOOKS

    eventually(looked_again)
    there()


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


def _adapter_pod(name: str, *arguments: str) -> Manifest:
    """Return the pod of the program, with its keys."""
    folder = "/keys"
    command = ["python3", "-m", "e2e.metrics_api", folder, *arguments]
    pod = hosted.pod(name, NAMESPACE, command)
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
