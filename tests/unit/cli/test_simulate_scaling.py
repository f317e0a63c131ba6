"""`weir simulate autoscale` on the command line: a curve, a file, a trace, a picture, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from weir_cli.simulate import app

RATES = "second,requests_per_second\n" + "".join(
    f"{600 * number},{rate}\n" for number, rate in enumerate([20, 60, 60, 20, 20, 20])
)
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"{second / 2},900,60\n" for second in range(480)
)


def autoscale(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["autoscale", *arguments])


def test_rates_of_a_file_and_the_others_at_equal_cost_with_a_picture(tmp_path: Path) -> None:
    rates = tmp_path / "mine.csv"
    rates.write_text(RATES)
    done = autoscale(
        "--rates", str(rates), "--scalers", "weir,static,keda-running", "--cold-start", "60",
        "--report", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "mine.csv: 1 hours" in " ".join(done.stdout.split())
    assert done.stdout.count("static") >= 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "keda-running" in page
    assert "data:image/png;base64," in page


def test_a_trace_gives_rates_and_lengths(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE)
    done = autoscale("--trace", str(trace), "--peak", "6", "--scalers", "weir", "--json")
    assert done.exit_code == 0, done.output
    (row,) = (json.loads(line) for line in done.stdout.splitlines())
    assert row["scene"] == "trace"
    assert row["attainment"]["interactive"] > 0.9
    assert 0.0 < row["cost_ratio"] < 2.0


def test_each_request_is_simulated_where_that_is_asked_for(tmp_path: Path) -> None:
    rates = tmp_path / "mine.csv"
    rates.write_text("second,requests_per_second\n0,3\n60,12\n120,3\n")
    done = autoscale(
        "--rates", str(rates), "--scalers", "weir,static", "--requests", "--json",
        "--cold-start", "20", "--mix", "interactive=100",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["scaler"] for row in rows] == ["weir", "static"]
    assert {row["scene"] for row in rows} == {"mine.csv, requests"}
    assert all(row["attainment"] == {"interactive": 1.0} for row in rows)


def test_another_with_a_knob_of_ones_own_runs_alone() -> None:
    done = autoscale(
        "--curve", "surge", "--peak", "3", "--scalers", "keda-running", "--knob", "30", "--json"
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (row,) = (json.loads(line) for line in done.stdout.splitlines())
    assert (row["scaler"], row["knob"]) == ("keda-running", 30.0)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--curve", "none"], "none of two-weeks"),
        (["--scalers", "weir,none"], "none of weir"),
        (["--rates", "missing.csv"], "No such file"),
        (["--rates", "missing.csv", "--curve", "step"], "not both"),
        (["--mix", "nobody=1"], "write CLASS=PART"),
        (["--profile", "none"], "no file"),
    ],
)
def test_says_what_is_wrong_with_an_option(arguments: list[str], why: str) -> None:
    done = autoscale(*arguments)
    assert done.exit_code == 2
    said = " ".join(done.output.replace("│", " ").split())
    assert why in said
