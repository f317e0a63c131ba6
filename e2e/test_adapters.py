"""Adapters, aliases and limits change under traffic: no pod is replaced, no request fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from e2e.cluster import build
from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.kube import Manifest
from e2e.service import (
    MOCK_ENGINE,
    MODEL,
    NAMESPACE,
    Service,
    folder_claim,
    quickstart_spec,
    restarts,
)
from e2e.target import Target
from e2e.traffic import chatting
from weir_core.api.labels import ADAPTERS_CONTAINER, MODEL_CONTAINER
from weir_operator.render.patch import patched

CLAIM = "e2e-adapters"
CHAT = "/v1/chat/completions"


def volume() -> list[Manifest]:
    """Return a volume that is a folder of the node with two adapters in it, and the claim of it."""
    folder = build.cache_dir() / CLAIM
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder_claim(CLAIM, folder, "ReadOnlyMany")


def adapters(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "source": {"uri": f"pvc://{CLAIM}/{name}"}} for name in names]


def runs_like_the_download(spec: dict[str, Any]) -> Manifest:
    """Return a pod patch by which the container of adapters finds its program, as `model` does."""
    containers = spec.get("podTemplate", {}).get("spec", {}).get("initContainers", [])
    found = [
        {**each, "name": ADAPTERS_CONTAINER}
        for each in containers
        if each["name"] == MODEL_CONTAINER
    ]
    return {"spec": {"initContainers": found}} if found else {}


@pytest.fixture
def adapted(weir: Installation) -> Iterator[Service]:
    """A service with one adapter, its engine a MOCK, which loads adapters by their names alone."""
    target: Target = weir.target
    for each in volume():
        target.kubectl.apply(each)
    model = {**quickstart_spec()["model"], "adapters": adapters("one")}
    patch = patched(MOCK_ENGINE, runs_like_the_download(target.spec))
    service = Service(target, "adapted", {"model": model}, pod_patch=patch)
    service.ensure_ready()
    yield service
    service.delete()
    target.kubectl("delete", f"pvc/{CLAIM}", f"--namespace={NAMESPACE}", "--wait=false")
    target.kubectl("delete", f"pv/{CLAIM}", "--wait=false")


def ask(service: Service, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}
    return httpx.post(f"{service.url()}{CHAT}", json={**body, **fields}, timeout=30)


def answers(service: Service, model: str, status: int, **fields: Any) -> None:
    """Wait until a chat with this model is answered so."""

    def answered() -> None:
        answer = ask(service, model, **fields)
        assert answer.status_code == status, answer.text

    eventually(answered)


def test_an_adapter_is_added_and_removed_under_traffic_without_a_restart(adapted: Service) -> None:
    pod, url = adapted.pod(), adapted.url()
    assert ask(adapted, "one").status_code == 200, "a ready replica has its adapters"
    assert "one: ready on 1 of 1" in adapted.says("AdaptersReady", "True", "Loaded")["message"]
    with chatting(url, MODEL) as model, chatting(url, "one") as first:
        adapted.patch({"model": {"adapters": adapters("one", "two", "nowhere")}})
        answers(adapted, "two", 200)
        with chatting(url, "two") as second:
            eventually(lambda: _is_busy(second.answered))
        said = adapted.says("AdaptersReady", "False", "AdapterFailed")["message"]
        assert "nowhere: ready on 0 of 1 replicas; " in said
        assert "two: ready on 1 of 1 replicas" in said
        adapted.patch({"model": {"adapters": adapters("one")}})
        answers(adapted, "two", 404)
        adapted.patch({"model": {"aliases": ["also"]}, "admission": {"maxBodyBytes": 4096}})
        answers(adapted, "also", 200)
        answers(adapted, "also", 413, user="x" * 8192)
    now = adapted.pod()
    assert now["metadata"]["uid"] == pod["metadata"]["uid"]
    assert restarts(now) == restarts(pod)
    for traffic in (model, first, second):
        assert traffic.answered > 0
        assert traffic.failures == []


def _is_busy(answered: int) -> None:
    assert answered > 20
