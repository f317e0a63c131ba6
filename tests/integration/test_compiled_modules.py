"""The request path as the image holds it, compiled: the same decisions, the same tests."""

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


@pytest.fixture(scope="session")
def compiled(compiling: subprocess.Popen[str]) -> dict[str, str]:
    """Return the environment in which the compiled modules are imported."""
    folder, _ = compiling.communicate(timeout=580)
    assert compiling.returncode == 0
    return {**os.environ, "PYTHONPATH": folder.strip()}


def python(arguments: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True,
        check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("module", ["weir_core.sched.scheduler", "weir_sidecar.upstreams.splice"])
def test_what_is_imported_is_compiled(module: str, compiled: dict[str, str]) -> None:
    show = f"import {module} as module; print(module.__file__)"
    assert python(["-c", show], compiled).strip().endswith(".so")
    assert python(["-c", show], dict(os.environ)).strip().endswith(".py")


def test_the_compiled_modules_decide_the_same(compiled: dict[str, str]) -> None:
    assert python(SIMULATION, compiled) == python(SIMULATION, dict(os.environ))


def test_the_compiled_modules_pass_the_tests_of_the_core(compiled: dict[str, str]) -> None:
    tests = sorted(str(path) for path in (ROOT / "tests/unit/core").glob("test_sched_*.py"))
    assert_passed(tests, compiled)


def test_the_compiled_relay_passes_the_tests_of_the_sidecar(compiled: dict[str, str]) -> None:
    integration = ROOT / "tests/integration/sidecar"
    names = ("backpressure", "drain", "failures", "front", "outcomes", "relay", "scheduling")
    tests = [str(integration / f"test_{name}.py") for name in names]
    assert_passed([str(ROOT / "tests/unit/sidecar"), *tests], compiled)


def assert_passed(tests: list[str], env: dict[str, str]) -> None:
    out = python(["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], env)
    assert " passed" in out
