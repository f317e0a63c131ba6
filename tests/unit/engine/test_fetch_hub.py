"""hf:// sources against a hub on the loopback that speaks as much of its API as is needed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.unit.engine.local_http import Answer, Asked, serving
from weir_core.api.model import Source
from weir_core.errors import ModelUnavailable
from weir_core.wire.engine import local_path, locate
from weir_engine.hub import download, wanted
from weir_engine.transfer import Interrupted

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights" * 1000,
    "pytorch_model.bin": b"the same, pickled",
    "original/consolidated.pth": b"the same again",
    "README.md": b"words",
}


class Hub:
    """Answers the model's page and its files."""

    def __init__(self, status: int = 200, error_code: str = "") -> None:
        self.status = status
        self.error_code = error_code
        self.asked: list[Asked] = []

    def __call__(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if self.status != 200:
            return Answer(self.status, b"{}", {"x-error-code": self.error_code})
        if asked.path.startswith("/api/models/org/model"):
            siblings = [{"rfilename": name, "size": len(body)} for name, body in FILES.items()]
            document = {"id": "org/model", "sha": COMMIT, "siblings": siblings, "tags": []}
            return Answer(200, json.dumps(document).encode(), {"content-type": "application/json"})
        name = asked.path.removeprefix(f"/org/model/resolve/{COMMIT}/")
        etag = hashlib.sha256(FILES[name]).hexdigest()
        return Answer(200, FILES[name], {"x-repo-commit": COMMIT, "etag": f'"{etag}"'})


def run(hub: Hub, directory: Path, uri: str = "hf://org/model", **environment: str) -> None:
    directory.mkdir(exist_ok=True)
    with serving(hub) as url:
        download(locate(Source(uri=uri)), directory, {"HF_ENDPOINT": url, **environment})


def test_brings_what_an_engine_needs_and_nothing_else(tmp_path: Path) -> None:
    run(Hub(), tmp_path / "model")
    written = {
        str(path.relative_to(tmp_path / "model")): path.read_bytes()
        for path in (tmp_path / "model").rglob("*")
        if path.is_file()
    }
    assert written == {name: FILES[name] for name in ("config.json", "model.safetensors")}


@pytest.mark.parametrize(("token", "want"), [("hf_secret", "Bearer hf_secret"), ("", None)])
def test_shows_the_token_of_the_secret_or_none(
    tmp_path: Path, token: str, want: str | None
) -> None:
    hub = Hub()
    run(hub, tmp_path / "model", HF_TOKEN=token)
    assert {one.headers.get("authorization") for one in hub.asked} == {want}


def test_asks_for_the_revision(tmp_path: Path) -> None:
    hub = Hub()
    run(hub, tmp_path / "model", "hf://org/model@v1.0")
    assert "/revision/v1.0" in hub.asked[0].path


@pytest.mark.parametrize(
    ("hub", "want"),
    [
        pytest.param(Hub(404, "RepoNotFound"), "no such model, or it is private", id="missing"),
        pytest.param(Hub(403, "GatedRepo"), "accept its terms", id="gated"),
        pytest.param(Hub(404, "RevisionNotFound"), "no revision v9", id="revision"),
        pytest.param(Hub(403), "refuses HF_TOKEN", id="forbidden"),
    ],
)
def test_says_what_to_do(tmp_path: Path, hub: Hub, want: str) -> None:
    with pytest.raises(ModelUnavailable, match=rf"hf://org/model: .*{want}") as caught:
        run(hub, tmp_path / "model", "hf://org/model@v9", HF_TOKEN="hf_secret")
    assert "hf_secret" not in str(caught.value)


def test_a_hub_in_trouble_is_tried_again_later(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="the hub"):
        run(Hub(500), tmp_path / "model")


def test_a_hub_that_is_not_there_is_tried_again_later(tmp_path: Path) -> None:
    with serving(Hub()) as url:
        pass
    with pytest.raises(Interrupted, match="cannot be reached"):
        download(locate(Source(uri="hf://org/model")), tmp_path, {"HF_ENDPOINT": url})


@pytest.mark.parametrize(
    ("names", "want"),
    [
        pytest.param(
            ["a.safetensors", "b.bin", "config.json", "x.gguf"],
            ["a.safetensors", "config.json"],
            id="safetensors over pickles",
        ),
        pytest.param(["b.bin", "tokenizer.model"], ["b.bin", "tokenizer.model"], id="only pickles"),
        pytest.param(["config.json", "README.md"], [], id="no weights"),
        pytest.param(["original/a.safetensors"], [], id="weights elsewhere"),
    ],
)
def test_chooses_files(names: list[str], want: list[str]) -> None:
    assert wanted(names) == want


def test_a_revision_has_a_directory_of_its_own() -> None:
    first, second = (Source(uri=f"hf://org/model@{name}") for name in ("v1", "v2"))
    assert local_path(first) != local_path(second)
