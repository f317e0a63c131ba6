"""A spec that cannot work is refused at once, and the message names the field."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.eventually import eventually, throughout
from e2e.installation import Installation
from e2e.kube import conditions
from e2e.service import NAMESPACE, Service

GPU: dict[str, Any] = {"name": "a", "replicas": 1}


@pytest.fixture
def service(weir: Installation) -> Iterator[Service]:
    """A service that a case changes before it applies it."""
    wrong = Service(weir.target, "wrong", {"replicas": 0})
    yield wrong
    weir.target.kubectl(
        "delete", "infs", wrong.name, f"--namespace={NAMESPACE}", "--ignore-not-found"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            {"replicas": 1, "scaling": {"maxReplicas": 2}},
            "replicas and scaling exclude each other",
            id="replicas and scaling",
        ),
        pytest.param(
            {"replicas": None, "scaling": {"minReplicas": 3, "maxReplicas": 2}},
            "spec.scaling",
            id="more at least than at most",
        ),
        pytest.param(
            {"replicas": None, "pools": [GPU, GPU]}, "spec.pools[1]", id="two pools of one name"
        ),
        pytest.param(
            {"engine": {"args": ["--port=1"]}}, "spec.engine.args", id="a flag Weir needs itself"
        ),
        pytest.param({"engnie": {}}, "spec.engnie", id="a misspelt field"),
        pytest.param({"replicas": "two"}, "spec.replicas", id="a word for a number"),
        pytest.param({"replicas": -1}, "spec.replicas", id="a negative number"),
        pytest.param(
            {"model": {"name": "tiny", "source": {"uri": "ftp://x"}}},
            "spec.model.source.uri",
            id="a source that nothing can read",
        ),
        pytest.param({"model": {"source": {"uri": "tiny://"}}}, "spec.model.name", id="no name"),
    ],
)
def test_the_api_server_refuses(service: Service, change: dict[str, Any], said: str) -> None:
    manifest = copy.deepcopy(service.manifest)
    manifest["spec"].update(change)
    manifest["spec"] = {key: value for key, value in manifest["spec"].items() if value is not None}
    refused = service.target.kubectl.attempt(
        "create", "--validate=strict", "--filename=-", stdin=json.dumps(manifest)
    )
    assert refused.code, refused
    assert said in refused.err


def test_the_models_name_cannot_be_changed(service: Service) -> None:
    service.apply()
    other = json.dumps({"spec": {"model": {"name": "another"}}})
    words = ("patch", "infs", service.name, f"--namespace={NAMESPACE}", "--type=merge")
    refused = service.target.kubectl.attempt(*words, f"--patch={other}")
    assert refused.code
    assert "the model's name cannot be changed" in refused.err


def test_what_only_the_operator_can_see_is_said_in_a_condition_once(service: Service) -> None:
    broken = {"spec": {"containers": [{"image": "a container without a name"}]}}
    wrong = Service(service.target, service.name, {"replicas": 0, "podTemplate": broken})
    wrong.apply()

    def said() -> None:
        found = wrong.object()
        ready = conditions(found).get("Ready", {})
        assert ready.get("status") == "False", found.get("status")
        assert "spec.podTemplate" in ready["message"], ready
        assert ready["observedGeneration"] == found["metadata"]["generation"], ready

    eventually(said)
    version = wrong.object()["metadata"]["resourceVersion"]

    def untouched() -> None:
        assert wrong.object()["metadata"]["resourceVersion"] == version

    throughout(untouched, for_s=5)
    service.apply()  # with the error corrected

    def accepted() -> None:
        ready = conditions(wrong.object()).get("Ready", {})
        assert "spec.podTemplate" not in ready.get("message", ""), ready

    eventually(accepted)
