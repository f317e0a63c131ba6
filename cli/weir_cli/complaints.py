"""Where a file stops being YAML, for the person who wrote it."""

from __future__ import annotations

import yaml


def yaml_complaint(error: Exception) -> str:
    """Return where a file stops being YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.MarkedYAMLError) and mark is not None:
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
