"""What vLLM loads of ours into its processes."""

from __future__ import annotations

from importlib.metadata import entry_points
from types import SimpleNamespace

import torch

from weir_engine import plugin


def test_vllm_finds_it() -> None:
    assert entry_points(group="vllm.general_plugins")["weir"].load() is plugin.register


class Runner:
    """What of vLLM's model runner the seeds of cut prompts pass through."""

    def __init__(self, seeds: dict[int, int]) -> None:
        generators = {one: torch.Generator().manual_seed(seed) for one, seed in seeds.items()}
        self.input_batch = SimpleNamespace(generators=generators)
        self.discard_request_mask = SimpleNamespace(np=[False, False])

    def _sample(self) -> list[float]:
        generators = self.input_batch.generators
        return [float(torch.rand(1, generator=generators[one])) for one in sorted(generators)]

    def _bookkeeping_sync(self) -> None:
        for one, generator in self.input_batch.generators.items():
            if self.discard_request_mask.np[one]:
                generator.set_offset(generator.get_offset() - 4)

    def step(self, *cut: int) -> list[float]:
        self.discard_request_mask.np = [one in cut for one in range(2)]
        sampled = self._sample()
        self._bookkeeping_sync()
        return sampled


def test_a_seed_gives_the_same_tokens_however_its_prompt_was_cut() -> None:
    class Mended(Runner):
        pass

    plugin.rewind_cut_prompts(Mended)
    whole, cut = Mended({0: 7, 1: 8}), Mended({0: 7, 1: 8})
    want = [whole.step() for _ in range(3)]
    cut.step(0, 1)
    first = cut.step(0)
    got = [cut.step() for _ in range(3)]
    assert [one[0] for one in got] == [one[0] for one in want]
    assert [first[1], got[0][1]] == [one[1] for one in want[:2]]
    assert set(cut.input_batch.generators) == {0, 1}
