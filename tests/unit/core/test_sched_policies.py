"""Resources become policies, built-in classes are valid resources, and rules go by name."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from weir_core.api.priorityclass import InferencePriorityClass
from weir_core.api.tenant import InferenceTenant
from weir_core.sched.estimate import Estimator
from weir_core.sched.forecast import Forecast
from weir_core.sched.policies import POLICIES, RuleNames, Rules
from weir_core.sched.types import (
    BUILT_IN_CLASSES,
    ClassPolicy,
    EngineFacts,
    EngineKind,
    TenantPolicy,
)
from weir_core.wire.policies import class_policy, tenant_policy


def milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


@pytest.mark.parametrize("policy", BUILT_IN_CLASSES, ids=lambda policy: policy.name)
def test_a_built_in_class_could_be_written_as_a_resource(policy: ClassPolicy) -> None:
    resource = InferencePriorityClass.model_validate(
        {
            "metadata": {"name": policy.name},
            "spec": {
                "rank": policy.rank,
                "weight": policy.weight,
                "minShare": policy.min_share,
                "preemptible": policy.preemptible,
                "ttftTargetMs": milliseconds(policy.ttft_target_s),
                "tpotTargetMs": milliseconds(policy.tpot_target_s),
                "maxQueueWait": f"{round(policy.max_queue_wait_s)}s",
                "shed": policy.shed,
            },
        }
    )
    assert class_policy(resource) == policy


def test_what_a_class_leaves_out_is_the_same_on_both_sides() -> None:
    resource = InferencePriorityClass.model_validate(
        {"metadata": {"name": "plain"}, "spec": {"rank": 3}}
    )
    assert class_policy(resource) == ClassPolicy("plain", rank=3)


def test_a_tenant_keeps_its_weight_and_limits() -> None:
    resource = InferenceTenant.model_validate(
        {
            "metadata": {"name": "team-a", "namespace": "default"},
            "spec": {
                "apiKeySecretRef": {"name": "keys"},
                "weight": 2.5,
                "limits": {"maxRequests": 7, "tokensPerMinute": 1000},
            },
        }
    )
    assert tenant_policy(resource) == TenantPolicy("team-a", 2.5, 7, 1000)


def test_every_rule_has_names_and_ships_its_first() -> None:
    assert {field.name for field in fields(RuleNames)} == set(POLICIES)
    for rule, names in POLICIES.items():
        assert getattr(RuleNames(), rule) == names[0]


@pytest.mark.parametrize(
    ("rule", "name"), [(rule, name) for rule, names in POLICIES.items() for name in names]
)
def test_every_named_rule_can_be_made(rule: str, name: str) -> None:
    engine = EngineFacts(EngineKind.WEIR, 8, 2048, 10_000)
    names = replace(RuleNames(), **{rule: name})
    Rules(names, engine, Estimator(2048), Forecast())


def test_a_rule_that_does_not_exist_is_an_error() -> None:
    engine = EngineFacts(EngineKind.WEIR, 8, 2048, 10_000)
    with pytest.raises(KeyError):
        Rules(RuleNames(pick="dice"), engine, Estimator(2048), Forecast())
