"""What vLLM can do besides plain answers, on real vLLM under Weir's order, stock beside it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.conftest import bench_engine


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """In a process of its own: vLLM lives in it."""
    found = bench_engine(tmp_path_factory.mktemp("bench") / "results.json", "features")
    answer: dict[str, Any] = found["features"]
    return answer


@pytest.mark.parametrize(
    "feature",
    [
        "speculation", "adapters", "their model", "prefix caching", "logprobs",
        "n > 1, with a seed", "structured output",
    ],
)  # fmt: skip
def test_answers_are_those_of_stock_although_prompts_were_cut(
    features: dict[str, Any], feature: str
) -> None:
    compared = features[feature]
    assert compared["different"] == []
    assert compared["used"] > 0
    assert compared["cut_steps"] > 0


def test_vectors_are_those_of_stock_and_steps_are_told_all_the_same(
    features: dict[str, Any],
) -> None:
    compared = features["embeddings"]
    assert compared["different"] == []
    assert compared["used"] > 0
