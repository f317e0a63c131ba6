"""`weir simulate` on the command line: small runs, files, and what is wrong with options."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from weir_cli.simulate import app
from weir_core.wire.steps import Facts, Step
from weir_sim.profiles import PROFILES

TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"{second / 8},900,60\n" for second in range(160)
)


def weir(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_a_comparison_prints_each_class_of_each_system_at_each_load() -> None:
    done = weir(
        "compare", "--systems", "weir,fcfs", "--loads", "0.5,1", "--duration", "5",
        "--workers", "1", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["system"] for row in rows] == ["weir", "fcfs", "weir", "fcfs"]


def test_a_run_leaves_its_figures_in_the_report_directory(tmp_path: Path) -> None:
    done = weir("run", "--duration", "5", "--retries", "2", "--report", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    drawn = {"ttft.png", "tpot.png", "attainment.png"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == drawn | {"report.html"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(drawn)
    assert "weir/charts.js" in page


def test_a_capacity_question_is_one_command(tmp_path: Path) -> None:
    trace = tmp_path / "mine.csv"
    trace.write_text(TRACE)
    done = weir("capacity", "--trace", str(trace), "--speed", "3", "--attainment", "0.99")
    assert done.exit_code == 0, done.output
    assert "replicas reach 99%" in done.stdout


def test_a_trace_is_said_to_be_what_it_was_taken_for_and_what_is_not_counted(
    tmp_path: Path,
) -> None:
    trace = tmp_path / "mine"
    trace.write_text(f"{TRACE}9.5,900,0\n")
    done = weir("trace", "--trace", str(trace))
    assert done.exit_code == 0, done.output
    assert "mine: 160 requests in 19.875 s; arrivals are in s (recognised;" in done.stderr
    assert "left out: 1 rows, GeneratedTokens is not above 0 (first in line 162)" in done.stderr
    assert "not counted: those of the first 10% of the time" in done.stdout
    assert "(16)" in done.stdout


@pytest.mark.parametrize("command", ["fleet", "fleet-capacity"])
def test_a_fleets_trace_may_be_told_its_unit(command: str, tmp_path: Path) -> None:
    trace = tmp_path / "mine"
    trace.write_text(TRACE)
    done = weir(
        command, "--trace", str(trace), "--columns", "unit=s", "--routings", "weir",
        "--replicas", "2", "--duration", "2",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "; arrivals are in s\n" in done.stderr


def test_a_calibrated_profile_can_be_simulated(tmp_path: Path) -> None:
    log, facts, profile = tmp_path / "s.jsonl", tmp_path / "engine.json", tmp_path / "mine.json"
    step_s = PROFILES["h100-8b"].step_s
    log.write_bytes(
        b"\n".join(
            msgspec.json.encode(
                Step(n, step_s(n * 7 % 900, n, 0, n * 500), 0.0, n * 7 % 900, n, 0, n * 500)
            )
            for n in range(120)
        )
    )
    facts.write_bytes(Facts("fcfs", 64, 2048, 100_000).encode())
    fitted = weir("calibrate", str(log), "--out", str(profile), "--facts", str(facts))
    assert fitted.exit_code == 0, fitted.output
    assert "120 steps" in fitted.stdout
    done = weir("run", "--profile", str(profile), "--duration", "5")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        pytest.param(["run", "--system", "magic"], "is none of", id="unknown system"),
        pytest.param(["run", "--profile", "no.json"], "no file", id="unknown profile"),
        pytest.param(["compare", "--loads", "1,x"], "write numbers", id="a load is no number"),
        pytest.param(["run", "--mix", "gold=1"], "write CLASS=PART", id="unknown class"),
        pytest.param(["capacity", "--trace", "no.csv"], "No such file", id="no trace"),
        pytest.param(["calibrate", "no.jsonl", "--out", "x.json"], "No such file", id="no log"),
    ],
)
def test_says_what_is_wrong_with_an_option(arguments: list[str], why: str) -> None:
    done = weir(*arguments)
    assert done.exit_code == 2
    assert why in " ".join(done.output.replace("│", " ").split())
