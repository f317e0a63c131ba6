"""`scripts/release` sets the version where it is named and moves the news into the changelog."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

RELEASE: Final = Path(__file__).parents[3] / "scripts/release"
BEFORE: Final = "# Changelog\n\n## 0.1.0 (unreleased)\n\nIn short.\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.1.0"\nneeds = "10.1.0"\n')
    (tmp_path / "README.md").write_text("weir:0.1.0 is 0.1.0. Not 0.1.0.0\n")
    (tmp_path / "CHANGELOG.md").write_text(BEFORE)
    (tmp_path / "changes").mkdir()
    return tmp_path


def release(checkout: Path, **news: str) -> str:
    """Release with this news, and return the changelog."""
    for name, text in news.items():
        (checkout / "changes" / f"{name.replace('_', '.')}.md").write_text(text)
    subprocess.run([sys.executable, RELEASE, "0.2.0"], cwd=checkout, check=True, timeout=60)
    return (checkout / "CHANGELOG.md").read_text()


def test_sets_the_version_and_no_other_number(checkout: Path) -> None:
    release(checkout)
    assert 'version = "0.2.0"\nneeds = "10.1.0"' in (checkout / "pyproject.toml").read_text()
    assert (checkout / "README.md").read_text() == "weir:0.2.0 is 0.2.0. Not 0.1.0.0\n"


def test_news_stand_below_the_summary_by_kind_and_join_those_of_a_run_before(
    checkout: Path,
) -> None:
    release(checkout, a_fix="A was mended.", b_change="B is gone ([why](../docs/b.md)).")
    text = release(checkout, c_fix="C was mended.", d_feature="D came.")
    assert text.startswith("# Changelog\n\n## 0.2.0 (")
    assert text.partition(")\n")[2] == (
        "\nIn short.\n"
        "\n### To act upon\n\n- B is gone ([why](docs/b.md)).\n"
        "\n### New\n\n- D came.\n"
        "\n### Mended\n\n- A was mended.\n- C was mended.\n"
    )
    assert list((checkout / "changes").iterdir()) == []
