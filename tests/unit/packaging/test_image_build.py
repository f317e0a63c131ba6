"""`make images` says what it built: each image's packages, and its digest.

The builder is a program that answers as docker does; only real ones build images.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
DIGEST = f"sha256:{'a' * 64}"
NAMES = ("weir", "weir-engine", "weir-engine-cpu")
BUILDER = f"""\
#!{sys.executable}
import subprocess, sys
from pathlib import Path

arguments = sys.argv[1:]
with Path("calls").open("a") as calls:
    calls.write(" ".join(arguments) + "\\n")
if arguments[0] == "build":
    Path(arguments[arguments.index("--iidfile") + 1]).write_text("sha256:built")
elif arguments[0] == "run":
    inside = [sys.executable, *arguments[arguments.index("-"):]]
    sys.exit(subprocess.run(inside, stdin=sys.stdin).returncode)
elif arguments[:2] == ["image", "inspect"]:
    repository = arguments[-1].rpartition(":")[0]
    print("other.example/it@sha256:0")
    print(f"{{repository}}@{DIGEST}")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return as much of a checkout as the script reads."""
    for path in ("scripts/images", "scripts/lib.sh", "scripts/sbom.py", "pyproject.toml"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    builder = tmp_path / "bin/docker"
    builder.parent.mkdir()
    builder.write_text(BUILDER)
    builder.chmod(0o755)
    return tmp_path


def images(checkout: Path, status: int = 0, **environment: str) -> str:
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(checkout / "scripts/images")],
        env=os.environ | {"PATH": path, "WEIR_IMAGE_PREFIX": "reg.example/me"} | environment,
        cwd=checkout, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stderr


def test_each_image_comes_with_the_list_of_its_packages(checkout: Path) -> None:
    images(checkout)
    for name in NAMES:
        listed = json.loads((checkout / f".weir/images/{name}.cdx.json").read_text())
        assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.6")
        assert listed["metadata"]["component"]["name"] == name
        assert "pytest" in {each["name"] for each in listed["components"]}
        assert (checkout / ".weir/images/digests").read_text().count(f"{name}:") == 1


def test_the_list_is_read_inside_the_image_without_a_network(checkout: Path) -> None:
    images(checkout)
    calls = (checkout / "calls").read_text().splitlines()
    runs = [call for call in calls if call.startswith("run ")]
    assert len(runs) == len(NAMES)
    assert all("--network none --entrypoint python3 reg.example/me/weir" in run for run in runs)
    assert not any(call.startswith("push") for call in calls)


def test_pushed_images_are_named_by_their_digests_for_the_chart(checkout: Path) -> None:
    said = images(checkout, WEIR_IMAGE_PUSH="1")
    assert (
        f"--set images.weir.repository=reg.example/me/weir --set images.weir.digest={DIGEST}"
        in said
    )
    assert f"--set images.engine.digest={DIGEST}" in said
    assert f"--set images.engineCpu.digest={DIGEST}" in said
    digests = (checkout / ".weir/images/digests").read_text()
    assert digests.count(f" digest {DIGEST}") == len(NAMES)


def test_only_the_image_for_cpus_is_built_on_vllms_cpu_build(checkout: Path) -> None:
    images(checkout)
    calls = (checkout / "calls").read_text().splitlines()
    (build,) = (call for call in calls if "DEVICE=cpu" in call)
    assert "--tag reg.example/me/weir-engine-cpu:" in build


def test_builds_those_that_are_asked_for(checkout: Path) -> None:
    images(checkout, WEIR_IMAGES="weir weir-engine-cpu")
    calls = (checkout / "calls").read_text().splitlines()
    built = [call.split(" --tag ")[1].split()[0] for call in calls if call.startswith("build ")]
    assert [tag.split("/")[-1].split(":")[0] for tag in built] == ["weir", "weir-engine-cpu"]


def test_a_name_that_is_no_image_is_refused(checkout: Path) -> None:
    assert "there are" in images(checkout, status=1, WEIR_IMAGES="weir-engin")


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "scripts/sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DPKG = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10
Description: libraries
 .
 Version: of the text

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


def test_lists_the_systems_packages_that_are_installed(sbom: ModuleType) -> None:
    found = list(sbom.system_packages(DPKG, 'ID=debian\nVERSION_ID="12"\n'))
    purl = "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12"
    assert [(each["name"], each["version"], each["purl"]) for each in found] == [
        ("libc6", "2.36-9+deb12u10", purl)
    ]


def test_the_same_image_gives_the_same_list(sbom: ModuleType) -> None:
    first, second = (sbom.document("x", "1", list(sbom.python_packages())) for _ in range(2))
    assert first == second
    references = [each["bom-ref"] for each in first["components"]]
    assert len(set(references)) == len(references)
