"""The commands' edges: help, versions, refusals and their exit codes."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

SERVICE = """\
apiVersion: serving.weir.dev/v1alpha1
kind: InferenceService
metadata: {name: chat}
spec:
  model: {name: tiny, source: {uri: "tiny://"}}
  pools: [{name: cpu, accelerator: {count: 0}}]
"""


def weir(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weir_cli", *arguments],
        env={"WEIR_CACHE": str(cache), "CUDA_VISIBLE_DEVICES": "", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def written(folder: Path, text: str) -> str:
    path = folder / "weir.yaml"
    path.write_text(text)
    return str(path)


def test_prints_its_version(tmp_path: Path) -> None:
    assert weir(tmp_path, "--version").stdout == f"weir {version('weir-serving')}\n"


def test_help_names_every_command(tmp_path: Path) -> None:
    shown = weir(tmp_path, "--help").stdout
    assert all(command in shown for command in ("up", "status", "down", "render"))


def test_status_of_nothing_is_3_and_down_of_nothing_is_fine(tmp_path: Path) -> None:
    status = weir(tmp_path, "status")
    assert (status.returncode, status.stdout) == (
        3,
        "nothing runs; start something with: weir up FILE\n",
    )
    down = weir(tmp_path, "down")
    assert (down.returncode, down.stdout) == (0, "nothing runs\n")


def test_render_prints_a_deployment(tmp_path: Path) -> None:
    rendered = weir(tmp_path, "render", written(tmp_path, SERVICE))
    assert rendered.returncode == 0
    assert "kind: Deployment" in rendered.stdout


@pytest.mark.parametrize(
    ("text", "arguments", "code", "message"),
    [
        pytest.param("kind: Pod", [], 2, "'Pod' is not a kind Weir knows", id="unknown kind"),
        pytest.param("# empty", [], 2, "declare no InferenceService", id="nothing to serve"),
        pytest.param(
            SERVICE.replace("{count: 0}", "{count: 1}"),
            [],
            1,
            "serve on the CPU with `accelerator: {count: 0}`",
            id="a GPU that is not there",
        ),
        pytest.param(
            SERVICE.replace("tiny://", "pvc://claim/path"), [], 1, "use file:///PATH", id="a claim"
        ),
        pytest.param(
            SERVICE.replace("tiny://", "file:///no/such/dir"),
            ["--port", "18973"],
            1,
            "file:///no/such/dir is not a directory on this machine",
            id="weights that are not there",
        ),
        pytest.param(
            SERVICE.replace("cpu,", "cpu, replicas: 1,"),
            ["--replicas", "2"],
            2,
            "--replicas: every pool of chat sets its own number",
            id="no open pool for --replicas",
        ),
    ],
)
def test_up_refuses_before_it_starts_anything(
    text: str, arguments: list[str], code: int, message: str, tmp_path: Path
) -> None:
    refused = weir(tmp_path, "up", written(tmp_path, text), *arguments)
    assert refused.returncode == code
    assert refused.stdout == ""
    assert refused.stderr.startswith("weir: ")
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert weir(tmp_path, "status").returncode == 3
