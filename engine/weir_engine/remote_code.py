"""Code of a model that its configuration takes from another repository of the hub.

With --trust-remote-code, `"auto_map": {"AutoModel": "ORG/CODE--module.Class"}` lets transformers
load a module of ORG/CODE. It looks for it in the hub's cache, which is a directory of its own
beside the models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from weir_engine.launch import value_of

CACHE: Final = "hub-cache"
"""Directory below the model directory, in the hub client's own form."""


def code_repositories(directory: Path, args: Sequence[str]) -> list[str]:
    """Return the other repositories whose code the model in `directory` runs."""
    if not _trusted(args):
        return []
    found = (name for path in sorted(directory.glob("*.json")) for name in _named_by(path))
    return list(dict.fromkeys(found))


def code_revision(args: Sequence[str]) -> str | None:
    """Return the revision of the code that the arguments ask for."""
    return value_of(args, "--code-revision")


def cached(models: Path, repository: str) -> Path:
    """Return where the cache has a repository."""
    return models / CACHE / f"models--{repository.replace('/', '--')}"


def _trusted(args: Sequence[str]) -> bool:
    flags = [argument.replace("_", "-") for argument in args if argument.startswith("-")]
    given = [flag for flag in flags if flag in {"--trust-remote-code", "--no-trust-remote-code"}]
    return given[-1:] == ["--trust-remote-code"]


def _named_by(path: Path) -> Iterator[str]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        # What is no JSON document concerns the reader that wants one.
        return
    classes = document.get("auto_map") if isinstance(document, Mapping) else None
    for value in classes.values() if isinstance(classes, Mapping) else ():
        for name in _strings(value):
            repository, separator, _ = name.partition("--")
            if separator:
                yield repository


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings of a value that is one, or a list of them."""
    for one in value if isinstance(value, list) else (value,):
        if isinstance(one, str):
            yield one
