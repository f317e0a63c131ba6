"""The wheel, built once: every package, its data and the programs that manifests call."""

from __future__ import annotations

import configparser
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml

from weir_core.api.inferenceservice import InferenceService
from weir_operator.render import pod_templates

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZipFile]:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (path,) = out.glob("*.whl")
    with ZipFile(path) as opened:
        yield opened


@pytest.mark.parametrize("package", PACKAGES)
def test_holds_every_file_of(package: str, wheel: ZipFile) -> None:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", package],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    files = {
        line.partition("/")[2] for line in listing.stdout.splitlines() if (ROOT / line).exists()
    }
    assert f"{Path(package).name}/py.typed" in files
    assert files <= set(wheel.namelist())


def test_holds_nothing_else(wheel: ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    names = {Path(package).name for package in PACKAGES}
    assert {top for top in tops - names if not top.endswith(".dist-info")} == set()


def test_carries_its_licence(wheel: ZipFile) -> None:
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())


def test_installs_the_programs_of_the_project(wheel: ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(name).decode())
    assert dict(parser["console_scripts"]) == PROJECT["project"]["scripts"]


def test_manifests_start_programs_of_the_project_only() -> None:
    called = {command[0] for command in commands_of_examples()}
    assert called == {"weir-sidecar", "weir-engine"}
    assert called <= PROJECT["project"]["scripts"].keys()


def commands_of_examples() -> Iterator[list[str]]:
    """Yield every command in the pods of the examples: containers' own and their hooks'."""
    for path in (ROOT / "examples").glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] == "InferenceService":
                service = InferenceService.model_validate(document)
                for template in pod_templates(service).values():
                    yield from commands_of(template["spec"])


def commands_of(pod: dict[str, Any]) -> Iterator[list[str]]:
    for container in pod["initContainers"] + pod["containers"]:
        yield container["command"]
        if "lifecycle" in container:
            yield container["lifecycle"]["preStop"]["exec"]["command"]
