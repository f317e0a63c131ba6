"""The CPU build finds its version without a write into the installation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from weir_engine.vllm_metadata import with_path, write_vllm_metadata


def test_a_process_with_the_path_finds_vllm(tmp_path: Path) -> None:
    root = write_vllm_metadata(tmp_path)
    script = "from importlib.metadata import version; print(version('vllm'))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=with_path(dict(os.environ), root),
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert done.stdout.startswith("0.32.0")


@pytest.mark.parametrize(
    ("before", "root", "want"),
    [
        ({}, Path("/m"), {"PYTHONPATH": "/m"}),
        ({"PYTHONPATH": "/a"}, Path("/m"), {"PYTHONPATH": f"/m{os.pathsep}/a"}),
        ({"PYTHONPATH": "/a"}, None, {"PYTHONPATH": "/a"}),
    ],
)
def test_the_path_goes_in_front(
    before: dict[str, str], root: Path | None, want: dict[str, str]
) -> None:
    assert with_path(before, root) == want


def test_writing_it_twice_is_fine(tmp_path: Path) -> None:
    assert write_vllm_metadata(tmp_path) == write_vllm_metadata(tmp_path)
