"""Models that the engine's arguments name: what is fetched for them, and what is refused."""

from __future__ import annotations

import json

import pytest

from weir_core.api.model import Source
from weir_core.errors import InvalidSpec
from weir_core.wire.engine import EngineConfig, local_path, named_path
from weir_core.wire.named_models import named_models, with_paths


def draft(**fields: object) -> str:
    return json.dumps({"num_speculative_tokens": 3, **fields})


@pytest.mark.parametrize(
    ("args", "uri", "weights"),
    [
        pytest.param(["--tokenizer", "o/t"], "hf://o/t", False, id="tokenizer"),
        pytest.param(["--tokenizer=gpt2"], "hf://gpt2", False, id="name of one part"),
        pytest.param(
            ["--tokenizer=o/t", "--tokenizer-revision=v1"], "hf://o/t@v1", False, id="revision"
        ),
        pytest.param(["--hf_config_path=o/c"], "hf://o/c", False, id="underscores"),
        pytest.param(["--generation-config=o/g"], "hf://o/g", False, id="generation config"),
        pytest.param(["--spec-model=o/d"], "hf://o/d", True, id="draft"),
        pytest.param(["--speculative-config", draft(model="o/d")], "hf://o/d", True, id="JSON"),
        pytest.param(
            ["-sc", draft(model="o/d", revision="v2")], "hf://o/d@v2", True, id="short flag"
        ),
        pytest.param(["--speculative-config.model=o/d"], "hf://o/d", True, id="dotted"),
        pytest.param(
            ["--speculative_config.model", "o/d", "--speculative-config.revision=v3"],
            "hf://o/d@v3", True, id="dotted revision",
        ),
        pytest.param(["--default-mm-loras", '{"audio": "o/l"}'], "hf://o/l", True, id="adapter"),
        pytest.param(["--spec-model=s3://b/d"], "s3://b/d", True, id="bucket"),
        pytest.param(["--tokenizer=hf://o/m/folder@v1"], "hf://o/m/folder@v1", False, id="folder"),
    ],
)  # fmt: skip
def test_a_repository_that_an_argument_names_is_fetched(
    args: list[str], uri: str, weights: bool
) -> None:
    (named,) = named_models(args)
    assert (named.source, named.weights) == (Source(uri=uri), weights)


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(["--tokenizer=/models/mine"], id="path"),
        pytest.param(["--generation-config=vllm"], id="word of vLLM"),
        pytest.param(["--speculative-config", draft(method="ngram")], id="no model"),
        pytest.param(["--speculative-config", draft(model="[ngram]")], id="n-grams"),
        pytest.param(["-sc", draft(method="custom_class", model="a.b.C")], id="class"),
        pytest.param(["--tokenizer-mode=mistral", "--seed", "1"], id="other flags"),
        pytest.param(["--tokenizer"], id="no value"),
        pytest.param(["--tokenizer", "--seed=1"], id="a flag in the place of the value"),
    ],
)
def test_what_names_no_repository_stays(args: list[str]) -> None:
    assert named_models(args) == ()


@pytest.mark.parametrize(
    ("args", "want"),
    [
        pytest.param(
            ["--seed=1", "--tokenizer", "pvc://c/t"],
            r"args\[2\]: --tokenizer names pvc://c/t, which .*podTemplate mounts", id="volume",
        ),
        pytest.param(
            ["--tokenizer=models/a/b"], r"args\[0\]: .* neither ORG/MODEL nor a path", id="relative"
        ),
        pytest.param(["-sc={"], r"args\[0\]: -sc is not JSON", id="no JSON"),
        pytest.param(["-sc=[]"], r"args\[0\]: -sc is not a JSON object", id="no object"),
    ],
)  # fmt: skip
def test_refuses_what_cannot_be_fetched(args: list[str], want: str) -> None:
    with pytest.raises(InvalidSpec, match=rf"^spec\.engine\.{want}"):
        named_models(args)


def test_the_engine_gets_the_directories_in_place_of_the_names() -> None:
    args = ["--seed=1", "--tokenizer", "o/t", "--hf-config-path=o/c", "-sc", draft(model="o/d")]
    tokenizer, configuration, drafts = named_models(args)
    paths = {tokenizer: "/m/t", configuration: "/m/c", drafts: "/m/d"}
    assert with_paths(args, paths) == [
        *("--seed=1", "--tokenizer", "/m/t", "--hf-config-path=/m/c"),
        *("-sc", draft(model="/m/d")),
    ]


def test_a_tokenizer_without_weights_is_not_taken_for_the_model_of_the_same_repository() -> None:
    config = EngineConfig(
        name="m", source=Source(uri="hf://o/m"), args=("--tokenizer=o/m", "--spec-model=o/m")
    )
    tokenizer, drafts = config.named
    assert named_path(tokenizer) != local_path(config.source) == named_path(drafts)
    assert [one.uri for one in config.sources] == ["hf://o/m"] * 3
