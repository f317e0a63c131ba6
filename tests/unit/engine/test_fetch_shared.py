"""A model directory that several processes share: one fetches, and what it leaves is used."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.engine.local_http import Answer, Asked, serving
from tests.unit.engine.local_hub import Hub
from weir_core.api.model import Source
from weir_core.errors import ModelUnavailable
from weir_core.wire.engine import EngineConfig, local_path
from weir_engine.fetch import CHOICES_FILE, fetch

LIMIT_S = 60
MODEL = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": b"weights" * 1000,
}
CONFIG = EngineConfig(name="m", source=Source(uri="hf://org/model@v1"))


class SlowHub:
    """A hub that keeps the weights back until it is told to give them."""

    def __init__(self) -> None:
        self.hub = Hub({"org/model": MODEL})
        self.asked_for_weights = threading.Event()
        self.gives = threading.Event()

    def __call__(self, asked: Asked) -> Answer:
        if asked.method == "GET" and asked.path.endswith("/model.safetensors"):
            self.asked_for_weights.set()
            assert self.gives.wait(LIMIT_S)
        return self.hub(asked)


def environment(models: Path, url: str, config: EngineConfig = CONFIG) -> Mapping[str, str]:
    return {
        "WEIR_ENGINE_CONFIG": config.model_dump_json(),
        "WEIR_MODEL_DIR": str(models),
        "HF_ENDPOINT": url,
    }


@contextmanager
def fetching(models: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    """Run `weir-engine fetch`; end it if it has not ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "weir_engine", "fetch"],
        env={**os.environ, **environment(models, url)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=LIMIT_S)


def home(models: Path) -> Path:
    return Path(local_path(CONFIG.source, str(models)))


def files(directory: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in directory.iterdir()}
    del found[CHOICES_FILE]
    return found


def test_of_two_that_fetch_the_same_one_waits_and_one_that_is_killed_is_followed(
    tmp_path: Path,
) -> None:
    slow = SlowHub()
    with (
        serving(slow) as url,
        fetching(tmp_path, url) as first,
        fetching(tmp_path, url) as second,
    ):
        assert slow.asked_for_weights.wait(LIMIT_S)
        waiting, holder = (second, first) if _waits(second, first) else (first, second)
        holder.kill()
        holder.wait(LIMIT_S)
        slow.gives.set()
        assert waiting.wait(LIMIT_S) == 0
    assert files(home(tmp_path)) == MODEL
    assert {path.name for path in tmp_path.iterdir()} == {
        home(tmp_path).name,
        f"{home(tmp_path).name}.lock",
    }


def _waits(one: subprocess.Popen[str], other: subprocess.Popen[str]) -> bool:
    """Return whether the first of the two says that it waits; one of them does."""
    said: dict[int, str] = {}
    spoke = threading.Event()

    def listen(process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if "another process fetches it; waiting" in line:
                said[process.pid] = line
                spoke.set()

    for process in (one, other):
        threading.Thread(target=listen, args=(process,), daemon=True).start()
    assert spoke.wait(LIMIT_S)
    return one.pid in said


def test_a_second_service_with_the_same_source_asks_for_nothing(tmp_path: Path) -> None:
    hub = Hub({"org/model": MODEL})
    with serving(hub) as url:
        fetch(environment(tmp_path, url))
        asked = len(hub.asked)
        fetch(environment(tmp_path, url, CONFIG.model_copy(update={"name": "another"})))
        assert len(hub.asked) == asked
        other = CONFIG.model_copy(update={"source": Source(uri="hf://org/model@v2")})
        fetch(environment(tmp_path, url, other))
    assert files(home(tmp_path)) == files(Path(local_path(other.source, str(tmp_path)))) == MODEL


def test_the_lock_tells_when_a_model_was_last_asked_for(tmp_path: Path) -> None:
    with serving(Hub({"org/model": MODEL})) as url:
        fetch(environment(tmp_path, url))
        lock = home(tmp_path).with_name(f"{home(tmp_path).name}.lock")
        os.utime(lock, (0, 0))
        fetch(environment(tmp_path, url))
    assert lock.stat().st_mtime > 0


def test_one_that_was_killed_between_the_two_renames_is_followed(tmp_path: Path) -> None:
    model = home(tmp_path)
    old = model.with_name(f"{model.name}.replaced")
    for directory in (model, old):
        directory.mkdir()
        (directory / "config.json").write_bytes(b"{}")
    with serving(Hub({"org/model": MODEL})) as url:
        fetch(environment(tmp_path, url))
    assert "model.safetensors" in files(model)
    assert not old.exists()


def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(ModelUnavailable, match=r"locks no files \(No locks available\)"):
        fetch(environment(tmp_path, "http://127.0.0.1:9"))


def test_the_folder_of_what_engines_compile_is_made_by_the_user_that_fetches(
    tmp_path: Path,
) -> None:
    config = EngineConfig(name="m", source=Source(uri="tiny://"), compiled="compiled/0123")
    for _ in range(2):
        fetch(environment(tmp_path, "", config))
    assert (tmp_path / "compiled/0123").is_dir()
