"""`weir init` writes a spec that fits the model, and that `weir check` takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.unit.engine.local_http import Answer, Asked, serving
from weir_cli.__main__ import main
from weir_cli.hub_size import weight_files
from weir_cli.sizing import GIB, Weights, by_hand, needs_of_cpu, needs_with_gpus, parse_size
from weir_core.errors import InvalidSpec

QWEN = {f"model-{part}-of-4.safetensors": 4 * 10**9 for part in range(1, 5)}


class Ran(NamedTuple):
    code: object
    out: str
    err: str


Weir = Callable[..., Ran]


class Hub:
    """Tells the files of one repository and their sizes, or answers with an error."""

    def __init__(self, sizes: Mapping[str, int], **page: Any) -> None:
        self.sizes, self.page = sizes, page
        self.error: Answer | None = None
        self.asked: list[Asked] = []

    def __call__(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        files = [{"rfilename": name, "size": size} for name, size in self.sizes.items()]
        page = {"id": "org/model", "tags": [], "siblings": files, **self.page}
        body = json.dumps(page).encode()
        return self.error or Answer(200, body, {"content-type": "application/json"})


@pytest.fixture
def weir(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Weir:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))

    def run(*arguments: str, hub: Hub | None = None) -> Ran:
        with serving(hub or Hub({})) as url:
            monkeypatch.setenv("HF_ENDPOINT", url)
            with pytest.raises(SystemExit) as left:
                main(arguments)
        return Ran(left.value.code or 0, *capsys.readouterr())

    return run


def spec_in(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@pytest.mark.parametrize(
    ("arguments", "hub"),
    [
        pytest.param(["Qwen/Qwen3-8B"], Hub(QWEN), id="of the hub"),
        pytest.param(["hf://Qwen/Qwen3-8B@main"], Hub(QWEN), id="a revision of it"),
        pytest.param(["org/70B", "--weights", "141GB"], None, id="several GPUs"),
        pytest.param(["org/1B", "--weights", "2GiB", "--cpu"], None, id="no GPU"),
        pytest.param(["meta/Llama-3.1-8B"], Hub(QWEN, gated="manual"), id="with a token only"),
        pytest.param(["tiny://"], None, id="the generated model"),
        pytest.param(["s3://bucket/models/8B", "--weights", "16GiB"], None, id="a bucket"),
        pytest.param(["pvc://claim/null", "--weights", "16GiB"], None, id="a claim"),
        pytest.param(["file:///models/a:", "--weights", "16GiB"], None, id="an odd directory"),
    ],
)
def test_what_it_writes_passes_the_check(
    arguments: list[str], hub: Hub | None, weir: Weir, tmp_path: Path
) -> None:
    path = tmp_path / "spec.yaml"
    assert weir("init", *arguments, "-o", str(path), hub=hub) == (0, "", "")
    checked = weir("check", str(path))
    assert (checked.code, checked.err) == (0, "")
    assert max(map(len, path.read_text().splitlines())) <= 100


def test_a_model_of_the_hub_gets_what_its_weights_need(weir: Weir) -> None:
    hub = Hub({**QWEN, "README.md": 9, "consolidated.safetensors": 16 * 10**9})
    spec = spec_in(weir("init", "Qwen/Qwen3-8B", hub=hub).out)
    assert spec == {
        "apiVersion": "serving.weir.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "qwen3-8b"},
        "spec": {
            "model": {"name": "qwen3-8b", "source": {"uri": "hf://Qwen/Qwen3-8B"}},
            "replicas": 1,
            "pools": [
                {
                    "name": "gpu",
                    "accelerator": {"count": 1},
                    "resources": {
                        "requests": {"cpu": "1", "memory": "8Gi", "ephemeral-storage": "17Gi"}
                    },
                }
            ],
            "admission": {"anonymousClass": "standard"},
        },
    }


def test_a_large_model_is_spread_over_gpus(weir: Weir) -> None:
    arguments = ("init", "org/70B", "--weights", "141GB", "--gpu-memory", "40GiB")
    spec = spec_in(weir(*arguments).out)["spec"]
    assert spec["engine"] == {"parallelism": {"tensor": 8}}
    assert spec["pools"][0]["accelerator"] == {"count": 8}


def test_a_model_for_accounts_with_access_gets_a_secret(weir: Weir) -> None:
    spec = spec_in(weir("init", "org/model", hub=Hub(QWEN, gated="auto")).out)["spec"]
    assert spec["model"]["source"]["secretRef"] == {"name": "hf-token"}


def test_the_token_and_the_revision_go_to_the_hub(
    weir: Weir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub = Hub(QWEN)
    assert weir("init", "org/model@v1", hub=hub).code == 0
    (asked,) = hub.asked
    assert asked.path.startswith("/api/models/org/model/revision/v1")
    assert asked.headers["authorization"] == "Bearer hf_secret"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        pytest.param(
            Answer(401, b"{}", {"x-error-code": "RepoNotFound"}), "set HF_TOKEN", id="none, private"
        ),
        pytest.param(
            Answer(403, b"{}", {"x-error-code": "GatedRepo"}), "accept its terms", id="gated"
        ),
        pytest.param(
            Answer(404, b"{}", {"x-error-code": "RevisionNotFound"}), "follows @", id="revision"
        ),
        pytest.param(Answer(418, b"{}"), "the hub answered 418", id="another answer"),
        pytest.param(Answer(200, b"{", length=99), "cannot be reached", id="half an answer"),
        pytest.param(
            Answer(200, b'{"id": "org/model", "siblings": []}'), "no weights", id="no weights"
        ),
    ],
)
def test_without_the_hub_the_size_is_asked_for(error: Answer, says: str, weir: Weir) -> None:
    hub = Hub({})
    hub.error = error
    ran = weir("init", "org/model", hub=hub)
    assert (ran.code, ran.out) == (1, "")
    assert says in ran.err
    assert "--weights 16GiB" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["hf://a b"], "MODEL", id="no source"),
        pytest.param(["ftp://a"], "MODEL", id="an unknown scheme"),
        pytest.param(["s3://bucket/model"], "--weights: the size of s3://", id="not on the hub"),
        pytest.param(["a/b", "--weights", "big"], "--weights: 'big' is not a size", id="no size"),
        pytest.param(["a/b", "--weights", "0GiB"], "--weights: '0GiB'", id="no weights"),
        pytest.param(
            ["a/b", "--weights", "1TB", "--gpu-memory", "24GB"], "take 64 GPUs of", id="too large"
        ),
    ],
)
def test_refuses_what_cannot_be(arguments: list[str], says: str, weir: Weir) -> None:
    ran = weir("init", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err


def test_replaces_a_file_only_if_told_to(weir: Weir, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("mine\n")
    refused = weir("init", "tiny://", "-o", str(path))
    assert (refused.code, path.read_text()) == (2, "mine\n")
    assert "--force" in refused.err
    assert weir("init", "tiny://", "-o", str(path), "--force").code == 0
    assert path.read_text() == weir("init", "tiny://").out


@pytest.mark.parametrize(
    ("size", "gpu", "want"),
    [
        pytest.param(16, 80, 1, id="8B on a large GPU"),
        pytest.param(16, 24, 1, id="8B on a small one"),
        pytest.param(19, 24, 2, id="too little room for a KV cache"),
        pytest.param(131, 80, 4, id="70B"),
        pytest.param(70, 80, 2, id="70B in 8 bits"),
        pytest.param(480, 80, 8, id="as much as fits"),
    ],
)
def test_gpus_hold_the_weights_and_a_kv_cache(size: int, gpu: int, want: int) -> None:
    assert needs_with_gpus(by_hand(size * GIB), gpu * GIB, fetched=True).gpus == want


def test_only_what_is_downloaded_takes_disk() -> None:
    weights = Weights(16 * GIB, 4 * GIB)
    disks = [needs_of_cpu(weights, fetched=fetched).disk_gib for fetched in (True, False)]
    assert disks == [18, 2]


def test_memory_of_the_cpu_holds_weights_engine_and_kv_cache() -> None:
    needs = needs_of_cpu(by_hand(8 * GIB), fetched=True)
    assert needs.memory_gib * 0.75 >= 8 + 4


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("16GiB", 16 * 2**30, id="GiB"),
        pytest.param("16Gi", 16 * 2**30, id="Kubernetes"),
        pytest.param("16 GB", 16 * 10**9, id="GB"),
        pytest.param("1.5T", 1_500_000_000_000, id="a fraction"),
        pytest.param("500mb", 500_000_000, id="small letters"),
    ],
)
def test_reads_sizes(text: str, want: int) -> None:
    assert parse_size("--weights", text) == want


@pytest.mark.parametrize("text", ["", "16", "GiB", "-1GiB", "16 bits", "1e3GiB"])
def test_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidSpec, match="--weights"):
        parse_size("--weights", text)


@pytest.mark.parametrize(
    ("sizes", "folder", "want"),
    [
        pytest.param({"model.safetensors": 5, "pytorch_model.bin": 6}, "", [5], id="two formats"),
        pytest.param({**QWEN, "model.safetensors": 9}, "", [4 * 10**9] * 4, id="whole and parts"),
        pytest.param({"consolidated.safetensors": 7}, "", [7], id="Mistral's only"),
        pytest.param({"original/a.safetensors": 7, "a.safetensors": 5}, "", [5], id="a copy"),
        pytest.param({"sql/a.safetensors": 3, "a.safetensors": 5}, "sql", [3], id="a folder"),
        pytest.param({"training_args.bin": 1, "model.bin": 4}, "", [4], id="a training's rest"),
        pytest.param({"README.md": 4, "optimizer.bin": 2}, "", [], id="none"),
    ],
)
def test_counts_the_weights_that_are_loaded(
    sizes: dict[str, int], folder: str, want: list[int]
) -> None:
    assert weight_files(sizes, folder) == want
