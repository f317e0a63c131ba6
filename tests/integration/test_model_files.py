"""What is fetched of a repository, held against vLLM's own readers of the whole of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.engine.engines import ENVIRONMENT
from tests.unit.engine.local_http import serving
from tests.unit.engine.local_hub import Hub
from weir_core.api.model import Source
from weir_core.wire.engine import EngineConfig, local_path
from weir_engine import remote_code
from weir_engine.repository_files import INDEX, wanted
from weir_engine.tiny.model import SIZES, files
from weir_engine.tiny.weights import safetensors
from weir_engine.vllm_metadata import with_path, write_vllm_metadata

READERS = """
import json, os, sys
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.tokenizers.registry import resolve_tokenizer_args
from vllm.transformers_utils.config import (
    get_pooling_config, get_sentence_transformer_tokenizer_config, try_get_dense_modules)
from vllm.transformers_utils.repo_utils import (
    file_or_path_exists, get_hf_file_bytes, is_mistral_model_repo)

def weights(directory, load_format):
    loader = DefaultModelLoader(LoadConfig(load_format=load_format))
    found = loader._prepare_weights(directory, None, None, True, None)
    return sorted(os.path.relpath(path, directory) for path in found[1])

def read(directory, load_format, extra):
    dense = try_get_dense_modules(directory) or []
    return {
        "weights": weights(directory, load_format),
        "mistral": is_mistral_model_repo(directory)
            and file_or_path_exists(directory, "params.json", None),
        "tokenizer": resolve_tokenizer_args(directory)[0],
        "pooling": get_pooling_config(directory, None),
        "sentences": get_sentence_transformer_tokenizer_config(directory, None),
        "dense": [one["folder"] for one in dense
            if get_hf_file_bytes(f"{one['folder']}/model.safetensors", directory)],
        "extra": [name for name in extra if get_hf_file_bytes(name, directory) is not None],
    }

print(json.dumps([read(*one) for one in json.load(sys.stdin)]))
"""

VECTOR = """
import json, sys
from vllm import LLM
engine = LLM(sys.argv[1], runner="pooling", enforce_eager=True, dtype="float32", max_model_len=64)
print(json.dumps(engine.embed(["The quick brown fox"], use_tqdm=False)[0].outputs.embedding))
"""

CODE = """
import sys
from vllm.transformers_utils.config import get_config
print(get_config(sys.argv[1], trust_remote_code=True).hidden_size)
"""

SHARDS = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
SENTENCES: dict[str, Any] = {
    "config.json": {"model_type": "bert"},
    "config_sentence_transformers.json": {},
    "sentence_bert_config.json": {"max_seq_length": 128},
    "modules.json": [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        {"path": "3_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "1_Pooling/config.json": {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
    "2_Dense/config.json": {"in_features": 128, "out_features": 16, "bias": False},
    "2_Dense/model.safetensors": None,
    "model.safetensors": None,
    "pytorch_model.bin": None,
    "onnx/model.onnx": None,
    "openvino/openvino_model.bin": None,
}


def names(*listed: str) -> dict[str, Any]:
    return {"config.json": {}, **dict.fromkeys(listed)}


REPOSITORIES: dict[str, tuple[Mapping[str, Any], str, tuple[str, ...]]] = {
    "sentence-transformers": (SENTENCES, "auto", ("2_Dense/model.safetensors",)),
    "one file, and copies of it": (
        names(
            *("model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"),
            *("original/consolidated.00.pth", "original/params.json", "model.gguf"),
        ),
        "auto", (),
    ),
    "shards, and a merged copy": (
        {
            **names("model-1.safetensors", "model-2.safetensors", "model.safetensors"),
            INDEX: SHARDS,
        },
        "auto", (),
    ),
    "Mistral's own format, and a copy": (
        {
            **names("consolidated.safetensors", "model-1.safetensors", "model-2.safetensors"),
            INDEX: SHARDS, "params.json": {}, "tekken.json": {}, "tokenizer.json": {},
        },
        "auto", ("tekken.json",),
    ),
    "Mistral's own format, not asked for": (
        {
            **names("consolidated.safetensors", "model-1.safetensors", "model-2.safetensors"),
            INDEX: SHARDS,
        },
        "safetensors", (),
    ),
    "pickles": (names("pytorch_model-1.bin", "pytorch_model-2.bin", "model.pt"), "auto", ()),
    "the state of a training run": (
        names(
            *("pytorch_model.bin", "training_args.bin", "optimizer.bin", "optimizer.pt"),
            *("checkpoint-5/config.json", "checkpoint-5/model.safetensors", "scheduler.pt"),
        ),
        "auto", (),
    ),
    "weights that add to the model's": (
        names("pytorch_model.bin", "colbert_linear.pt", "sparse_linear.pt", "mask_embedding.pt"),
        "auto", ("colbert_linear.pt", "sparse_linear.pt", "mask_embedding.pt"),
    ),
    "adapters in folders": (
        names(
            *("model.safetensors", "adapters/retrieval/adapter_config.json"),
            *("adapters/retrieval/adapter_model.safetensors", "adapters/retrieval/optimizer.pt"),
        ),
        "auto",
        (
            "adapters/retrieval/adapter_config.json",
            "adapters/retrieval/adapter_model.safetensors",
        ),
    ),
    "chat templates and code": (
        names(
            *("model.safetensors", "chat_template.jinja", "modeling.py", "code/layers.py"),
            *("additional_chat_templates/tools.jinja", "preprocessor_config.json", "merges.txt"),
        ),
        "auto",
        (
            *("chat_template.jinja", "additional_chat_templates/tools.jinja", "modeling.py"),
            *("code/layers.py", "preprocessor_config.json", "merges.txt"),
        ),
    ),
    "a format that is asked for": (names("model.safetensors", "model.pt"), "pt", ()),
}  # fmt: skip
"""A repository, the load format, and what models read beside the weights of the root."""


def write(directory: Path, repository: Mapping[str, Any], chosen: Iterable[str]) -> Path:
    for name in chosen:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = repository[name]
        path.write_text("x" if text is None else json.dumps(text))
    return directory


def fetched(repository: Mapping[str, Any], load_format: str) -> list[str]:
    index = repository.get(INDEX)
    return wanted(repository, load_format, index and set(index["weight_map"].values()))


def vllm_process(
    tmp_path: Path, script: str, *arguments: str, stdin: str = "", **environment: str
) -> str:
    root = write_vllm_metadata(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=with_path(dict(os.environ) | environment, root), input=stdin, cwd=tmp_path,
        capture_output=True, text=True, timeout=480, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def fetch(hub: Hub, models: Path, uri: str, *args: str) -> str:
    """Fetch as a pod does; return where the model is."""
    config = EngineConfig(name="m", source=Source(uri=uri), args=args)
    with serving(hub) as url:
        environment = {"WEIR_MODEL_DIR": str(models), "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0"}
        subprocess.run(
            [sys.executable, "-m", "weir_engine", "fetch"],
            env=os.environ | environment | {"WEIR_ENGINE_CONFIG": config.model_dump_json()},
            timeout=120, check=True,
        )  # fmt: skip
    return local_path(config.source, str(models))


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What vLLM reads of each repository, whole and as it is fetched."""
    home, asked = tmp_path_factory.mktemp("repositories"), []
    for number, (repository, load_format, extra) in enumerate(REPOSITORIES.values()):
        for kind, chosen in (("whole", repository), ("fetched", fetched(repository, load_format))):
            directory = write(home / f"{kind}-{number}", repository, chosen)
            asked.append([str(directory), load_format, extra])
    printed = vllm_process(home, READERS, stdin=json.dumps(asked), HF_HUB_OFFLINE="1")
    read = json.loads(printed.splitlines()[-1])
    return dict(zip(REPOSITORIES, zip(read[::2], read[1::2], strict=True), strict=True))


