"""Held against the argument parser of the installed vLLM.

Which flags there are, by version: `tests/unit/engine/test_vllm_versions.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from weir_core.api.engine import Parallelism
from weir_core.api.model import Adapter, Source
from weir_core.wire.engine import EngineConfig
from weir_engine.launch import Paths, serve_arguments
from weir_engine.machine import Machine
from weir_engine.vllm_metadata import with_path, write_vllm_metadata

SCRIPT = """
import json, sys
try:
    from vllm.entrypoints.common.cli_args import make_arg_parser
except ImportError:  # before 0.33
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
parsed = [vars(parser.parse_args(argv)) for argv in json.load(sys.stdin)]
print(json.dumps(parsed, default=str))
"""

GPU = Machine(device="gpu", vllm_version="0.32.0", cores=32, memory_bytes=2**38)
CPU = Machine(device="cpu", vllm_version="0.32.0", cores=2, memory_bytes=2**34)

CONFIGS = [
    (CPU, EngineConfig(name="m", source=Source(uri="tiny://"))),
    (CPU, EngineConfig(name="m", source=Source(uri="hf://org/m"))),
    (
        GPU,
        EngineConfig(
            name="m",
            aliases=("a", "b"),
            source=Source(uri="hf://org/m"),
            adapters=(Adapter(name="sql", source=Source(uri="pvc://c/sql")),),
            parallelism=Parallelism(tensor=2, pipeline=2, data=2),
            args=("--max-model-len", "8k", "--seed=7"),
            traces_endpoint="http://otel:4318/v1/traces",
        ),
    ),
]


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What vLLM's parser makes of our command lines."""
    root = write_vllm_metadata(tmp_path_factory.mktemp("metadata"))
    argvs = [serve_arguments(config, machine, Paths())[1:] for machine, config in CONFIGS]
    # The parser of `serve` has the model as a positional; without the subcommand it is `--model`.
    argvs = [["--model", *argv] for argv in argvs]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=with_path(dict(os.environ), root),
        input=json.dumps(argvs), capture_output=True, text=True, timeout=240, check=False,
        cwd=Path(root or "/"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_vllm_takes_every_command_line_of_ours(parsed: list[dict[str, Any]]) -> None:
    assert [one["uds"] for one in parsed] == ["/run/weir/engine.sock"] * len(CONFIGS)
    assert parsed[0]["kv_cache_memory_bytes"] == 64 * 2**20
    assert parsed[1]["max_model_len"] == -1
    assert parsed[2]["served_model_name"] == ["m", "a", "b"]
    assert (parsed[2]["max_model_len"], parsed[2]["seed"]) == (8000, 7)
