"""A spec that cannot work is refused at once, with the field and what to write.

The mistakes are those that `weir render` is tested with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from e2e.eventually import eventually, throughout
from e2e.installation import Installation
from e2e.kube import conditions
from e2e.service import NAMESPACE, Service
from tests.mistakes import CONDITION, MISTAKES, Mistake


@pytest.fixture
def service(weir: Installation) -> Iterator[Service]:
    """A service that a case changes before it applies it."""
    wrong = Service(weir.target, "wrong", {"replicas": 0})
    yield wrong
    weir.target.kubectl(
        "delete", "infs", wrong.name, f"--namespace={NAMESPACE}", "--ignore-not-found"
    )


@pytest.mark.parametrize(
    "mistake",
    [pytest.param(each, id=each.id) for each in MISTAKES if each.server != CONDITION],
)
def test_the_api_server_refuses(weir: Installation, mistake: Mistake) -> None:
    refused = weir.target.kubectl.attempt(
        "create", "--validate=strict", f"--namespace={NAMESPACE}", "--filename=-",
        stdin=json.dumps(mistake.document),
    )  # fmt: skip
    assert refused.code, refused
    field, says = mistake.heard
    assert field in refused.err
    assert says in refused.err


@pytest.mark.parametrize(
    "mistake",
    [pytest.param(each, id=each.id) for each in MISTAKES if each.server == CONDITION],
)
def test_the_operator_refuses_what_no_rule_sees(service: Service, mistake: Mistake) -> None:
    wrong = Service(service.target, service.name, mistake.change)
    # Without what the pods of this cluster need: nothing of a spec that is refused is run.
    service.target.kubectl.apply({**wrong.manifest, "spec": mistake.document["spec"]})

    def said() -> None:
        found = conditions(wrong.object()).values()
        invalid = [each["message"] for each in found if each["reason"] == "InvalidSpec"]
        assert any(f"{mistake.field}: {mistake.says}" in each for each in invalid), found

    eventually(said)


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
