"""What each supported vLLM has of what Weir builds on, and what changed between them.

The versions are written down in tests/golden/vllm, by `tests/integration/test_vllm_outline.py`.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from weir_core.api.engine import Parallelism
from weir_core.api.engine_environment import FORBIDDEN_ENV, PLUGINS
from weir_core.api.engine_flags import FORBIDDEN, forbidden_flag
from weir_core.api.model import Adapter, Source
from weir_core.wire.engine import EngineConfig
from weir_core.wire.named_models import DRAFT, DRAFT_JSON, LORAS_JSON, REVISIONS, TEXTS
from weir_engine.launch import Paths, environment, serve_arguments
from weir_engine.machine import Machine
from weir_engine.scheduling import contract

ROOT = Path(__file__).resolve().parents[3]
VERSIONS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((ROOT / "tests/golden/vllm").glob("*.json"))
}
PINS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
NAMING = {*TEXTS, *REVISIONS.values(), *DRAFT_JSON, DRAFT, LORAS_JSON}
"""Flags of the user's that Weir reads."""
OPENS_OR_MOVES = re.compile(r"(^|-)(port|host|uds|addr|address|ssl|grpc|nnodes|rank|lb)(-|$)")
"""Words in a flag's name that mean the network."""
HARMLESS = {"--max-lora-rank", "--watermark"}

EVERYTHING = EngineConfig(
    name="m",
    source=Source(uri="tiny://"),
    adapters=(Adapter(name="a", source=Source(uri="pvc://c/a")),),
    parallelism=Parallelism(tensor=2, pipeline=2, data=2),
    traces_endpoint="http://otel:4318/v1/traces",
)
SMALL = EngineConfig(name="m", source=Source(uri="hf://org/m"))
CPU = Machine(device="cpu", vllm_version="", cores=2, memory_bytes=2**34)


@pytest.fixture(params=VERSIONS)
def vllm(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = VERSIONS[request.param]
    return found


def spellings(vllm: dict[str, Any]) -> set[str]:
    return {spelling for flag in vllm["flags"] for spelling in flag}


def ours() -> set[str]:
    """Return the flags that Weir writes or reads."""
    written = [*serve_arguments(EVERYTHING, CPU, Paths()), *serve_arguments(SMALL, CPU, Paths())]
    return {word for word in written if word.startswith("--")} | NAMING | FORBIDDEN.keys()


def test_both_pins_are_written_down_and_supported() -> None:
    pinned = {PINS[extra][0].partition("==")[2] for extra in ("engine", "engine-cpu")}
    assert pinned == VERSIONS.keys()
    assert [contract.version_objection(version) for version in pinned] == [""] * len(pinned)


def test_the_scheduler_has_the_methods_of_the_contract(vllm: dict[str, Any]) -> None:
    for name, parameters in {**contract.LOG_METHODS, **contract.ORDER_METHODS}.items():
        assert set(parameters) <= set(vllm["methods"][name]), name


def test_the_flags_that_weir_writes_reads_or_reserves_exist(vllm: dict[str, Any]) -> None:
    assert ours() <= spellings(vllm)


def test_every_spelling_of_a_reserved_flag_is_reserved(vllm: dict[str, Any]) -> None:
    reserved = {one for flag in vllm["flags"] if set(flag) & FORBIDDEN.keys() for one in flag}
    refused = {one for one in spellings(vllm) if forbidden_flag([one])}
    assert refused == reserved


def test_every_flag_that_means_the_network_is_reserved(vllm: dict[str, Any]) -> None:
    names = {one for one in spellings(vllm) if OPENS_OR_MOVES.search(one[2:])}
    assert {name for name in names - HARMLESS if forbidden_flag([name]) is None} == set()


def test_the_variables_that_weir_sets_or_reserves_exist(vllm: dict[str, Any]) -> None:
    named = {*environment(SMALL, CPU, {}), *FORBIDDEN_ENV, PLUGINS}
    known = set(vllm["environment"])
    assert {name for name in named if name.startswith("VLLM_")} - known == set()


def test_between_the_two_nothing_changed_that_weir_writes_reads_or_overrides() -> None:
    """What did change beside it: docs/inside-vllm.md, "Versions of vLLM"."""
    older, newer = VERSIONS.values()
    assert older["methods"] == newer["methods"]
    gone = spellings(older) - spellings(newer)
    new = {one for one in spellings(newer) - spellings(older) if not negates(one, older)}
    assert gone == set()
    assert new == {
        "--monokernel", "--no-monokernel", "--reasoning-effort-map", "--sleep-mode-backend",
        "--watchdog-config",
    }  # fmt: skip


def negates(spelling: str, older: dict[str, Any]) -> bool:
    """Tell whether it is the new twin of an older switch: `--disable-x` of `--enable-x`."""
    twins = (("--disable-", "--enable-"), ("--enable-", "--disable-"))
    return any(
        spelling.startswith(one) and spelling.replace(one, other, 1) in spellings(older)
        for one, other in twins
    )
