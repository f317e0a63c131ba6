"""Waits between the restarts of a crashed process."""

from __future__ import annotations

from weir_cli.backoff import Backoff


def test_doubles_from_one_second_up_to_thirty() -> None:
    backoff = Backoff()
    waits = [backoff.after_crash(was_healthy=False) for _ in range(8)]
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_starts_over_after_the_process_had_become_healthy() -> None:
    backoff = Backoff()
    for _ in range(4):
        backoff.after_crash(was_healthy=False)
    assert backoff.after_crash(was_healthy=True) == 1
    assert backoff.after_crash(was_healthy=False) == 2


def test_does_not_overflow_after_a_night_of_crashes() -> None:
    backoff = Backoff(crashes_in_a_row=100_000)
    assert backoff.after_crash(was_healthy=False) == 30
