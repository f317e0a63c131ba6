"""The commands' edges: help, versions, refusals and their exit codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from weir_cli.__main__ import main
from weir_cli.records import Instance

SERVICE = """\
apiVersion: serving.weir.dev/v1alpha1
kind: InferenceService
metadata: {name: chat}
spec:
  model: {name: tiny, source: {uri: "tiny://"}}
  pools: [{name: cpu, accelerator: {count: 0}}]
"""


@dataclass(frozen=True)
class Ran:
    """What a command printed, and its exit code."""

    code: object
    stdout: str
    stderr: str


Weir = Callable[..., Ran]


@pytest.fixture
def weir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Weir:
    """Return a function that runs one command on a machine without a GPU."""
    monkeypatch.setenv("WEIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        out, err = capsys.readouterr()
        return Ran(left.value.code or 0, out, err)

    return run


def written(folder: Path, text: str) -> str:
    path = folder / "weir.yaml"
    path.write_text(text)
    return str(path)


def test_prints_its_version(weir: Weir) -> None:
    assert weir("--version").stdout == f"weir {version('weir-serving')}\n"


def test_help_names_every_command(weir: Weir) -> None:
    shown = weir("--help").stdout
    assert all(
        command in shown
        for command in ("up", "status", "top", "explain", "down", "init", "check", "render")
    )


def test_status_of_nothing_is_3_and_down_of_nothing_is_fine(weir: Weir) -> None:
    status = weir("status")
    assert (status.code, status.stdout) == (
        3,
        "nothing runs; start something with: weir up FILE\n",
    )
    down = weir("down")
    assert (down.code, down.stdout) == (0, "nothing runs\n")


def test_render_prints_a_deployment(weir: Weir, tmp_path: Path) -> None:
    rendered = weir("render", written(tmp_path, SERVICE))
    assert rendered.code == 0
    assert "kind: Deployment" in rendered.stdout
    assert "name: chat-policies" in rendered.stdout
    assert rendered.stderr == ""


def test_render_says_what_only_a_cluster_can_have(weir: Weir, tmp_path: Path) -> None:
    text = SERVICE + "  admission: {defaultClass: gold}\n"
    rendered = weir("render", written(tmp_path, text))
    assert rendered.code == 0
    assert "by these files alone: InferenceService/chat: spec.admission.defaultClass" in (
        rendered.stderr
    )


@pytest.mark.parametrize(
    ("text", "arguments", "code", "message"),
    [
        pytest.param("kind: Pod", [], 2, "'Pod' is not a kind Weir knows", id="unknown kind"),
        pytest.param("# empty", [], 2, "no InferenceService in it", id="nothing to serve"),
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
    text: str, arguments: list[str], code: int, message: str, weir: Weir, tmp_path: Path
) -> None:
    refused = weir("up", written(tmp_path, text), *arguments)
    assert refused.code == code
    assert refused.stdout == ""
    assert refused.stderr.startswith("weir: ")
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert weir("status").code == 3


def test_a_folder_that_cannot_be_made_is_one_line(weir: Weir, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    refused = weir("up", written(tmp_path, SERVICE))
    assert refused.code == 1
    assert refused.stderr == f"weir: [Errno 20] Not a directory: '{tmp_path}/cache/up/8000'\n"


@pytest.mark.parametrize("how", [[], ["--detach"]], ids=["in front", "in the background"])
def test_a_second_up_of_a_port_is_refused_and_leaves_the_firsts_output(
    how: list[str], weir: Weir, tmp_path: Path
) -> None:
    first = Instance(tmp_path / "cache", 18973)
    with first.held():
        output = first.directory / "up.log"
        output.write_text("the first one's\n")
        refused = weir("up", written(tmp_path, SERVICE), "--port", "18973", *how)
        assert output.read_text() == "the first one's\n"
    assert refused.code == 1
    assert "`weir up` already runs for port 18973; see `weir status`" in refused.stderr
