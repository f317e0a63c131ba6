"""Plays inputs on both servers in batches, and judges each."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from bench.fuzz.network import SimulatedLoop
from bench.http.compare import Verdict, alike, compare
from bench.http.differences import SAME_PIECE, TWO_FAULTS
from bench.http.inputs import Input, make
from bench.http.sides import Ours, Record, Theirs

_SHOWN_BYTES: Final = 2000


@dataclass
class Findings:
    """The result of many comparisons.

    Attributes:
        requests: How many requests were sent.
        kinds: How often connections ended how.
        differences: How often the two parted by which decided difference.
        faults: What is wrong, with the input's name and bytes.
    """

    requests: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    differences: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, others: Findings) -> None:
        """Add what was found elsewhere."""
        self.requests += others.requests
        self.kinds.update(others.kinds)
        self.differences.update(others.differences)
        self.faults += others.faults


@dataclass
class Batch:
    """Some inputs of a seed, and what was found.

    Attributes:
        seed: Of the run.
        first: The number of the first input; each is one connection.
        count: How many inputs.
        found: What was found.
    """

    seed: int
    first: int
    count: int = 100
    found: Findings = field(default_factory=Findings)

    def run(self) -> None:
        """Play the batch to its end, and judge it."""
        with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, SimulatedLoop)
            loop.set_exception_handler(self._take_failure)
            runner.run(self._play(loop))

    async def _play(self, loop: SimulatedLoop) -> None:
        inputs = [make(self.seed, self.first + number) for number in range(self.count)]
        ours, theirs = Ours(loop), Theirs(loop)
        our_records = await asyncio.gather(*map(ours.play, inputs))
        their_records = await asyncio.gather(*map(theirs.play, inputs))
        for given, our, their in zip(inputs, our_records, their_records, strict=True):
            verdict = await _judged(given, our, their, (ours, theirs))
            self._count(given, verdict)
        self.found.faults += ours.left_behind()

    def _count(self, given: Input, verdict: Verdict) -> None:
        self.found.requests += given.requests
        self.found.kinds[verdict.kind] += 1
        if verdict.difference:
            self.found.differences[verdict.difference] += 1
        if verdict.fault:
            shown = f"  {len(given.data)} bytes: {given.data[:_SHOWN_BYTES]!r}"
            self.found.faults.append(f"{given.name}: {verdict.fault}\n{shown}")

    def _take_failure(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.found.faults.append(f"{context['message']}: {context.get('exception')!r}")


async def _judged(given: Input, our: Record, their: Record, sides: tuple[Ours, Theirs]) -> Verdict:
    """Compare two records; where they differ, against the same bytes sent one by one."""
    if our.faults:
        return Verdict("fault", fault="; ".join(our.faults))
    if given.leaves:  # what was handed over by then is a matter of time
        return Verdict("left")
    if alike(our, their):
        return compare(our, their, given.data)
    ours, theirs = sides
    slowed = given.slowed()
    our_slow, their_slow = await ours.play(slowed), await theirs.play(slowed)
    by_cuts = compare(our, our_slow, given.data)
    if our_slow.faults or by_cuts.difference not in ("", TWO_FAULTS) or by_cuts.fault:
        return Verdict("fault", fault=f"the cuts matter:\n  {our}\n  {our_slow}")
    if alike(our, their_slow):
        return Verdict("different", SAME_PIECE)
    return compare(our, their_slow, given.data)
