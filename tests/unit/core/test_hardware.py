"""A spec says one number of accelerators, wherever it says it."""

from __future__ import annotations

from typing import Any

import pytest

from weir_core.api.hardware import ACCELERATOR_PATTERN, USUAL, wrong_amount
from weir_core.api.inferenceservice import InferenceService
from weir_core.api.reading import read
from weir_core.errors import InvalidSpec

GPU = "nvidia.com/gpu"


@pytest.mark.parametrize(
    ("count", "asked", "amount", "wrong"),
    [
        pytest.param(1, "cpu", 4, False, id="no accelerator"),
        pytest.param(1, "rdma/ib", 1, False, id="a network beside it"),
        pytest.param(4, GPU, 4, False, id="the same number"),
        pytest.param(4, GPU, "4", False, id="the same number as a text"),
        pytest.param(1, GPU, 4, True, id="more"),
        pytest.param(4, GPU, "1", True, id="less"),
        pytest.param(0, GPU, 1, True, id="a GPU for the CPU"),
        pytest.param(1, "amd.com/gpu", 1, True, id="another vendor's"),
        pytest.param(1, "nvidia.com/mig-1g.5gb", 1, True, id="a part of one"),
    ],
)
def test_finds_amounts_that_contradict_the_count(
    count: int, asked: str, amount: Any, wrong: bool
) -> None:
    assert (wrong_amount(GPU, count, asked, amount) is not None) is wrong


@pytest.mark.parametrize("resource", USUAL)
def test_what_the_api_server_knows_as_accelerators_weir_knows_too(resource: str) -> None:
    assert wrong_amount("example.com/chip", 1, resource, 1) is not None, ACCELERATOR_PATTERN


def faults(**spec: Any) -> list[str]:
    model = {"name": "m", "source": {"uri": "hf://o/m"}}
    document = {"metadata": {"name": "chat"}, "spec": {"model": model, **spec}}
    try:
        read(InferenceService, document)
    except InvalidSpec as error:
        return [each.field for each in error.faults]
    return []


@pytest.mark.parametrize(
    ("sizes", "count", "args", "want"),
    [
        pytest.param({}, 1, [], [], id="one of each"),
        pytest.param({"tensor": 2, "pipeline": 2}, 4, [], [], id="all of them"),
        pytest.param({"tensor": 2, "data": 2}, 0, [], [], id="on the CPU"),
        pytest.param({"tensor": 2}, 1, [], ["spec.pools[0].accelerator.count"], id="one too few"),
        pytest.param({}, 2, [], ["spec.pools[0].accelerator.count"], id="one idle"),
        pytest.param({}, 2, ["-pcp", "2"], [], id="used by an argument"),
    ],
)
def test_an_engine_uses_all_that_its_replica_has(
    sizes: dict[str, int], count: int, args: list[str], want: list[str]
) -> None:
    pools = [{"name": "a", "accelerator": {"count": count}}]
    assert faults(engine={"parallelism": sizes, "args": args}, pools=pools) == want


def test_the_pool_of_a_spec_without_pools_has_one_gpu() -> None:
    assert faults(engine={"parallelism": {"tensor": 2}}) == ["spec.engine.parallelism"]
