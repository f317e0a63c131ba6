"""The scheduling core as the image holds it, compiled: the same decisions, the same tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIMULATION = [
    "-m", "weir_cli", "simulate", "run", "--duration", "60", "--replicas", "2", "--seed", "7",
    "--json",
]  # fmt: skip


@pytest.fixture(scope="module")
def compiled() -> dict[str, str]:
    """Return the environment in which the compiled core is imported."""
    done = subprocess.run(
        [str(ROOT / "scripts/compiled")], check=True, stdout=subprocess.PIPE, text=True, timeout=300
    )
    return {**os.environ, "PYTHONPATH": done.stdout.strip()}


def python(arguments: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True,
        check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_what_is_imported_is_compiled(compiled: dict[str, str]) -> None:
    show = "import weir_core.sched.scheduler as scheduler; print(scheduler.__file__)"
    assert python(["-c", show], compiled).strip().endswith(".so")
    assert python(["-c", show], dict(os.environ)).strip().endswith(".py")


def test_the_compiled_core_decides_the_same(compiled: dict[str, str]) -> None:
    assert python(SIMULATION, compiled) == python(SIMULATION, dict(os.environ))


def test_the_compiled_core_passes_the_tests_of_the_core(compiled: dict[str, str]) -> None:
    tests = sorted(str(path) for path in (ROOT / "tests/unit/core").glob("test_sched_*.py"))
    out = python(["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], compiled)
    assert " passed" in out
