"""Conditions as Kubernetes writes them: times move with the status, and only then."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.control.builders import body, deployment, service, serving_pod
from weir_core.errors import ClusterRefuses, InvalidSpec
from weir_core.wire.problems import Problem
from weir_operator import status
from weir_operator.verdicts import Observed

Manifest = dict[str, Any]

SERVING = Observed({"cpu": deployment()}, [serving_pod()])
LOADING = Observed({"cpu": deployment(availableReplicas=0, readyReplicas=0)}, [])


def observed(seen: Observed, before: Manifest | None, now: str, generation: int = 1) -> Manifest:
    held = {**body(generation=generation), **({"status": before} if before else {})}
    return status.observed(service(generation=generation), seen, held, now)


def condition(whole: Manifest, type_: str = "Ready") -> Manifest:
    found: Manifest = next(each for each in whole["conditions"] if each["type"] == type_)
    return found


def test_a_transition_time_moves_when_the_status_does() -> None:
    first = observed(LOADING, None, "t1")
    second = observed(SERVING, first, "t2")
    third = observed(SERVING, second, "t3")
    assert [condition(each)["lastTransitionTime"] for each in (first, second, third)] == [
        "t1",
        "t2",
        "t2",
    ]
    assert third == second


def test_every_condition_speaks_of_the_generation_it_saw() -> None:
    before = observed(SERVING, None, "t1")
    after = observed(SERVING, before, "t2", generation=2)
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
            "serving.weir.dev/service=chat",
            id="no pool scales",
        ),
    ],
)
def test_the_selector_is_of_the_pods_that_scale(spec: Manifest, want: str) -> None:
    whole = status.observed(service(spec), Observed({}, []), body(spec), "t1")
    assert whole["selector"] == want


def test_counts_add_up_over_pools() -> None:
    spec = {"pools": [{"name": "a", "replicas": 2}, {"name": "b", "replicas": 3}]}
    seen = Observed({"a": deployment(2), "b": deployment(3, readyReplicas=1)}, [])
    whole = status.observed(service(spec), seen, body(spec), "t1")
    assert (whole["replicas"], whole["readyReplicas"]) == (5, 3)


def test_a_pool_that_left_the_spec_counts_as_long_as_it_serves() -> None:
    loading = deployment(replicas=1, updatedReplicas=1, readyReplicas=0, availableReplicas=0)
    seen = Observed({"cpu": loading}, [serving_pod("old")], leaving={"old": deployment()})
    whole = status.observed(service(), seen, body(), "t1")
    assert (whole["replicas"], whole["readyReplicas"]) == (2, 1)
    assert [(pool["name"], pool["readyReplicas"]) for pool in whole["pools"]] == [
        ("cpu", 0),
        ("old", 1),
    ]


def test_a_wrong_spec_keeps_what_was_seen() -> None:
    before = observed(SERVING, None, "t1")
    held = {**body(generation=2), "status": before}
    after = status.rejected(InvalidSpec("spec.pools[0].name", "is wrong"), SERVING, held, "t2")
    assert condition(after)["reason"] == "InvalidSpec"
    assert condition(after)["message"] == "spec.pools[0].name: is wrong"
    assert condition(after, "RouterReady") == condition(before, "RouterReady")
    assert after["url"] == before["url"]


@pytest.mark.parametrize(
    ("before", "ready"),
    [
        pytest.param(SERVING, ("True", "Serving"), id="a service that serves stays ready"),
        pytest.param(LOADING, ("False", "Refused"), id="one that does not says why"),
    ],
)
def test_a_refused_write_is_said(before: Observed, ready: tuple[str, str]) -> None:
    held = {**body(), "status": observed(before, None, "t1")}
    after = status.refused(ClusterRefuses("exceeded quota"), before, held, "t2")
    assert (condition(after)["status"], condition(after)["reason"]) == ready
    assert condition(after, "WorkloadsReady")["message"] == "exceeded quota"


def test_a_pass_that_broke_off_says_what_was_told_and_nothing_of_the_spec() -> None:
    before = observed(SERVING, None, "t1")
    held = {**body(generation=2), "status": before}
    wrong = Problem("InvalidTenant", "InferenceTenant", "app", "spec.weight", "is wrong")
    after = status.interrupted(Observed({}, [], problems=[wrong]), held, "t2")
    assert condition(after, "PoliciesReady")["reason"] == "InvalidTenant"
    assert condition(after) == condition(before)
    assert after["observedGeneration"] == 1
    assert status.interrupted(None, held, "t2") == before


def test_events_tell_when_ready_turns_and_when_something_is_wrong() -> None:
    first = observed(LOADING, None, "t1")
    second = observed(SERVING, first, "t2")
    assert [each["type"] for each in status.transitions(None, first)] == ["Ready"]
    assert [each["reason"] for each in status.transitions(first, second)] == ["Serving"]
    assert status.transitions(second, second) == []
