"""Which variables are reserved, held against those that the pinned vLLM reads."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.unit.core.vllm_sources import package
from weir_core.api.engine_environment import (
    FORBIDDEN_ENV,
    PLUGIN,
    PLUGINS,
    wrong_environment,
    wrong_variable,
)

ROOT = Path(__file__).resolve().parents[3]

REACHES_OR_RENAMES = re.compile(
    r"_(PORT|HOST|IPS?|KEY|DP|RANK|MASTER|FRONTEND|REDIRECT|PLUGINS|ALIVE|REQUEST_ID|CONFIG|SERVER)"
    r"(_|$)"
)
"""Words of a variable that means the network, another engine, or what it is called and asked."""

HARMLESS = {
    # They bound, log or place what stays inside of the engine.
    "VLLM_CONFIG_ROOT",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE",
    "VLLM_LOGGING_CONFIG_PATH",
    "VLLM_RANDOMIZE_DP_DUMMY_INPUTS",
    "VLLM_TUNED_CONFIG_FOLDER",
    "VLLM_HUMMING_INPUT_QUANT_CONFIG",
    "VLLM_HUMMING_ONLINE_QUANT_CONFIG",
    "VLLM_TRITON_FORCE_FIRST_CONFIG",
    # Where usage would be told, which it is not.
    "VLLM_USAGE_STATS_SERVER",
    # It opens paths that the sidecar keeps closed.
    "VLLM_SERVER_DEV_MODE",
    # KV connectors between hosts, which open ports of their own (docs/engine.md).
    "VLLM_EC_SIDE_CHANNEL_HOST",
    "VLLM_EC_SIDE_CHANNEL_PORT",
    "VLLM_MOONCAKE_BOOTSTRAP_PORT",
    "VLLM_NIXL_SIDE_CHANNEL_HOST",
    "VLLM_NIXL_SIDE_CHANNEL_PORT",
    "VLLM_P2P_SIDE_CHANNEL_HOST",
    "VLLM_P2P_SIDE_CHANNEL_PORT",
    # Only read where a launcher of processes (torchrun) started vLLM.
    "LOCAL_RANK",
    # Credentials of a loader of weights.
    "S3_ACCESS_KEY_ID",
    "S3_SECRET_ACCESS_KEY",
}


@cache
def read_by_vllm() -> frozenset[str]:
    """Every variable in vLLM's own table of them."""
    tree = ast.parse((package("vllm") / "envs.py").read_text())
    tables = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign)
        and ast.unparse(node.target) == "environment_variables"
        and isinstance(node.value, ast.Dict)
    ]
    (table,) = tables
    return frozenset(str(key.value) for key in table.keys if isinstance(key, ast.Constant))


def test_every_variable_of_vllm_that_means_the_network_or_the_name_is_decided_about() -> None:
    meant = {name for name in read_by_vllm() if REACHES_OR_RENAMES.search(name)}
    assert meant - FORBIDDEN_ENV.keys() - {PLUGINS} == HARMLESS & meant


def test_nothing_is_called_harmless_that_vllm_does_not_read() -> None:
    assert read_by_vllm() >= HARMLESS


def test_every_reserved_variable_is_weirs_or_read_by_vllm() -> None:
    vllms = {name for name in FORBIDDEN_ENV if not name.startswith("WEIR_")}
    assert vllms | {PLUGINS} <= read_by_vllm()


def test_the_plugin_has_the_name_of_its_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert list(project["entry-points"]["vllm.general_plugins"]) == [PLUGIN]


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        pytest.param("HF_HUB_OFFLINE", "0", None, id="harmless"),
        pytest.param("VLLM_API_KEY", "k", "VLLM_API_KEY is reserved for Weir", id="a flag's twin"),
        pytest.param("VLLM_API_KEY", None, "VLLM_API_KEY is reserved", id="a twin by reference"),
        pytest.param("WEIR_RUN_DIR", "/x", "WEIR_RUN_DIR is reserved for Weir", id="Weir's own"),
        pytest.param("VLLM_PLUGINS", "a,weir", None, id="plugins with Weir's"),
        pytest.param("VLLM_PLUGINS", "a,weird", "VLLM_PLUGINS leaves out", id="without Weir's"),
        pytest.param("VLLM_PLUGINS", "", "VLLM_PLUGINS leaves out", id="no plugins at all"),
        pytest.param("VLLM_PLUGINS", None, None, id="plugins that only the engine will see"),
    ],
)
def test_says_what_is_wrong_with_a_variable(name: str, value: str | None, want: str | None) -> None:
    found = wrong_variable(name, value)
    assert found is None if want is None else str(found).startswith(want)


def test_an_engine_does_not_refuse_what_weir_set() -> None:
    assert list(wrong_environment(dict.fromkeys(FORBIDDEN_ENV.keys(), "x"))) == [
        (name, wrong_variable(name, "x")) for name in FORBIDDEN_ENV if name.startswith("VLLM_")
    ]
