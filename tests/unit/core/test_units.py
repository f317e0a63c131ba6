"""Durations, the only text that becomes a number."""

from __future__ import annotations

import pytest

from weir_core.units import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("1m30s", 90.0), ("250ms", 0.25), ("2h", 7200.0), ("0s", 0.0)],
)
def test_reads_a_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "1.5s", "-1s", "30 s", "1d"])
def test_refuses_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 30s"):
        parse_duration(text)
