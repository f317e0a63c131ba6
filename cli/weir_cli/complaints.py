"""Where a file stops being YAML, for the person who wrote it."""

from __future__ import annotations

from typing import Final

import yaml

_HELP: Final = {
    r"'\t' that cannot start": "; indent with spaces, not with tabs",
    "could not find expected ':'": "; a line above has a key without `: `, or an item without `- `",
    "mapping values are not allowed": (
        "; a line is indented unlike its neighbours, or a text with `: ` in it has no quotes"
    ),
    "expected ',' or '}'": "; a `{` above is not closed, or has no comma between two fields",
    "expected ',' or ']'": "; a `[` above is not closed, or has no comma between two items",
}
"""What the parser says -> what is most often wrong then."""


def yaml_complaint(error: Exception) -> str:
    """Return where a file stops being YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.MarkedYAMLError) and mark is not None:
        problem = str(error.problem)
        help_ = next((words for said, words in _HELP.items() if said in problem), "")
        return f"line {mark.line + 1}, column {mark.column + 1}: {problem}{help_}"
    return " ".join(str(error).split())
