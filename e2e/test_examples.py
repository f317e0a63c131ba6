"""Every example that the project shows works as it stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from e2e.eventually import eventually
from e2e.hosted import CHECKOUT
from e2e.installation import Installation
from e2e.kube import conditions
from e2e.service import EXAMPLES as NAMESPACE
from weir_core.api import labels

EXAMPLES = sorted((CHECKOUT / "examples").glob("*.yaml"))


@pytest.fixture
def namespace(weir: Installation) -> Iterator[str]:
    """The examples' namespace; an example's services go after it, in their own time."""
    kubectl = weir.target.kubectl
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    yield NAMESPACE
    kubectl("delete", "infs", "--all", f"--namespace={NAMESPACE}", "--wait=false")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_accepted_and_acted_upon(
    weir: Installation, namespace: str, example: Path
) -> None:
    # Force: the chart has brought the priority classes, under the name of another manager.
    words = ("apply", "--server-side", "--force-conflicts", "--validate=strict")
    weir.target.kubectl(*words, f"--filename={example}", f"--namespace={namespace}")
    for document in yaml.safe_load_all(example.read_text()):
        if document["kind"] == "InferenceService":
            _is_acted_upon(weir, namespace, document["metadata"]["name"])


def _is_acted_upon(weir: Installation, namespace: str, name: str) -> None:
    """Wait until the operator has made the workloads; without a GPU their pods stay pending."""

    def acted() -> None:
        found = weir.target.kubectl.get("infs", name, namespace)
        states = conditions(found)
        assert states.get("Ready"), found.get("status")
        assert found["status"].get("observedGeneration") == found["metadata"]["generation"]
        if found["spec"].get("scaling", {}).get("minReplicas") == 0:  # it begins asleep
            selector = f"{labels.SERVICE}={name},{labels.COMPONENT}={labels.GATEWAY}"
            assert weir.target.kubectl.list("deployments", namespace, selector), found["status"]
        else:
            assert found["status"].get("replicas", 0) > 0, found["status"]

    eventually(acted)
