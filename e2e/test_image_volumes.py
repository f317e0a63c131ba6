"""An engine reads its model from an image that the kubelet pulls and mounts (`oci://`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from openai import OpenAI

from e2e import registry
from e2e.cluster import node
from e2e.cluster.layout import Layout
from e2e.installation import Installation
from e2e.kube import Manifest
from e2e.service import MODEL, NAMESPACE, Service
from e2e.target import Target
from weir_core.api.labels import ENGINE_CONTAINER, MODEL_CONTAINER
from weir_core.api.model import Source
from weir_core.wire.engine import EngineConfig, local_path

NOTHING_TO_FETCH: Manifest = {
    "spec": {"initContainers": [{"name": MODEL_CONTAINER, "$patch": "delete"}]}
}
"""A pod patch for services without the container that fetches a model, which the target patches."""


@pytest.fixture(scope="module")
def image(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The reference of an image with the tiny model's files, in a registry on the node."""
    models = tmp_path_factory.mktemp("models")
    config = EngineConfig(name=MODEL, source=Source(uri="tiny://")).model_dump_json()
    told = {"WEIR_ENGINE_CONFIG": config, "WEIR_MODEL_DIR": str(models)}
    fetch = [sys.executable, "-m", "weir_engine", "fetch"]
    subprocess.run(fetch, env={**os.environ, **told}, check=True, timeout=120)
    machine = node.find(Layout(target.kubectl.kubeconfig.parent))
    assert machine is not None
    with registry.running(machine, models / "tiny", "--gzip") as reference:
        yield reference


@pytest.fixture
def from_image(weir: Installation, image: str) -> Iterator[Service]:
    """A service on vLLM whose model is in an image."""
    model = {"name": MODEL, "source": {"uri": f"oci://{image}"}}
    service = Service(weir.target, "from-image", {"model": model}, pod_patch=NOTHING_TO_FETCH)
    service.ensure_ready()
    yield service
    service.delete()


def test_vllm_serves_a_model_out_of_an_image(from_image: Service, image: str) -> None:
    with OpenAI(base_url=f"{from_image.url()}/v1", api_key="unused", max_retries=0) as client:
        said = client.completions.create(
            model=MODEL, prompt="The fox", max_tokens=4, extra_body={"ignore_eos": True}
        )
    assert said.usage is not None
    assert said.usage.completion_tokens == 4

    path = local_path(Source(uri=f"oci://{image}"))
    assert path in of_engine(from_image, "cat", "/proc/1/cmdline").split("\0"), "vLLM's model"
    mounts = [line.split() for line in of_engine(from_image, "cat", "/proc/mounts").splitlines()]
    (found,) = (mount for mount in mounts if mount[1] == path)
    assert found[2] == "overlay", "a layer of the image, and no folder of the node"
    assert "ro" in found[3].split(",")


def of_engine(service: Service, *command: str) -> str:
    """Return what a command in the container of the engine says."""
    name = service.pod()["metadata"]["name"]
    where = ("exec", name, f"--namespace={NAMESPACE}", f"--container={ENGINE_CONTAINER}")
    return service.target.kubectl(*where, "--", *command)
