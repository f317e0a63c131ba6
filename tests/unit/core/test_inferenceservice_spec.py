"""What a spec may say, and how it is refused when it contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from weir_core.api.inferenceservice import InferenceServiceSpec

MODEL = {"name": "tiny", "source": {"uri": "tiny://"}}


def spec(**fields: Any) -> InferenceServiceSpec:
    return InferenceServiceSpec.model_validate({"model": MODEL, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param(
            {"replicas": 1, "scaling": {"maxReplicas": 2}},
            "replicas and scaling exclude each other",
            id="replicas and scaling",
        ),
        pytest.param(
            {"scaling": {"minReplicas": 3, "maxReplicas": 2}},
            "3 must not exceed maxReplicas",
            id="min above max",
        ),
        pytest.param(
            {"pools": [{"name": "a", "replicas": 1}, {"name": "a", "replicas": 1}]},
            "'a' is the name of item 0, too",
            id="two pools of one name",
        ),
        pytest.param(
            {"pools": [{"name": "a"}, {"name": "b"}]},
            "at most one pool may leave replicas out",
            id="two open pools",
        ),
        pytest.param(
            {"replicas": 2, "pools": [{"name": "a", "replicas": 1}]},
            "every pool sets its own replicas",
            id="replicas without an open pool",
        ),
        pytest.param(
            {"engine": {"args": ["--max-model-len", "10", "--port=1"]}},
            "--port is reserved",
            id="flag that opens a port",
        ),
        pytest.param({"replica": 1}, "Extra inputs are not permitted", id="unknown field"),
        pytest.param(
            {"model": {"name": "m", "source": {"uri": "http://x"}}}, "pattern", id="unknown scheme"
        ),
        pytest.param(
            {"pools": [{"name": "Upper", "replicas": 1}]}, "pattern", id="not a DNS label"
        ),
    ],
)
def test_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**fields)


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        pytest.param({}, {"default": 1}, id="one replica in one pool by default"),
        pytest.param({"replicas": 0}, {"default": 0}, id="zero means zero"),
        pytest.param(
            {"replicas": 5, "pools": [{"name": "a"}, {"name": "b", "replicas": 2}]},
            {"a": 5, "b": 2},
            id="the open pool takes spec.replicas",
        ),
        pytest.param(
            {"scaling": {"minReplicas": 2, "maxReplicas": 4}},
            {"default": 2},
            id="scaling starts at its lower bound",
        ),
        pytest.param(
            {
                "scaling": {"minReplicas": 2, "maxReplicas": 4},
                "pools": [{"name": "a", "cost": 2}, {"name": "b", "spot": True, "cost": 2}],
            },
            {"a": 0, "b": 2},
            id="the cheapest of several pools keeps the lower bound",
        ),
    ],
)
def test_gives_each_pool_its_replicas(fields: dict[str, Any], want: dict[str, int]) -> None:
    wanted = spec(**fields)
    assert {pool.name: wanted.replicas_of(pool) for pool in wanted.hardware_pools} == want


def test_a_spec_written_out_is_no_longer_than_what_the_user_wrote() -> None:
    written = spec(replicas=2).model_dump(by_alias=True, exclude_defaults=True)
    assert written == {"model": MODEL, "replicas": 2}
