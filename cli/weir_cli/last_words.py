"""Which line of a log says why a process ended. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_ERROR: Final = re.compile(r"\b\w*(?:Error|Exception|error)\b: ?\S")
_PREFIX: Final = re.compile(r"^(?:\(\w+[^)]*\) )?(?:ERROR [\d-]+ [\d:.]+ )?(?:\[[\w.]+:\d+\] )?")
_FOLLOWS: Final = "Engine core initialization failed"
"""vLLM's last line where another process of it failed: that one's line is the cause."""
_LISTS: Final = re.compile(r"\d+ validation errors? for ")
"""pydantic's first line; the next one names the value and what is wrong with it."""


def names_error(lines: Iterable[str]) -> bool:
    """Tell whether a process named an error."""
    return any(_ERROR.search(each) for each in lines)


def error_line(lines: Iterable[str]) -> str:
    """Return the line in which a process said why it ends: of a traceback the last."""
    said = [_PREFIX.sub("", each).strip() for each in lines]
    said = [each for each in said if each]
    if not said:
        return "it said nothing"
    errors = [at for at, each in enumerate(said) if _ERROR.search(each)]
    roots = [at for at in errors if _FOLLOWS not in said[at]]
    at = (roots or errors or [len(said) - 1])[-1]
    follows = said[at + 1 : at + 2] if _LISTS.search(said[at]) else []
    return ": ".join([said[at], *follows])
