"""Truths about the repository as a whole that no single module can hold."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("core", "operator", "sidecar", "engine", "sim", "cli")
VAGUE = {"perc", "util", "utils", "data", "info", "manager", "helper", "helpers"}
"""Words that docs/glossary.md bans from names: each has a precise one in its place."""
RIDDLES = {"desk", "turn", "visit", "door", "tally", "ledger", "intake", "recall", "expel"}
"""Pictures and second words for one thing, which docs/glossary.md bans from the request path."""


def tracked(*patterns: str) -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


def words(name: str) -> set[str]:
    return set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_"))


def test_no_module_or_class_has_a_vague_name() -> None:
    vague = []
    for path in tracked(*(f"{source}/*.py" for source in SOURCES)):
        nodes = ast.walk(ast.parse(path.read_text()))
        names = [path.stem, *(node.name for node in nodes if isinstance(node, ast.ClassDef))]
        vague += [f"{path.relative_to(ROOT)}: {name}" for name in names if words(name) & VAGUE]
    assert vague == []


def identifiers(path: Path) -> set[str]:
    """Return the names that a module gives to anything, its own included."""
    names = {path.stem, *path.relative_to(ROOT).parent.parts}
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.AsyncFunctionDef(name=name) | ast.arg(arg=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.alias(asname=str(name)):
                names.add(name)
    return names


def test_no_name_of_the_request_path_is_a_riddle() -> None:
    riddles = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in tracked("core/*.py", "sidecar/*.py")
        for name in identifiers(path)
        if words(name) & RIDDLES
    ]
    assert riddles == []


def test_the_glossary_names_every_banned_word() -> None:
    glossary = (ROOT / "docs/glossary.md").read_text()
    banned = glossary.partition("## Words that are not used")[2].replace("`", "")
    assert {word for word in VAGUE | RIDDLES if not re.search(rf"\b{word}\b", banned)} == set()


def test_locks_hold_hashes_and_no_addresses() -> None:
    locks = tracked("requirements/*.lock")
    assert locks
    for lock in locks:
        text = lock.read_text()
        assert "--hash=sha256:" in text, lock
        assert "://" not in text, lock


def test_nothing_names_a_machine_or_an_index() -> None:
    # Written in pieces, so that this file does not name what it looks for.
    banned = re.compile(
        "|".join(["/wo" + "rk/", "/ro" + "ot/", "py" + r"pi\.org", "pytho" + "nhosted"])
    )
    named = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked()
        if path.suffix not in {".sum", ".png"}
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if banned.search(line)
    ]
    assert named == []


def test_chart_and_package_carry_the_same_version() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((ROOT / "helm/weir/Chart.yaml").read_text())
    assert {chart["version"], chart["appVersion"]} == {package}


@pytest.mark.parametrize("target", ["up", "down", "check", "integration", "e2e", "test", "clean"])
def test_make_help_lists_every_target_a_user_needs(target: str) -> None:
    listing = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert re.search(rf"^\s+make {target}\s", listing.stdout, re.MULTILINE)
