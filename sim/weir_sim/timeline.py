"""A run over its time, in the numbers that the console's page draws of a live service."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from weir_sim.report import quantile, ttft
from weir_sim.run import Sample, SimResult

_WINDOW_S: Final = 60.0
_RATE_S: Final = 1.0
"""Least time that a rate is of: samples may be closer than an engine's steps."""


@dataclass(frozen=True, slots=True)
class Moment:
    """All replicas at one instant; the numbers by class leave out classes without any.

    Attributes:
        waiting: In the pools, by class.
        at_engine: Sent to the engines, those that wait there included.
        engine_waiting: In the engines' own queues.
        output_tokens_s: Of the last second, or since the sample before where that is longer ago.
        ttft_p99_s: Of the last minute, by class.
        rejected: In the last minute, by class; a client that comes back is counted each time.
    """

    at_s: float
    waiting: dict[str, int]
    at_engine: int
    engine_waiting: int
    output_tokens_s: float
    ttft_p99_s: dict[str, float]
    rejected: dict[str, int]


def timeline(result: SimResult) -> tuple[Moment, ...]:
    """Return the moments of a run, one for each of its samples but the first."""
    first_tokens: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for trip in result.trips:
        if trip.first_token_s >= 0:
            first_tokens[trip.request.class_name].append((trip.first_token_s, ttft(trip)))
    refusals: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for at_s, name in result.refusals:
        refusals[name].append((at_s, 0.0))
    for events in (*first_tokens.values(), *refusals.values()):
        events.sort()
    moments = []
    samples, first = result.samples, 0
    for index in range(1, len(samples)):
        while first + 1 < index and samples[first + 1].at_s <= samples[index].at_s - _RATE_S:
            first += 1
        moments.append(_moment(samples[first], samples[index], first_tokens, refusals))
    return tuple(moments)


def _moment(
    before: Sample,
    sample: Sample,
    first_tokens: dict[str, list[tuple[float, float]]],
    refusals: dict[str, list[tuple[float, float]]],
) -> Moment:
    tokens = sample.output_tokens - before.output_tokens
    recent = {name: _last_minute(events, sample.at_s) for name, events in first_tokens.items()}
    p99 = {name: quantile(sorted(values), 0.99) for name, values in recent.items()}
    refused = {name: len(_last_minute(events, sample.at_s)) for name, events in refusals.items()}
    return Moment(
        round(sample.at_s, 3),
        sample.waiting,
        sample.engine_waiting + sample.running,
        sample.engine_waiting,
        round(tokens / (sample.at_s - before.at_s), 1),
        {name: value for name, value in p99.items() if value is not None},
        {name: number for name, number in refused.items() if number},
    )


def _last_minute(events: list[tuple[float, float]], at_s: float) -> list[float]:
    """Return the values of the events of the last minute; `events` ascend."""
    begin = bisect_right(events, at_s - _WINDOW_S, key=lambda event: event[0])
    end = bisect_right(events, at_s, key=lambda event: event[0])
    return [value for _, value in events[begin:end]]