@pytest.mark.parametrize("name", REPOSITORIES)
def test_vllm_reads_of_what_is_fetched_what_it_reads_of_the_whole(
    readings: dict[str, Any], name: str
) -> None:
    whole, got = readings[name]
    assert got == whole
    assert got["extra"] == list(REPOSITORIES[name][2])


@pytest.mark.parametrize("name", REPOSITORIES)
def test_no_weights_are_fetched_that_vllm_does_not_read(
    readings: dict[str, Any], name: str
) -> None:
    repository, load_format, extra = REPOSITORIES[name]
    formats = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
    weights = {one for one in fetched(repository, load_format) if one.endswith(formats)}
    assert weights - {*readings[name][1]["weights"], *extra} == set()


def test_code_of_another_repository_is_found_where_it_was_fetched(tmp_path: Path) -> None:
    described = {"model_type": "made-up", "auto_map": {"AutoConfig": "org/code--module.Config"}}
    module = (
        "from transformers import PreTrainedConfig\n"
        "from .sizes import HIDDEN\n"
        "class Config(PreTrainedConfig):\n"
        "    model_type = 'made-up'\n"
        "    hidden_size = HIDDEN\n"
    )
    hub = Hub(
        {
            "org/model": {
                "config.json": json.dumps(described).encode(),
                "model.safetensors": b"weights",
            },
            "org/code": {"module.py": module.encode(), "sizes.py": b"HIDDEN = 1234"},
        }
    )
    home = fetch(hub, tmp_path, "hf://org/model", "--trust-remote-code")
    printed = vllm_process(
        tmp_path, CODE, home, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path / remote_code.CACHE)
    )
    assert printed.splitlines()[-1] == "1234"


def test_the_vectors_of_a_sentence_transformer_are_those_of_its_whole_directory(
    tmp_path: Path,
) -> None:
    written = write(tmp_path / "whole", SENTENCES, set(SENTENCES) - {"model.safetensors"})
    repository = {
        str(path.relative_to(written)): path.read_bytes()
        for path in written.rglob("*")
        if path.is_file()
    }
    projection = np.random.default_rng(7).standard_normal((16, 128), dtype=np.float32)
    repository["2_Dense/model.safetensors"] = safetensors({"linear.weight": projection})
    # A copy that would be read if the weights were missing.
    del repository["pytorch_model.bin"]
    repository |= files(SIZES[""])
    for name, body in repository.items():
        (written / name).write_bytes(body)
    home = fetch(Hub({"org/sentences": repository}), tmp_path, "hf://org/sentences")
    assert not Path(home, "onnx").exists()
    environment = {
        **ENVIRONMENT,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_USE_AOT_COMPILE": "0",
    }

    def vector(directory: str) -> list[float]:
        printed = vllm_process(tmp_path, VECTOR, directory, **environment)
        found: list[float] = json.loads(printed.splitlines()[-1])
        return found

    with ThreadPoolExecutor() as both:
        got, whole = both.map(vector, (home, str(written)))
    assert got == whole
    # As wide as the projection, of the length that the last module gives it.
    assert len(got) == 16
    assert np.linalg.norm(got) == pytest.approx(1, abs=1e-5)
