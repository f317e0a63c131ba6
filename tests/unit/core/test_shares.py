"""How the time of the engine's steps is divided among requests."""

from __future__ import annotations

import pytest

from weir_core.sched.shares import Share, StepShares


def test_requests_that_fill_the_steps_alone_share_all_of_their_time() -> None:
    shares, one, two = StepShares(), Share(1), Share(1)
    rank = shares.on_step(0, 0.2, 300, 0)
    one.start(rank, 100, 0)
    two.start(rank, 300, 100)
    for _ in range(9):
        shares.on_step(0, 0.02, 0, 2)
    one.stop(10)
    two.stop(10)
    assert one.engine_s + two.engine_s == pytest.approx(0.2 + 9 * 0.02)
    assert two.engine_s - one.engine_s == pytest.approx(0.2 / 3)
    assert (two.prompt_tokens, two.cached_tokens) == (300, 100)


def test_a_prompt_in_pieces_is_charged_for_all_of_them() -> None:
    shares, share = StepShares(), Share(1)
    shares.on_step(0, 0.2, 100, 0)
    share.start(shares.on_step(0, 0.1, 20, 0), 120, 0)
    assert share.engine_s == pytest.approx(0.3)


def test_an_answer_is_charged_for_its_own_tokens_in_steps_that_others_shared() -> None:
    shares, share = StepShares(), Share(1)
    share.start(shares.on_step(0, 0.0, 10, 0), 10, 0)
    for _ in range(8):
        shares.on_step(0, 0.04, 0, 4)
    share.stop(5)  # the first came with the prompt; while a client was slow the others went on
    assert share.engine_s == pytest.approx(4 * 0.01)


def test_an_answer_whose_tokens_are_not_known_is_charged_for_each_step() -> None:
    shares, share = StepShares(), Share(2)
    share.start(shares.on_step(0, 0.0, 10, 0), 10, 0)
    shares.on_step(0, 0.04, 0, 4)
    share.stop(None)
    assert share.engine_s == pytest.approx(0.02)


def test_what_was_computed_in_vain_costs_time_but_its_tokens_count_once() -> None:
    shares, share = StepShares(), Share(1)
    share.start(shares.on_step(0, 0.1, 10, 0), 10, 0)
    share.lose()
    share.start(shares.on_step(0, 0.1, 10, 0), 10, 0)
    share.stop(1)
    assert share.engine_s == pytest.approx(0.2)
    assert share.prompt_tokens == 10


def test_ranks_are_parts_of_one_replica() -> None:
    shares, share = StepShares(), Share(1)
    shares.on_step(0, 0.1, 10, 0)
    share.start(shares.on_step(1, 0.1, 10, 0), 10, 0)
    assert share.engine_s == pytest.approx(0.05)


def test_it_ends_twice_or_before_it_began_without_a_charge() -> None:
    shares, share = StepShares(), Share(1)
    share.stop(7)
    share.start(shares.on_step(0, 0.1, 0, 0), 10, 10)
    share.stop(7)
    share.stop(7)
    assert share.engine_s == 0.0
