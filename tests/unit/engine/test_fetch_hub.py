"""hf:// sources against a hub on the loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.engine.local_http import serving
from tests.unit.engine.local_hub import Hub
from weir_core.api.model import Source
from weir_core.errors import ModelUnavailable
from weir_core.wire.engine import EngineConfig, local_path, locate
from weir_engine.fetch import CHOICES_FILE, fetch
from weir_engine.hub import download
from weir_engine.transfer import Interrupted

MODEL = {
    "config.json": b'{"model_type": "bert"}',
    "modules.json": b"[]",
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "model.safetensors": b"weights" * 1000,
    "pytorch_model.bin": b"the same, pickled",
    "original/consolidated.00.pth": b"the same again",
    "README.md": b"words",
}
NEEDED = ("config.json", "modules.json", "1_Pooling/config.json", "model.safetensors")
ADAPTERS = {
    "README.md": b"words",
    "sql/adapter_config.json": b"{}",
    "sql/adapter_model.safetensors": b"sql",
    "fr/adapter_config.json": b"{}",
    "fr/adapter_model.safetensors": b"french",
}
INDEX = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
SHARDED = {
    "config.json": b"{}",
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "model-1.safetensors": b"one",
    "model-2.safetensors": b"two",
    "model.safetensors": b"both",
}
CODED = {
    "config.json": b'{"auto_map": {"AutoConfig": "org/code--module.Config"}}',
    "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["org/code--tokens.Slow", null]}}',
    "processor_config.json": b'{"auto_map": {"AutoProcessor": "module.Own"}}',
    "model.safetensors": b"weights",
}
CODE = {"module.py": b"class Config: ...", "tokens.py": b"", "model.safetensors": b"others"}
REPOSITORIES = {
    **{"org/model": MODEL, "org/adapters": ADAPTERS, "org/sharded": SHARDED},
    **{"org/coded": CODED, "org/code": CODE},
}


def run(hub: Hub, directory: Path, uri: str = "hf://org/model", load_format: str = "auto") -> Path:
    directory.mkdir(exist_ok=True)
    with serving(hub) as url:
        return download(
            locate(Source(uri=uri)), directory, {"HF_ENDPOINT": url}, load_format=load_format
        )


def model_files(directory: Path) -> set[str]:
    return set(found(directory)) - {CHOICES_FILE}


def found(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_brings_what_an_engine_reads_and_nothing_else(tmp_path: Path) -> None:
    home = run(Hub(REPOSITORIES), tmp_path / "model")
    assert found(home) == {name: MODEL[name] for name in NEEDED}


def test_a_folder_of_a_repository_is_a_model(tmp_path: Path) -> None:
    hub = Hub(REPOSITORIES)
    home = run(hub, tmp_path / "model", "hf://org/adapters/sql")
    assert found(home) == {"adapter_config.json": b"{}", "adapter_model.safetensors": b"sql"}
    assert all(name.startswith("sql/") for name in hub.files_sent())


def test_of_two_copies_in_safetensors_the_one_that_the_index_names_is_fetched(
    tmp_path: Path,
) -> None:
    hub = Hub(REPOSITORIES)
    home = run(hub, tmp_path / "model", "hf://org/sharded")
    assert set(found(home)) == set(SHARDED) - {"model.safetensors"}
    assert len(hub.files_sent()) == len(set(hub.files_sent()))


def test_a_tokenizer_comes_without_weights(tmp_path: Path) -> None:
    home = run(Hub(REPOSITORIES), tmp_path / "model", load_format="none")
    assert set(found(home)) == set(NEEDED) - {"model.safetensors"}


def test_asks_for_the_revision_once_and_then_for_its_commit(tmp_path: Path) -> None:
    hub = Hub(REPOSITORIES)
    run(hub, tmp_path / "model", "hf://org/model@v1.0")
    named = [one.path for one in hub.asked if "v1.0" in one.path]
    assert [path.partition("?")[0] for path in named] == ["/api/models/org/model/revision/v1.0"]


def test_a_second_fetch_asks_for_nothing_and_the_first_leaves_only_the_model(
    tmp_path: Path,
) -> None:
    hub = Hub(REPOSITORIES)
    source = Source(uri="hf://org/adapters/fr")
    config = EngineConfig(name="m", source=source)
    fetch_all(hub, tmp_path, config)
    asked = len(hub.asked)
    fetch_all(hub, tmp_path, config)
    home = Path(local_path(source, str(tmp_path)))
    assert len(hub.asked) == asked
    assert found(home)["adapter_model.safetensors"] == b"french"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [home.name]


def fetch_all(hub: Hub, models: Path, config: EngineConfig) -> None:
    with serving(hub) as url:
        fetch(
            {
                "WEIR_ENGINE_CONFIG": config.model_dump_json(),
                "WEIR_MODEL_DIR": str(models),
                "HF_ENDPOINT": url,
            }
        )


def test_brings_what_the_engines_arguments_name(tmp_path: Path) -> None:
    config = EngineConfig(
        name="m",
        source=Source(uri="pvc://claim/m"),
        args=("--tokenizer=org/model", "--spec-model=hf://org/adapters/sql"),
    )
    fetch_all(Hub(REPOSITORIES), tmp_path, config)
    _, tokenizer, draft = (Path(one.path) for one in config.directories(str(tmp_path)))
    assert model_files(tokenizer) == set(NEEDED) - {"model.safetensors"}
    assert found(draft)["adapter_model.safetensors"] == b"sql"


@pytest.mark.parametrize(
    ("args", "want"),
    [
        pytest.param(("--trust-remote-code",), {"module.py", "tokens.py"}, id="trusted"),
        pytest.param(("--trust-remote-code", "--no-trust-remote-code"), set(), id="not trusted"),
        pytest.param((), set(), id="not mentioned"),
    ],
)
def test_brings_the_code_of_another_repository_if_it_is_trusted(
    tmp_path: Path, args: tuple[str, ...], want: set[str]
) -> None:
    config = EngineConfig(name="m", source=Source(uri="hf://org/coded"), args=args)
    first, second = Hub(REPOSITORIES), Hub(REPOSITORIES)
    fetch_all(first, tmp_path, config)
    fetch_all(second, tmp_path, config)
    assert {path.name for path in (tmp_path / "hub-cache").rglob("*.py")} == want
    assert second.asked == []


def test_what_an_older_rule_chose_is_completed(tmp_path: Path) -> None:
    config = EngineConfig(name="m", source=Source(uri="hf://org/model"))
    home = Path(local_path(config.source, str(tmp_path)))
    home.mkdir()
    for name in ("config.json", "model.safetensors"):
        (home / name).write_bytes(MODEL[name])
    gone = Hub(REPOSITORIES, {"/api/models": (404, "RepoNotFound")})
    fetch_all(gone, tmp_path, config)
    assert set(found(home)) == {"config.json", "model.safetensors"}
    fetch_all(Hub(REPOSITORIES), tmp_path, config)
    assert model_files(home) == set(NEEDED)
    again = Hub(REPOSITORIES)
    fetch_all(again, tmp_path, config)
    assert again.asked == []


def test_another_load_format_brings_its_weights_beside_the_others(tmp_path: Path) -> None:
    config = EngineConfig(name="m", source=Source(uri="hf://org/model"))
    pickled = config.model_copy(update={"args": ("--load-format", "npcache")})
    home = Path(local_path(config.source, str(tmp_path)))
    fetch_all(Hub(REPOSITORIES), tmp_path, config)
    fetch_all(Hub(REPOSITORIES), tmp_path, pickled)
    assert set(found(home)) >= {"model.safetensors", "pytorch_model.bin"}
    again = Hub(REPOSITORIES)
    for one in (config, pickled):
        fetch_all(again, tmp_path, one)
    assert again.asked == []


def test_goes_on_after_the_files_that_an_interrupted_download_brought(tmp_path: Path) -> None:
    broken = Hub(REPOSITORIES, {"/resolve/.*/model.safetensors": (404, "EntryNotFound")})
    with pytest.raises(Interrupted, match="the hub answered 404"):
        run(broken, tmp_path / "model")
    again = Hub(REPOSITORIES)
    assert set(found(run(again, tmp_path / "model"))) == set(NEEDED)
    assert again.files_sent() == ["model.safetensors"]


def test_what_a_killed_download_left_of_a_file_takes_no_room(tmp_path: Path) -> None:
    half = tmp_path / "model/.cache/huggingface/download/half.incomplete"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    with pytest.raises(Interrupted):
        run(Hub(REPOSITORIES, {"/resolve/": (404, "EntryNotFound")}), tmp_path / "model")
    assert not half.exists()


def test_what_there_is_is_not_taken_for_the_whole_when_the_hub_fails(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_bytes(MODEL["config.json"])
    failing = Hub(REPOSITORIES, {"/tree/": (404, "EntryNotFound")})
    with pytest.raises(Interrupted, match="is not whole"):
        run(failing, tmp_path / "model")


@pytest.mark.parametrize(
    ("refused", "want"),
    [
        pytest.param((404, "RepoNotFound"), "no such model, or it is private", id="missing"),
        pytest.param((403, "GatedRepo"), "accept its terms", id="gated"),
        pytest.param((404, "RevisionNotFound"), "no revision v9", id="revision"),
        pytest.param((403, ""), "refuses HF_TOKEN", id="forbidden"),
    ],
)
def test_says_what_to_do(tmp_path: Path, refused: tuple[int, str], want: str) -> None:
    with pytest.raises(ModelUnavailable, match=rf"hf://org/model: .*{want}"):
        run(Hub(REPOSITORIES, {"/api/models": refused}), tmp_path / "model", "hf://org/model@v9")


def test_a_gated_file_says_what_to_do(tmp_path: Path) -> None:
    gated = Hub(REPOSITORIES, {"/resolve/": (403, "GatedRepo")})
    with pytest.raises(ModelUnavailable, match=r"hf://org/model: .*accept its terms"):
        run(gated, tmp_path / "model")


@pytest.mark.parametrize(
    ("uri", "load_format", "want"),
    [
        pytest.param("hf://org/adapters/none", "auto", "has no such folder", id="no folder"),
        pytest.param("hf://org/model", "pt", "holds no weights .*--load-format pt", id="no pt"),
    ],
)
def test_a_repository_without_what_is_asked_for_is_named(
    tmp_path: Path, uri: str, load_format: str, want: str
) -> None:
    with pytest.raises(ModelUnavailable, match=rf"{uri}: .*{want}"):
        run(Hub(REPOSITORIES), tmp_path / "model", uri, load_format)


def test_a_hub_in_trouble_is_tried_again_later(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="the hub answered 500"):
        run(Hub(REPOSITORIES, {"/api/models": (500, "")}), tmp_path / "model")


def test_a_hub_that_is_not_there_is_tried_again_later(tmp_path: Path) -> None:
    with serving(Hub(REPOSITORIES)) as url:
        pass
    with pytest.raises(Interrupted, match="cannot be reached"):
        download(locate(Source(uri="hf://org/model")), tmp_path, {"HF_ENDPOINT": url})


def fetched_with(home: Path, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `weir-engine fetch` in an environment of its own; the hub's client reads it at import."""
    config = EngineConfig(name="m", source=Source(uri="hf://org/model"))
    inherited = {
        name: text for name, text in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
    }
    return subprocess.run(
        [sys.executable, "-m", "weir_engine", "fetch"],
        env=inherited
        | {"WEIR_ENGINE_CONFIG": config.model_dump_json(), "WEIR_MODEL_DIR": str(home / "models")}
        | {"HOME": str(home), "HF_ENDPOINT": url, **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def shown_tokens(hub: Hub) -> set[str | None]:
    return {one.headers.get("authorization") for one in hub.asked if "org/model" in one.path}


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_shows_the_token_under_each_of_its_names_and_never_tells_it(
    tmp_path: Path,
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv(variable, "hf_secret")
    hub = Hub(REPOSITORIES)
    fetch_all(hub, tmp_path, EngineConfig(name="m", source=Source(uri="hf://org/model")))
    assert shown_tokens(hub) == {"Bearer hf_secret"}
    assert "hf_secret" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("variable", "value", "want"),
    [
        pytest.param("HF_TOKEN_PATH", "{home}/mounted", "Bearer hf_secret", id="HF_TOKEN_PATH"),
        pytest.param("HF_HOME", "{home}/hf", "Bearer hf_secret", id="token file"),
        pytest.param("HF_HOME", "{home}/other", None, id="no token"),
    ],
)
def test_shows_the_token_of_a_file(
    tmp_path: Path, variable: str, value: str, want: str | None
) -> None:
    (tmp_path / "mounted").write_text("hf_secret\n")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/token").write_text("hf_secret\n")
    hub = Hub(REPOSITORIES)
    with serving(hub) as url:
        done = fetched_with(tmp_path, url, **{variable: value.format(home=tmp_path)})
    assert done.returncode == 0, done.stderr
    assert shown_tokens(hub) == {want}
    assert "hf_secret" not in done.stderr


def test_offline_nothing_can_be_fetched(tmp_path: Path) -> None:
    done = fetched_with(tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set" in done.stderr
    assert "gave up" not in done.stderr


def test_a_revision_has_a_directory_of_its_own() -> None:
    first, second = (Source(uri=f"hf://org/model@{name}") for name in ("v1", "v2"))
    assert local_path(first) != local_path(second)
