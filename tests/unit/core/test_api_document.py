"""docs/api.md says of paths, headers and fields what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from weir_core.wire.engine_inputs import FIELDS, HEADERS, Rule
from weir_core.wire.paths import CLOSED, DEFAULT_PREFIX, POSTS, READS, Endpoint

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "api.md"


def path_row(method: str, each: Endpoint) -> str:
    return f"| {method} | `{each.path}` | {each.kind} | {each.api} | {each.priority} |"


def rule_row(name: str, rule: Rule) -> str:
    return f"| `{name}` | {rule.treatment} | {rule.reason} |"


WANTED = {
    "Paths": [
        *(path_row("POST", each) for each in POSTS.values()),
        *(path_row("GET", each) for each in READS.values()),
    ],
    "Headers": [rule_row(name, rule) for name, rule in HEADERS.items()],
    "Fields of bodies": [rule_row(name, rule) for name, rule in FIELDS.items()],
}


@pytest.mark.parametrize("section", WANTED)
def test_its_tables_are_those_of_the_code(section: str) -> None:
    parts = re.split(r"^## (.*)\n", DOCUMENT.read_text(), flags=re.MULTILINE)
    text = dict(zip(parts[1::2], parts[2::2], strict=True))[section]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == WANTED[section]  # below the head of the table


def test_it_names_the_default_and_what_is_closed() -> None:
    text = DOCUMENT.read_text()
    for name in (DEFAULT_PREFIX, *CLOSED):
        assert f"`{name}`" in text
