"""The HTTP servers of the sidecar and of aiohttp make the same of the same bytes (`bench.http`)."""

from __future__ import annotations

from pathlib import Path

from bench.http.differences import DIFFERENCES, table
from bench.http.run import Batch, Findings

CONNECTIONS = 2000
ADR = Path(__file__).parents[3] / "docs" / "adr" / "0012-http-server.md"
RARE = {"length of 2^64 - 1", "unfinished head", "two faults", "large head"}
"""Differences that so few connections need not bring."""


def test_both_servers_make_the_same_of_the_same_bytes() -> None:
    found = Findings()
    for first in range(0, CONNECTIONS, 100):
        batch = Batch(seed=12, first=first)
        batch.run()
        found.add(batch.found)
    assert found.faults == []
    assert found.requests > CONNECTIONS
    assert set(found.kinds) == {"open", "closed", "refused", "left", "different"}
    assert {difference.name for difference in DIFFERENCES} - RARE <= set(found.differences)


def test_the_decision_lists_every_difference() -> None:
    lines = ADR.read_text().splitlines()
    begin = lines.index(table()[0])
    assert lines[begin : begin + len(table())] == table()
