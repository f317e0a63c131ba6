"""The site of docs/ builds without a warning, and its pages ask no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def build(into: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    """Build as `scripts/site` does, but for Mermaid, which it fetches."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(
        [*command, "--config-file", str(config), "--site-dir", str(into)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    site = tmp_path_factory.mktemp("site")
    built = build(site)
    assert built.returncode == 0, built.stderr
    return {str(page.relative_to(site)): page.read_text() for page in site.rglob("*.html")}


def test_every_page_is_in_the_navigation_and_every_link_and_anchor_leads_somewhere(
    pages: dict[str, str],
) -> None:
    documents = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    built = {str(path.with_suffix(".html")).replace("README", "index") for path in documents}
    assert built | {"index.html", "contributing.html", "changelog.html"} <= pages.keys()


def test_a_link_to_a_page_a_heading_or_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "page.md").write_text("[a](none.md) [b](#none) [c](index.md#none) [d](../none.yaml)")
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0]
    text = text.replace("scripts/site_hooks.py", str(ROOT / "scripts/site_hooks.py"))
    (tmp_path / "mkdocs.yml").write_text(text)
    built = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert built.returncode != 0
    told = [line for line in built.stderr.splitlines() if "'page.md' contains a link" in line]
    assert len(told) == 4, built.stderr


def test_every_diagram_is_in_its_page(pages: dict[str, str]) -> None:
    shown, built = {}, {}
    for path in (ROOT / "docs").rglob("*.md"):
        name = str(path.relative_to(ROOT / "docs").with_suffix(".html"))
        shown[name] = path.read_text().count("\n```mermaid\n")
        built[name] = pages[name.replace("README", "index")].count('"mermaid"')
    assert any(shown.values())
    assert built == shown


def test_no_semicolon_ends_a_sentence_of_a_sequence_diagram() -> None:
    """Mermaid takes it for the end of a statement, and then draws nothing."""
    diagram = re.compile(r"^```mermaid\nsequenceDiagram\n(.*?)^```", re.MULTILINE | re.DOTALL)
    texts = [path.read_text() for path in (ROOT / "docs").rglob("*.md")]
    diagrams = [each for text in texts for each in diagram.findall(text)]
    assert diagrams
    assert [line for each in diagrams for line in each.splitlines() if ";" in line] == []


def test_pages_load_nothing_from_another_host(pages: dict[str, str]) -> None:
    loads = re.compile(
        r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?((?:https?:)?//[^\" >]+)"
    )
    assert {name: found for name, text in pages.items() if (found := loads.findall(text))} == {}


def test_no_markdown_is_left_in_the_text_of_a_page(pages: dict[str, str]) -> None:
    left = re.compile(r"<p>(?:- |\d+\. |\|)[^<]*|\n(?:```|\|[ :-]+\|)[^<\n]*")
    assert {name: found for name, text in pages.items() if (found := left.findall(text))} == {}
