"""The three commands as a pod runs them: exit codes, one clear line, no surprises."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from weir_core.errors import ModelUnavailable
from weir_core.wire.engine import EngineConfig
from weir_engine.transfer import RETRY_DELAYS_S, Interrupted, check_room, progress, retry

TINY = {"name": "tiny", "source": {"uri": "tiny://"}}


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="weir-") as directory:
        yield Path(directory)


def weir_engine(
    command: str, run_dir: Path, config: object | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    settings = {"WEIR_RUN_DIR": str(run_dir), "WEIR_MODEL_DIR": str(run_dir / "models")}
    if config is not None:
        settings["WEIR_ENGINE_CONFIG"] = json.dumps(config)
    return subprocess.run(
        [sys.executable, "-m", "weir_engine", command],
        env=os.environ | settings | environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "want"),
    [
        pytest.param(None, "WEIR_ENGINE_CONFIG: is not set", id="no configuration"),
        pytest.param(
            {"name": "x", "source": {"uri": "ftp://x"}},
            "WEIR_ENGINE_CONFIG.source.uri: ",
            id="a uri of no kind",
        ),
        pytest.param(
            TINY | {"args": ["--uds", "/x"]}, "--uds is reserved for Weir", id="reserved argument"
        ),
        pytest.param(
            {"name": "x", "source": {"uri": "pvc:///x"}}, "names no bucket or claim", id="no claim"
        ),
    ],
)
def test_serve_refuses_a_bad_configuration_with_one_line(
    run_dir: Path, config: object | None, want: str
) -> None:
    done = weir_engine("serve", run_dir, config)
    assert done.returncode == 2
    assert want in done.stderr
    assert done.stderr.count("\n") == 1


def test_serve_says_that_the_weights_are_missing(run_dir: Path) -> None:
    done = weir_engine("serve", run_dir, TINY)
    assert done.returncode == 1
    assert "tiny://: nothing at" in done.stderr
    assert "run `weir-engine fetch` first" in done.stderr


@pytest.mark.parametrize(
    ("uri", "want"),
    [
        pytest.param("oci://host/model:1", "mounts an OCI artifact as an empty", id="artifact"),
        pytest.param("pvc://claim", "is it the right one?", id="claim"),
    ],
)
def test_serve_says_that_a_volume_is_empty(run_dir: Path, uri: str, want: str) -> None:
    config = {"name": "x", "source": {"uri": uri}}
    Path(EngineConfig.model_validate(config).directories(str(run_dir / "models"))[0].path).mkdir(
        parents=True
    )
    done = weir_engine("serve", run_dir, config)
    assert done.returncode == 1
    assert f"{uri}: the volume at " in done.stderr
    assert want in done.stderr


def test_serve_says_where_the_code_of_a_mounted_model_is_missing(run_dir: Path) -> None:
    config = {
        "name": "x",
        "source": {"uri": "pvc://claim"},
        "args": ["--trust-remote-code"],
    }
    model = Path(EngineConfig.model_validate(config).directories(str(run_dir / "models"))[0].path)
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"auto_map": {"AutoConfig": "org/code--module.Config"}}')
    done = weir_engine("serve", run_dir, config)
    assert done.returncode == 1
    assert "code is in another repository, org/code, which is not here; copy its" in done.stderr


def test_serve_refuses_a_draft_in_the_place_of_the_model(run_dir: Path) -> None:
    config = {"name": "x", "source": {"uri": "hf://org/draft"}}
    model = Path(EngineConfig.model_validate(config).directories(str(run_dir / "models"))[0].path)
    model.mkdir(parents=True)
    (model / "config.json").write_text(
        '{"speculators_config": {"verifier": {"name_or_path": "org/big"}}}'
    )
    done = weir_engine("serve", run_dir, config)
    assert done.returncode == 2
    assert "hf://org/draft is a draft model of org/big; write hf://org/big here" in done.stderr


def test_serve_leaves_a_living_engine_alone(run_dir: Path) -> None:
    (run_dir / "models/tiny").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(run_dir / "engine.sock"))
        living.listen()
        done = weir_engine("serve", run_dir, TINY)
    assert done.returncode == 2
    assert "another engine answers" in done.stderr


def test_serve_refuses_a_path_no_socket_can_have(run_dir: Path) -> None:
    long = run_dir / ("x" * 120)
    (long / "models/tiny").mkdir(parents=True)
    done = weir_engine("serve", long, TINY)
    assert done.returncode == 2
    assert "choose a shorter WEIR_RUN_DIR" in done.stderr


def test_fetch_makes_the_tiny_model_once(run_dir: Path) -> None:
    first, second = (weir_engine("fetch", run_dir, TINY) for _ in range(2))
    assert first.returncode == second.returncode == 0
    assert "made at" in first.stderr
    assert "found at" in second.stderr


def test_fetch_leaves_volumes_alone(run_dir: Path) -> None:
    done = weir_engine("fetch", run_dir, {"name": "x", "source": {"uri": "pvc://claim/x"}})
    assert done.returncode == 0
    assert "nothing to fetch" in done.stderr


def test_fetch_names_a_directory_it_may_not_write_to(run_dir: Path) -> None:
    (run_dir / "models").write_text("a file in its place")
    done = weir_engine("fetch", run_dir, TINY)
    assert done.returncode == 1
    assert str(run_dir / "models") in done.stderr


def test_an_unknown_command_gets_the_usage(run_dir: Path) -> None:
    done = weir_engine("dance", run_dir)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: weir-engine")


@pytest.mark.parametrize(
    ("status", "want"),
    [("200 OK", "drained"), ("503 Service Unavailable", "the sidecar answered 503")],
)
def test_drain_waits_for_the_sidecars_answer(run_dir: Path, status: str, want: str) -> None:
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as sidecar:
        sidecar.bind(str(run_dir / "admin.sock"))
        sidecar.listen()
        sidecar.settimeout(30)

        def answer() -> None:
            connection, _ = sidecar.accept()
            with connection:
                asked.append(connection.recv(4096))
                connection.sendall(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())

        thread = threading.Thread(target=answer)
        thread.start()
        done = weir_engine("drain", run_dir)
        thread.join(timeout=30)
    assert asked[0].startswith(b"POST /drain ")
    assert done.returncode == 0
    assert want in done.stderr


def test_drain_gives_up_when_the_grace_period_is_over(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(run_dir / "admin.sock"))
        silent.listen()
        done = weir_engine("drain", run_dir, WEIR_GRACE_PERIOD_S="1")
    assert done.returncode == 0
    assert "still running when the grace period was over" in done.stderr


def test_drain_without_a_sidecar_has_nothing_to_wait_for(run_dir: Path) -> None:
    done = weir_engine("drain", run_dir)
    assert done.returncode == 0
    assert "nothing to wait for" in done.stderr


@pytest.mark.parametrize("command", ["drain", "alive"])
def test_what_the_kubelet_runs_in_a_pod_loads_nothing_heavy(command: str) -> None:
    script = f"import sys, weir_engine.__main__, weir_engine.{command}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert not {"pydantic", "asyncio", "numpy"} & set(done.stdout.split())


def test_an_interrupted_download_is_tried_a_few_times() -> None:
    pauses: list[float] = []

    def always() -> Path:
        raise Interrupted("the line is dead")

    with pytest.raises(
        ModelUnavailable, match="hf://x: gave up after 4 attempts: the line is dead"
    ):
        retry("hf://x", always, pauses.append)
    assert pauses == list(RETRY_DELAYS_S)


def test_a_download_that_recovers_is_fine(tmp_path: Path) -> None:
    attempts: list[int] = []

    def once() -> Path:
        attempts.append(1)
        if len(attempts) == 1:
            raise Interrupted("a hiccup")
        return tmp_path

    assert retry("hf://x", once, lambda _: None) == tmp_path
    assert len(attempts) == 2


def test_a_long_download_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "half").write_bytes(b"x" * 2**20)
    said = ""
    with progress("hf://x", tmp_path, 2**21, period_s=0.01):
        deadline = time.monotonic() + 30
        while "of" not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
    assert "weir-engine: hf://x: 1.0 of 2.0 MiB\n" in said


def test_weights_that_cannot_fit_are_refused_before_the_disk_is_full(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"GiB of weights do not fit into .* more space"):
        check_room(tmp_path, 2**60)
