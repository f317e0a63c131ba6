"""What vLLM loads of ours into its processes."""

from __future__ import annotations

from importlib.metadata import entry_points

from weir_engine import amx


def test_vllm_finds_the_plugin_that_asks_for_matrix_tiles() -> None:
    plugins = entry_points(group="vllm.general_plugins")
    assert plugins["weir_amx"].load() is amx.register
