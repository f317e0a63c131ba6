"""Conditions as Kubernetes writes them: times move with the status, and only then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.control.builders import body, deployment, observed, serving_pod
from tests.unit.control.test_conditions import spoken
from weir_core.errors import ClusterRefuses, InvalidSpec
from weir_operator import status
from weir_operator.conditions import Verdict
from weir_operator.observed import Observed

Manifest = dict[str, Any]


def serving(held: Manifest | None = None) -> Observed:
    return observed({"cpu": deployment()}, [serving_pod()], held=held)


def loading(held: Manifest | None = None) -> Observed:
    return observed({"cpu": deployment(availableReplicas=0, readyReplicas=0)}, [], held=held)


def held(before: Manifest | None = None, generation: int = 1) -> Manifest:
    return {**body(generation=generation), **({"status": before} if before else {})}


def said(seen: Observed, now: str, **more: Verdict) -> Manifest:
    """Return the status after a pass; `more` is what else is said."""
    return status.observed(seen, {**spoken(seen), **more}, now)


def condition(whole: Manifest, type_: str = "Ready") -> Manifest:
    found: Manifest = next(each for each in whole["conditions"] if each["type"] == type_)
    return found


def test_a_transition_time_moves_when_the_status_does() -> None:
    first = said(loading(), "t1")
    second = said(serving(held(first)), "t2")
    third = said(serving(held(second)), "t3")
    assert [condition(each)["lastTransitionTime"] for each in (first, second, third)] == [
        "t1",
        "t2",
        "t2",
    ]
    assert third == second


def test_every_condition_speaks_of_the_generation_it_saw() -> None:
    before = said(serving(), "t1")
    after = said(serving(held(before, 2)), "t2")
    assert {each["observedGeneration"] for each in after["conditions"]} == {2}
    assert after["observedGeneration"] == 2
    assert condition(after)["lastTransitionTime"] == "t1"


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        pytest.param(
            {"pools": [{"name": "a", "replicas": 2}, {"name": "b"}]},
            "serving.weir.dev/service=chat,serving.weir.dev/pool=b",
            id="the pool that scales",
        ),
        pytest.param(
            {"pools": [{"name": "a", "replicas": 2}]},
            "serving.weir.dev/service=chat,app.kubernetes.io/component!=gateway",
            id="no pool scales",
        ),
    ],
)
def test_the_selector_is_of_the_pods_that_scale(spec: Manifest, want: str) -> None:
    whole = said(observed({}, [], spec=spec), "t1")
    assert whole["selector"] == want


def test_counts_add_up_over_pools() -> None:
    spec = {"pools": [{"name": "a", "replicas": 2}, {"name": "b", "replicas": 3}]}
    seen = observed({"a": deployment(2), "b": deployment(3, readyReplicas=1)}, [], spec=spec)
    whole = said(seen, "t1")
    assert (whole["replicas"], whole["readyReplicas"]) == (5, 3)


def test_an_autoscaler_is_told_of_the_pool_that_scales_and_no_other() -> None:
    spec = {"pools": [{"name": "a", "replicas": 2}, {"name": "b"}]}
    whole = said(observed({"a": deployment(2), "b": deployment(3)}, [], spec=spec), "t1")
    assert (whole["replicas"], whole["readyReplicas"]) == (3, 5)
    wrong = replace(
        observed(
            {"a": deployment(2), "b": deployment(4)}, [], held={**body(spec), "status": whole}
        ),
        service=None,
    )
    after = said(wrong, "t2")
    assert (after["replicas"], after["selector"]) == (4, whole["selector"])


def test_an_autoscaler_counts_the_pods_that_serve_until_a_renamed_pool_does() -> None:
    pools = {"a": deployment(1), "b": deployment(2)}
    spec = {"pools": [{"name": "a"}, {"name": "b", "replicas": 2}]}
    whole = said(observed(pools, [], spec=spec, leaving={"old": deployment(3)}), "t1")
    assert whole["replicas"] == 4
    assert whole["selector"] == "serving.weir.dev/service=chat,serving.weir.dev/pool in (a,old)"
    held = {**body(spec), "status": whole}
    wrong = replace(observed({**pools, "old": deployment(3)}, [], held=held), service=None)
    after = said(wrong, "t2")
    assert (after["replicas"], after["selector"]) == (4, whole["selector"])


def test_a_pool_that_left_the_spec_counts_as_long_as_it_serves() -> None:
    new = deployment(replicas=1, updatedReplicas=1, readyReplicas=0, availableReplicas=0)
    whole = said(observed({"cpu": new}, [serving_pod("old")], leaving={"old": deployment()}), "t1")
    assert (whole["replicas"], whole["readyReplicas"]) == (2, 1)
    assert [(pool["name"], pool["readyReplicas"]) for pool in whole["pools"]] == [
        ("cpu", 0),
        ("old", 1),
    ]


def test_a_wrong_spec_is_a_condition_of_its_own_and_ready_goes_by_the_pods() -> None:
    before = said(serving(), "t1")
    wrong = InvalidSpec("spec.pools[0].name", "is wrong")
    seen = replace(serving(held(before, 2)), service=None, wrong=wrong)
    after = said(seen, "t2")
    spec = condition(after, "SpecValid")
    assert (spec["status"], spec["reason"]) == ("False", "InvalidSpec")
    assert spec["message"] == "spec.pools[0].name: is wrong"
    assert condition(after)["status"] == "True"
    assert condition(after, "Stalled")["reason"] == "InvalidSpec"
    assert after["url"] == before["url"]
    assert after["observedGeneration"] == 2


@pytest.mark.parametrize(
    ("seen", "ready"),
    [
        pytest.param(serving(), ("True", "Serving"), id="a service that serves stays ready"),
        pytest.param(loading(), ("False", "Refused"), id="one that does not says why"),
    ],
)
def test_a_refused_write_is_said(seen: Observed, ready: tuple[str, str]) -> None:
    verdict = status.failure(ClusterRefuses("exceeded quota"))
    assert verdict is not None
    after = said(seen, "t2", WorkloadsReady=verdict)
    assert (condition(after)["status"], condition(after)["reason"]) == ready
    assert condition(after, "WorkloadsReady")["message"] == "exceeded quota"


def test_what_could_not_be_looked_at_stays_as_it_was() -> None:
    before = said(serving(), "t1")
    seen = replace(loading(held(before, 2)), deployments={})
    after = status.observed(seen, {}, "t2")
    assert condition(after, "WorkloadsReady") == condition(before, "WorkloadsReady")
    assert condition(after)["status"] == "True"


def test_events_tell_when_ready_turns_and_when_something_is_wrong() -> None:
    first = said(loading(), "t1")
    second = said(serving(held(first)), "t2")
    assert [each["type"] for each in status.transitions(None, first)] == ["Ready"]
    assert [each["reason"] for each in status.transitions(first, second)] == ["Serving"]
    assert status.transitions(second, second) == []
