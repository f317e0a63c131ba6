"""One integer for the engine's queue: class first, deadline second.

This is the engine's edge: vLLM serves the lowest `priority` first, so Weir's ranks, where higher
is more important, are negated here and nowhere else. Below the rank come milliseconds until the
first token is due, so that vLLM's own priority queue is earliest-deadline-first inside a class.
The result fits 64 bits, and so does a rank of plus or minus a million.
"""

from __future__ import annotations

from typing import Final

_DEADLINE_BITS: Final = 40
NO_DEADLINE_MS: Final = (1 << _DEADLINE_BITS) - 1


def engine_priority(rank: int, due_s: float = float("inf")) -> int:
    """Return vLLM's `priority` for a rank and an instant of the machine's monotonic clock."""
    due_ms = int(min(max(due_s * 1000.0, 0.0), NO_DEADLINE_MS))
    return (-rank << _DEADLINE_BITS) + due_ms


def rank_of(priority: int) -> int:
    """Return the rank in an engine's priority."""
    return -(priority >> _DEADLINE_BITS)


def due_s_of(priority: int) -> float | None:
    """Return when the first token is due, in seconds of the monotonic clock, or None."""
    due_ms = priority & NO_DEADLINE_MS
    return None if due_ms == NO_DEADLINE_MS else due_ms / 1000.0
