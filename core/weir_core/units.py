"""Units as types, and the only conversions between them."""

from __future__ import annotations

import re
from typing import NewType

Seconds = NewType("Seconds", float)
Tokens = NewType("Tokens", int)

DURATION_PATTERN = r"^([0-9]+(ms|s|m|h))+$"
"""A Kubernetes-style duration without fractions, such as `30s`, `1m30s` or `250ms`."""

_SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> Seconds:
    """Return the length of a duration like `1m30s`.

    Raises:
        ValueError: `text` is not a duration.
    """
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"{text!r} is not a duration; write it like 30s, 5m or 250ms")
    parts = re.findall(r"([0-9]+)(ms|s|m|h)", text)
    return Seconds(sum(int(amount) * _SECONDS_PER_UNIT[unit] for amount, unit in parts))
