"""The measurement of what prefixes cost runs, and says what it measured."""

from __future__ import annotations

import re

import pytest

from weir_sim.prefix_cost import main


def test_each_part_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--peers", "3", "--rate", "1"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head in ("prefixes, compiled", "prefixes, interpreted")
    assert [line.partition(":")[0] for line in lines] == [
        *(f"body of {size} KiB" for size in (1, 4, 16, 256, 1024)),
        "a request's start and end",
        "what is cached of a prompt here and at 3 peers",
        "digests told to 3 peers",
        "digests heard of 3 peers",
    ]
    told = re.search(r"(\S+) kB/s", lines[-2])
    assert told is not None
    assert float(told[1]) > 0
