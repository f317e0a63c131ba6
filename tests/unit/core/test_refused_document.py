"""docs/refused.md lists the reserved flags and variables of the code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from weir_core.api.engine_environment import FORBIDDEN_ENV, PLUGIN, PLUGINS
from weir_core.api.engine_flags import FORBIDDEN

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "refused.md"


def rows(reserved: Mapping[str, str]) -> list[str]:
    """Return a table's rows; what is reserved for one reason stands in one row."""
    by_reason: dict[str, list[str]] = {}
    for name, why in reserved.items():
        by_reason.setdefault(why, []).append(f"`{name}`")
    return [f"| {', '.join(names)} | {why} |" for why, names in by_reason.items()]


@pytest.mark.parametrize(
    ("section", "want"),
    [
        ("Reserved flags", rows(FORBIDDEN)),
        (
            "Reserved variables",
            [
                *rows(FORBIDDEN_ENV),
                f"| `{PLUGINS}` | refused only if it leaves out `{PLUGIN}` |",
            ],
        ),
    ],
)
def test_its_tables_are_those_of_the_code(section: str, want: list[str]) -> None:
    parts = re.split(r"^## (.*)\n", DOCUMENT.read_text(), flags=re.MULTILINE)
    text = dict(zip(parts[1::2], parts[2::2], strict=True))[section]
    found = [line for line in text.splitlines() if line.startswith("|")]
    assert found[2:] == want  # below the head of the table
