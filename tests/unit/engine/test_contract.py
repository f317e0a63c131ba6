"""What is looked for in vLLM, and how it is refused."""

from __future__ import annotations

import ast
import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from weir_engine.scheduling import contract, log, ordered, room


class Known:
    def schedule(self, throttle_prefills: bool = False) -> Any: ...
    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any: ...
    def add_request(self, request: Any) -> None: ...
    def _free_request(self, request: Any, delay_free_blocks: bool = False) -> Any: ...


class Renamed(Known):
    def schedule(self, throttle: bool = False) -> Any: ...


@pytest.mark.parametrize(
    ("version", "objects"),
    [
        ("0.32.0", False),
        ("0.32.4+cpu", False),
        ("0.33.0", False),
        ("0.31.9", True),
        ("0.34.0", True),
        ("dev", True),
    ],
)
def test_knows_its_versions(version: str, objects: bool) -> None:
    assert bool(contract.version_objection(version)) is objects


def test_finds_a_method_that_takes_other_parameters() -> None:
    assert contract.missing_methods(Known, contract.LOG_METHODS) == []
    assert contract.missing_methods(Renamed, contract.LOG_METHODS) == ["schedule"]


def test_finds_an_attribute_that_is_gone_however_deep() -> None:
    scheduler = SimpleNamespace(kv_cache_manager=SimpleNamespace(block_pool=1))
    wanted = ("kv_cache_manager.block_pool", "kv_cache_manager.usage", "running")
    assert contract.missing_attributes(scheduler, wanted) == ["kv_cache_manager.usage", "running"]


def test_a_refusal_names_what_is_missing_and_which_versions_have_it() -> None:
    assert contract.objection("0.32.7", ["running"]) == (
        "vLLM 0.32.7 has no running as Weir's scheduler needs; install vLLM >=0.32,<0.34"
    )
    assert contract.objection("0.34.0", []).startswith("Weir's scheduler is for vLLM >=0.32,<0.34")
    assert contract.objection("0.32.0", []) == ""


def test_all_that_is_read_of_a_request_or_a_formed_step_is_in_the_contract() -> None:
    of_request = {path.split(".")[0] for path in contract.LOG_REQUEST + contract.ORDER_REQUEST}
    of_output = {path.split(".")[0] for path in contract.LOG_OUTPUT + contract.ORDER_OUTPUT}
    known = {"head": of_request, "one": of_request, "r": of_request, "output": of_output}
    known["request"] = of_request | {"req_id"}  # as a formed step calls it
    read = set()
    for module in (log, ordered, room):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                read.add((node.value.id, node.attr))
    assert ("request", "next_decode_eligible_step") in read
    assert {(owner, name) for owner, name in read if name not in known.get(owner, {name})} == set()
