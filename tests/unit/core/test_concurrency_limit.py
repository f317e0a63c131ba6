"""Requests that compute nothing are bounded by payer and in all."""

from __future__ import annotations

from weir_core.sched.concurrency import ConcurrencyLimit


def test_one_payer_cannot_take_the_places_of_another() -> None:
    limit = ConcurrencyLimit(per_payer=2, in_all=3)
    assert [limit.enter("a") for _ in range(3)] == [True, True, False]
    assert [limit.enter("b") for _ in range(2)] == [True, False]


def test_a_place_that_was_given_back_can_be_taken() -> None:
    limit = ConcurrencyLimit(per_payer=1, in_all=1)
    for payer in ("a", "b", "a"):
        assert limit.enter(payer)
        assert not limit.enter("c")
        limit.leave(payer)
