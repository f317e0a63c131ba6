"""What vLLM loads of ours into its processes."""

from __future__ import annotations

from importlib.metadata import entry_points

from weir_engine import plugin


def test_vllm_finds_it() -> None:
    assert entry_points(group="vllm.general_plugins")["weir"].load() is plugin.register
