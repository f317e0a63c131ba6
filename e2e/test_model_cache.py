"""A Job brings a model to the claim that replicas share, and none of them fetches it again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.cluster import build
from e2e.installation import Installation
from e2e.kube import Manifest
from e2e.service import MOCK_ENGINE, NAMESPACE, Service, folder_claim, quickstart_spec
from weir_core.api.labels import MODEL_CONTAINER

CLAIM = "e2e-models"
ANYBODY = 0o777
"""The kubelet gives a directory of the node to no group, whatever the pod's fsGroup."""


def claim() -> list[Manifest]:
    """Return a volume that is an empty folder of the node, and the claim of it."""
    folder = build.cache_dir() / CLAIM
    folder.mkdir(exist_ok=True)
    folder.chmod(ANYBODY)
    for left in folder.glob("tiny*/*"):
        left.unlink()
    return folder_claim(CLAIM, folder, "ReadWriteMany")


@pytest.fixture
def cached(weir: Installation) -> Iterator[Service]:
    """A service at zero whose model comes to a claim, its engines MOCKS."""
    target = weir.target
    for each in claim():
        target.kubectl.apply(each)
    model = {**quickstart_spec()["model"], "cache": {"claimName": CLAIM, "prefetch": True}}
    service = Service(target, "cached", {"model": model, "replicas": 0}, pod_patch=MOCK_ENGINE)
    service.apply()
    yield service
    service.delete()
    target.kubectl("delete", f"pvc/{CLAIM}", f"--namespace={NAMESPACE}", "--wait=false")
    target.kubectl("delete", f"pv/{CLAIM}", "--wait=false")


def test_a_service_at_zero_has_its_model_and_no_replica_fetches_it(cached: Service) -> None:
    cached.says("PrefetchReady", "True", "Fetched")
    assert cached.pods() == [], "the Job's pod is no replica"
    kubectl = cached.target.kubectl
    (job,) = kubectl.list("jobs", NAMESPACE, cached.selector)
    where = f"--namespace={NAMESPACE}"
    assert "made at /models/tiny" in kubectl("logs", f"job/{job['metadata']['name']}", where)
    cached.patch({"replicas": 2})
    cached.wait_ready(replicas=2)
    for pod in cached.pods():
        log = kubectl("logs", pod["metadata"]["name"], where, f"--container={MODEL_CONTAINER}")
        assert "found at /models/tiny" in log
        assert pod["status"]["phase"] == "Running"
