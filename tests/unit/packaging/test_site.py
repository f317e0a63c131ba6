"""The site of docs/ builds without a warning, and its pages ask no other host for anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


VERSION = "1.0"
"""The folder into which the tests publish."""


def publish(into: Path) -> subprocess.CompletedProcess[str]:
    """Do as `scripts/site publish` in a new repository, but for Mermaid, which it fetches.

    The repository has the settings of the site, in which a test may have put its own pages.
    """
    programs = Path(sys.executable).parent
    environment = os.environ | {
        "NO_MKDOCS_2_WARNING": "1",
        "PATH": f"{programs}:{os.environ['PATH']}",
        **dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "test"),
        **dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "test@example.com"),
    }
    for begun in (["init"], ["commit", "--allow-empty", "--message=empty"]):
        command = ["git", *begun, "--quiet"]
        subprocess.run(command, cwd=into, env=environment, check=True, timeout=20)
    return subprocess.run(
        [programs / "mike", "deploy", "--update-aliases", VERSION, "latest"],
        cwd=into, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def settings_with(docs: Path, text: str) -> str:
    """Return the settings of the site for a file at another place and for other pages."""
    for ours, theirs in (
        ("docs_dir: docs\n", f"docs_dir: {docs}\n"),
        ("site_dir: .weir/site\n", "site_dir: site\n"),
        ("scripts/site_hooks.py", str(ROOT / "scripts/site_hooks.py")),
    ):
        assert ours in text
        text = text.replace(ours, theirs)
    return text


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the files of the branch to which the site was published."""
    at = tmp_path_factory.mktemp("repository")
    text = (ROOT / "mkdocs.yml").read_text()
    (at / "mkdocs.yml").write_text(settings_with(ROOT / "docs", text))
    done = publish(at)
    assert done.returncode == 0, done.stderr
    files = tmp_path_factory.mktemp("files")
    packed = subprocess.run(
        ["git", "archive", "gh-pages"], cwd=at, capture_output=True, check=True, timeout=60
    )
    subprocess.run(["tar", "-x"], cwd=files, input=packed.stdout, check=True, timeout=60)
    return files


@pytest.fixture(scope="module")
def pages(published: Path) -> dict[str, str]:
    site = published / VERSION
    return {str(page.relative_to(site)): page.read_text() for page in site.rglob("*.html")}


def test_a_reader_chooses_among_the_versions_that_were_published(
    published: Path, pages: dict[str, str]
) -> None:
    versions = json.loads((published / "versions.json").read_text())
    assert versions == [{"version": VERSION, "title": VERSION, "aliases": ["latest"]}]
    assert (published / "latest/watch.html").read_text() == pages["watch.html"]
    assert '"provider": "mike"' in pages["watch.html"]


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
    (tmp_path / "mkdocs.yml").write_text(settings_with(docs, text))
    done = publish(tmp_path)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if "'page.md' contains a link" in line]
    assert len(told) == 4, done.stderr


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
