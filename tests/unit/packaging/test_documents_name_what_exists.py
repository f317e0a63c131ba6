"""Documents name things that exist: files, make targets, fields, values, variables."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import pytest
import yaml

from weir_core.api.crd import structural
from weir_core.api.inferenceservice import InferenceServiceSpec
from weir_core.scale.types import Verdict as ScaleVerdict
from weir_core.wire.problems import Reason
from weir_operator import conditions
from weir_operator.conditions import UNDER_WAY

ROOT = Path(__file__).resolve().parents[3]
OF_KUBERNETES: Final = {"ImagePullBackOff", "CrashLoopBackOff", "FailedCreate", "Pending"}
"""Reasons that the kubelet, a Deployment and the definition's default bring."""
CODE_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def tracked(*patterns: str) -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


DOCUMENTS = tracked("*.md")


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", CODE_BLOCK.sub("", document.read_text()), re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def broken_links(document: Path) -> Iterator[str]:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (document.parent / path) if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


def test_links_lead_somewhere(document: Path) -> None:
    assert list(broken_links(document)) == []


def test_names_only_files_of_the_checkout(document: Path) -> None:
    named = re.findall(
        r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|md|yaml|json|tpl|lock))`", document.read_text()
    )
    parts = ("core", "operator", "sidecar", "engine", "sim", "cli")
    places = (ROOT, document.parent, *(ROOT / part for part in parts))
    assert [name for name in named if not any((at / name).exists() for at in places)] == []


def test_names_only_targets_of_the_makefile(document: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = document.read_text()
    shown = "\n".join([*CODE_BLOCK.findall(text), *re.findall(r"`[^`\n]+`", text)])
    named = set(re.findall(r"(?:^|`|&& )make ([a-z][a-z0-9-]*)", shown, re.MULTILINE))
    assert named <= targets


def test_names_only_variables_that_something_reads(document: Path) -> None:
    sources = "\n".join(
        path.read_text() for path in tracked("*.py", "scripts/*", "helm/*.yaml", "Makefile")
    )
    named = set(re.findall(r"\bWEIR_[A-Z0-9_]*[A-Z0-9]\b", document.read_text()))
    assert {name for name in named if not re.search(rf"\b{name}\b", sources)} == set()


def test_names_only_fields_of_the_spec(document: Path) -> None:
    named = re.findall(r"`spec\.([A-Za-z.\[\]]+)`", document.read_text())
    assert [path for path in named if not is_field(path)] == []


def is_field(path: str) -> bool:
    schema: dict[str, Any] = structural(InferenceServiceSpec)
    for step in path.replace("[]", ".[]").split("."):
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            return True
        schema = schema.get("items" if step == "[]" else "properties", {})
        if step != "[]":
            schema = schema.get(step, {})
    return bool(schema)


def test_names_only_values_of_the_chart(document: Path) -> None:
    values = yaml.safe_load((ROOT / "helm/weir/values.yaml").read_text())
    named = re.findall(rf"`((?:{'|'.join(values)})(?:\.(?!py)[A-Za-z]+)*)`", document.read_text())
    assert [path for path in named if not is_value(values, path)] == []


def is_value(values: dict[str, Any], path: str) -> bool:
    for step in path.split("."):
        if step not in values:
            return False
        values = values[step]
    return True


def reasons_documented() -> set[str]:
    """Return what the first cells of the tables of docs/conditions.md name as reasons."""
    tables = (ROOT / "docs/conditions.md").read_text().split("| reason |")[1:]
    cells = [row.split("|")[1] for table in tables for row in re.findall(r"^\| `.*", table, re.M)]
    return {reason for cell in cells for reason in re.findall(r"`(\w+)`", cell)}


def test_the_conditions_page_explains_every_reason_and_no_other() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "operator").rglob("*.py"))
    written = re.findall(r'(?:Verdict\(\s*"\w+",|wrong\()\s*"(\w+)"', sources)
    known = {*written, *UNDER_WAY, *get_args(Reason), *(each.value for each in ScaleVerdict)}
    documented = reasons_documented()
    assert known - documented == set()
    quoted = set(re.findall(r'"([A-Z]\w+)"', sources))
    assert documented - known - quoted - OF_KUBERNETES == set()


def test_the_conditions_page_has_a_section_for_each_condition() -> None:
    names = {value for value in vars(conditions).values() if isinstance(value, str)}
    headings = re.findall(r"^## (.*)$", (ROOT / "docs/conditions.md").read_text(), re.MULTILINE)
    told = {word for heading in headings for word in heading.split(" and ")}
    assert {name for name in names if re.fullmatch(r"[A-Z]\w+", name)} - told == set()
