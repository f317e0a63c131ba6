"""What tools and people read of a service's state, while it is edited, scaled and broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.kube import Manifest, conditions, kind_and_name
from e2e.service import MOCK_ENGINE, MODEL, NAMESPACE, Service, quickstart_spec
from e2e.traffic import chatting
from weir_core.api.labels import POOL

WRONG: Manifest = {"podTemplate": {"metadata": {"labels": {POOL: "another"}}}}
"""What the API server takes of a spec, and the operator refuses."""
IN_ARGO = {"InProgress": "Progressing", "Current": "Healthy", "Failed": "Degraded"}
"""kstatus' words and Argo CD's."""
RIGHT: Manifest = {"podTemplate": {"metadata": None}}


@pytest.fixture
def edited(weir: Installation) -> Iterator[Service]:
    """A service of its own, whose engine is a MOCK."""
    one = Service(weir.target, "edited", pod_patch=MOCK_ENGINE)
    one.apply()
    yield one
    one.delete()


def test_kstatus_and_argo_tell_a_rollout_from_a_fault_and_from_zero_on_purpose(
    edited: Service,
    kstatus: Callable[[Manifest], str],
    argo_health: Callable[[Manifest], str],
) -> None:
    def comes_to(want: str) -> None:
        def has_come() -> None:
            found = edited.object()
            assert (kstatus(found), argo_health(found)) == (want, IN_ARGO[want])

        eventually(has_come)

    comes_to("InProgress")
    edited.wait_ready(replicas=1)
    comes_to("Current")
    edited.patch(WRONG)
    comes_to("Failed")
    edited.patch(RIGHT)
    comes_to("Current")
    edited.patch({"replicas": 0})
    comes_to("Current")
    edited.patch({"replicas": 1})
    edited.wait_ready(replicas=1)
    (pool,) = quickstart_spec()["pools"]
    edited.patch({"pools": [{**pool, "nodeSelector": {"no": "such"}}]})
    comes_to("Failed")
    assert conditions(edited.object())["Ready"]["status"] == "True"


@pytest.mark.parametrize(
    "status",
    [
        pytest.param({}, id="none"),
        pytest.param({"conditions": [{"type": "Ready", "status": "Unknown"}]}, id="fresh"),
        pytest.param({"observedGeneration": 2}, id="without conditions"),
        pytest.param(
            {"observedGeneration": 2, "conditions": [{"type": "Stalled", "status": "False"}]},
            id="a condition that does not hold",
        ),
        pytest.param(
            {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]},
            id="of the spec before",
        ),
    ],
)
def test_argo_waits_for_what_the_operator_has_not_said(
    argo_health: Callable[[Manifest], str], status: Manifest
) -> None:
    one: Manifest = {"metadata": {"name": "chat", "generation": 2}}
    assert argo_health(one | ({"status": status} if status else {})) == "Progressing"


def test_an_invalid_edit_under_load_stops_no_request_and_no_scaling(edited: Service) -> None:
    edited.wait_ready(replicas=1)
    (before,) = edited.pods()
    with chatting(edited.url(), MODEL) as traffic:
        edited.patch(WRONG)
        edited.says("SpecValid", "False", "InvalidSpec")
        scale = ("scale", f"infs/{edited.name}", f"--namespace={NAMESPACE}")
        edited.target.kubectl(*scale, "--replicas=2")
        edited.wait_ready(replicas=2)
    assert traffic.answered > 0
    assert traffic.failures == []
    found = edited.object()
    assert conditions(found)["Ready"]["status"] == "True"
    assert conditions(found)["SpecValid"]["status"] == "False"
    assert found["status"]["replicas"] == 2
    assert kind_and_name(before) in [kind_and_name(pod) for pod in edited.pods()]
