"""What vLLM keeps of the names that its clients ask for."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

from tests.unit.core import vllm_sources
from weir_engine.aliases import forget_unknown_names


def locks() -> Any:
    """Return what stands for vLLM's locks from the start of the API server on."""
    models = SimpleNamespace(lora_resolver_lock=defaultdict(asyncio.Lock))
    forget_unknown_names(SimpleNamespace(state=SimpleNamespace(openai_serving_models=models)))
    return models.lora_resolver_lock


async def test_names_that_are_not_served_are_forgotten() -> None:
    of = locks()
    for number in range(100):
        async with of[f"unknown-{number}"]:
            assert len(of) == 1
    assert len(of) == 0


async def test_a_name_has_one_lock_while_it_is_held() -> None:
    of = locks()
    order: list[str] = []

    async def hold(name: str) -> None:
        async with of["sql"]:
            order.append(f"{name} in")
            await asyncio.sleep(0)
            order.append(f"{name} out")

    await asyncio.gather(hold("a"), hold("b"))
    assert order == ["a in", "a out", "b in", "b out"]


def test_an_application_without_a_registry_is_left_as_it_is() -> None:
    state = SimpleNamespace()
    forget_unknown_names(SimpleNamespace(state=state))
    assert vars(state) == {}


def test_vllm_takes_each_lock_by_its_name_and_holds_it() -> None:
    source = vllm_sources.package("vllm") / "entrypoints/openai/models/serving.py"
    uses = [
        line.strip() for line in source.read_text().splitlines() if "lora_resolver_lock" in line
    ]
    made, *taken = uses
    assert made.startswith("self.lora_resolver_lock")
    assert set(taken) == {"async with self.lora_resolver_lock[lora_name]:"}
