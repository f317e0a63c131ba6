"""`weir usage`: what it counts of access logs, what it passes over, and what it says."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

from weir_cli.__main__ import app
from weir_cli.usage import Sums, columns_of, since_of
from weir_core.errors import InvalidSpec
from weir_core.wire.access import AccessLine

HOUR_S = 3600.0


def line(**fields: Any) -> bytes:
    known: dict[str, Any] = {
        "time": "2026-11-30T06:00:00.000+00:00",
        "service": "chat",
        "pool": "big",
        "replica": "r1",
        "executed_by": "r1",
        "tenant": "red",
        "class_name": "batch",
        "model": "tiny",
        "exact": True,
    }
    return msgspec.json.encode(AccessLine(**(known | fields))) + b"\n"


def test_a_forwarded_request_counts_once_with_the_tokens_of_the_sidecar_that_executed_it() -> None:
    sums = Sums(("tenant",), None, {("chat", "big"): 4.0})
    sums.add(line(replica="gateway"))
    sums.add(line(forwarded=True, prompt_tokens=7, cached_tokens=4, output_tokens=3, engine_s=1800))
    used = sums.groups["red",]
    assert (used.requests, used.prompt_tokens, used.cached_tokens, used.output_tokens) == (
        *(1, 7, 4, 3),
    )
    assert (used.engine_s, used.cost) == (1800.0, 2.0)


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        pytest.param(b"INFO engine: a text line\n", 0, id="text"),
        pytest.param(b'{"event":"listening","api":8000}\n', 0, id="another event"),
        pytest.param(b'{"event":"x","words":"access"}\n', 0, id="a word of another event"),
        pytest.param(line()[:60] + b'"access"', 1, id="cut off"),
        pytest.param(b'{"event":"access"}\n', 1, id="no time"),
        pytest.param(b'{"event":"access","time":"yesterday"}\n', 1, id="no such time"),
        pytest.param(b'{"event":"access","time":"2026-11-30","status":"ok"}\n', 1, id="a type"),
        pytest.param(b"", 0, id="nothing"),
    ],
)
def test_what_is_no_access_line_is_passed_over_and_a_bad_one_is_counted(
    text: bytes, bad: int
) -> None:
    sums = Sums(("tenant",), None, {})
    sums.add(text)
    assert (sums.groups, sums.bad) == ({}, bad)


def test_a_line_counts_behind_the_prefix_of_kubectl_and_with_fields_in_any_order() -> None:
    sums = Sums(("tenant", "pool"), None, {})
    sums.add(b"[pod/chat-0/sidecar] " + line())
    sums.add(b'{"tenant": "red", "time": "2026-11-30T06:00:00", "event": "access", "pool": "big"}')
    assert sums.groups["red", "big"].requests == 2


def test_since_leaves_out_what_ended_earlier() -> None:
    now = datetime(2026, 11, 30, 7, tzinfo=UTC)
    sums = Sums(("tenant",), since_of("1h", now), {})
    sums.add(line(time="2026-11-30T05:59:59.999+00:00", tenant="old"))
    sums.add(line(time="2026-11-30T06:00:00.000+00:00"))
    assert list(sums.groups) == [("red",)]


@pytest.mark.parametrize("by", ["", "key", "tenant,tenant", "tenant,"])
def test_columns_that_do_not_exist_are_refused(by: str) -> None:
    with pytest.raises(InvalidSpec, match="--by"):
        columns_of(by)


def test_a_time_that_is_no_duration_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="--since"):
        since_of("yesterday", datetime.now(UTC))


def test_the_command_prints_sums_with_the_cost_of_the_spec(tmp_path: Path) -> None:
    spec = tmp_path / "chat.yaml"
    spec.write_text(
        "apiVersion: serving.weir.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: chat}\n"
        "spec:\n  model: {name: tiny, source: {uri: hf://o/m}}\n  pools: [{name: big, cost: 3}]\n"
    )
    log = tmp_path / "sidecar.log"
    log.write_bytes(
        line(engine_s=HOUR_S, output_tokens=5)
        + line(tenant="blue", engine_s=HOUR_S, exact=False)
        + line()[:-9]
    )
    command = ["usage", "--spec", str(spec), str(log)]
    table = CliRunner().invoke(app, command)
    assert table.exit_code == 0, table.output
    assert [row.split() for row in table.stdout.splitlines()[1:4]] == [
        ["blue", "batch", "tiny", "1", "0", "0", "0", "0.0", "3600.000", "50.0%", "3.0000"],
        ["red", "batch", "tiny", "1", "0", "0", "5", "0.0", "3600.000", "50.0%", "3.0000"],
        ["TOTAL", "2", "0", "0", "5", "0.0", "7200.000", "100.0%", "6.0000"],
    ]
    assert "not all the engine's own figures: 1" in table.stdout
    assert "could not be read, and do not count: 1" in table.stdout
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert found["total"]["cost"] == 6.0
    assert found["bad_lines"] == 1


def test_the_command_reads_standard_input() -> None:
    found = CliRunner().invoke(app, ["usage", "--json", "-"], input=line(prompt_tokens=3))
    assert json.loads(found.stdout)["total"]["prompt_tokens"] == 3


def test_without_lines_the_command_says_how_to_get_some() -> None:
    found = CliRunner().invoke(app, ["usage", "-"], input=b"")
    shown = found.stdout[found.stdout.index("spec:") : found.stdout.index("\nand start")]
    (sidecar,) = yaml.safe_load(shown)["spec"]["podTemplate"]["spec"]["initContainers"]
    assert sidecar == {"name": "sidecar", "env": [{"name": "WEIR_ACCESS_LOG", "value": "1"}]}


def test_lines_that_are_all_too_old_are_no_reason_to_switch_the_log_on() -> None:
    found = CliRunner().invoke(app, ["usage", "--since", "1m", "-"], input=line())
    assert found.stdout == "no request since then; before it: 1 lines\n"


def test_a_name_of_a_model_commands_no_terminal(tmp_path: Path) -> None:
    log = tmp_path / "sidecar.log"
    log.write_bytes(line(model="\x1b[2J\x9bm"))
    shown = CliRunner().invoke(app, ["usage", "--by", "model", str(log)])
    assert shown.exit_code == 0
    assert "�[2J�m" in shown.stdout
