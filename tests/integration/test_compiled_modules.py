"""The request path as the image holds it, compiled: what is imported, and the same decisions.

`scripts/integration` runs the tests of the sidecar and of the scheduler on it.
"""

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
def compiled() -> str:
    """Return the folder of the compiled modules."""
    done = subprocess.run(
        [ROOT / "scripts/compiled"], stdout=subprocess.PIPE, text=True, check=True, timeout=580
    )
    return done.stdout.strip()


def python(arguments: list[str], path: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, "PYTHONPATH": path}, cwd=ROOT,
        stdout=subprocess.PIPE, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("module", ["weir_core.sched.scheduler", "weir_sidecar.upstreams.splice"])
def test_what_is_imported_is_compiled(module: str, compiled: str) -> None:
    show = f"import {module} as module; print(module.__file__)"
    imported = Path(python(["-c", show], compiled).strip())
    assert (imported.suffix, imported.is_relative_to(compiled)) == (".so", True)
    assert python(["-c", show]).strip().endswith(".py")


@pytest.mark.parametrize(
    ("package", "is_replaced"),
    [
        pytest.param("weir_sidecar", True, id="the sidecar"),
        pytest.param("weir_sim", False, id="what is not compiled stays the checkout's"),
    ],
)
def test_the_folder_replaces_what_is_compiled(
    package: str, is_replaced: bool, compiled: str
) -> None:
    where = python(["-c", f"import {package}; print({package}.__file__)"], compiled)
    assert Path(where).is_relative_to(compiled) is is_replaced


def test_the_compiled_modules_decide_the_same(compiled: str) -> None:
    assert python(SIMULATION, compiled) == python(SIMULATION)
