"""What an engine finds out of the machine before it imports vLLM."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest

from weir_engine import machine


def driver(result: int) -> Callable[[str], Any]:
    """Return what loads a driver whose start ends with `result`."""
    return lambda _: SimpleNamespace(cuInit=lambda _: result)


def absent(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file: No such file or directory")


@pytest.mark.parametrize(
    ("load", "want"),
    [
        pytest.param(driver(0), "", id="a device"),
        pytest.param(absent, "NVIDIA's driver is not there (libcuda.so.1)", id="no driver"),
        pytest.param(driver(100), "NVIDIA's driver finds no device", id="no device"),
        pytest.param(driver(34), "NVIDIA's driver finds no device", id="a stub"),
        pytest.param(driver(802), "", id="a device that is not up yet: vLLM tells of it"),
    ],
)
def test_says_why_there_is_no_gpu(load: Callable[[str], Any], want: str) -> None:
    assert machine.missing_gpu(load) == want


@pytest.mark.parametrize(
    ("version", "device", "looked"),
    [
        ("0.33.0", "gpu", True),
        ("0.33.0+cu130", "gpu", True),
        ("0.33.1rc1+cu130.g1a2b3c", "gpu", True),
        ("0.33.0+rocm713", "gpu", False),
        ("0.33.0+xpu", "gpu", False),
        ("0.33.0+cpu", "cpu", False),
    ],
)
def test_only_a_build_for_nvidia_looks_for_a_gpu_of_nvidias(
    monkeypatch: pytest.MonkeyPatch, version: str, device: str, looked: bool
) -> None:
    def installed(name: str) -> str:
        if name == "vllm":
            return version
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", installed)
    monkeypatch.setattr(machine, "missing_gpu", lambda: "none")
    found = machine.detect()
    assert (found.device, found.vllm_version) == (device, version)
    assert bool(found.no_gpu) is looked
