"""How the time of the engine's steps is divided among requests."""

from __future__ import annotations

import pytest

from weir_core.sched.shares import Share, StepShares
from weir_core.sched.types import End


def test_requests_that_fill_the_steps_alone_share_all_of_their_time() -> None:
    shares, one, two = StepShares(), Share(1), Share(1)
    rank = shares.on_step(0, 0.2, 300, 0)
    one.start(rank, 100, 0)
    two.start(rank, 300, 100)
    for _ in range(9):
        shares.on_step(0, 0.02, 0, 2)
    one.charge(10)
    two.charge(10)
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
    share.charge(5)  # the first came with the prompt; while a client was slow the others went on
    assert share.engine_s == pytest.approx(4 * 0.01)


def test_an_answer_whose_tokens_are_not_known_is_charged_for_each_step() -> None:
    shares, share = StepShares(), Share(2)
    share.start(shares.on_step(0, 0.0, 10, 0), 10, 0)
    shares.on_step(0, 0.04, 0, 4)
    share.charge(None)
    assert share.engine_s == pytest.approx(0.02)


def test_what_is_computed_again_after_a_preemption_costs_time_but_is_no_prompt() -> None:
    shares, share = StepShares(), Share(1)
    share.start(shares.on_step(0, 0.1, 10, 0), 10, 0)
    shares.on_step(0, 0.02, 0, 1)
    rank = shares.on_step(0, 0.12, 12, 0)  # the prompt and two tokens, once more
    share.end(rank, End("r", "length", 10, 0, 3, 22, 2))
    share.charge(share.output_tokens)
    assert share.engine_s == pytest.approx(0.1 + 0.02 + 0.12, rel=0.1)
    assert (share.prompt_tokens, share.output_tokens, share.has_ended) == (10, 3, True)
    assert (rank.prompt_tokens, rank.prompt_s) == (0, 0)


def test_a_prompt_that_was_given_up_is_charged_and_counts_no_tokens() -> None:
    shares, share = StepShares(), Share(1)
    share.end(shares.on_step(0, 0.1, 10, 0), End("r", "abort", 0, 0, 0, 10, 0))
    share.charge(0)
    assert share.engine_s == pytest.approx(0.1)
    assert (share.prompt_tokens, share.reasons) == (0, ("abort",))


def test_it_has_ended_when_all_of_its_answers_have() -> None:
    shares, share = StepShares(), Share(2)
    rank = shares.on_step(0, 0.1, 20, 0)
    share.start(rank, 10, 0)
    share.end(rank, End("r", "stop", 10, 0, 4, 10, 1))
    assert not share.has_ended
    share.end(rank, End("r", "length", 0, 0, 6, 10, 1))
    assert (share.has_ended, share.output_tokens) == (True, 10)
    assert (share.prompt_tokens, share.reasons) == (10, ("stop", "length"))
    assert share.engine_s == pytest.approx(0.1)


def test_ranks_are_parts_of_one_replica() -> None:
    shares, share = StepShares(), Share(1)
    shares.on_step(0, 0.1, 10, 0)
    share.start(shares.on_step(1, 0.1, 10, 0), 10, 0)
    assert share.engine_s == pytest.approx(0.05)


def test_it_ends_twice_or_before_it_began_without_a_charge() -> None:
    shares, share = StepShares(), Share(1)
    share.charge(7)
    share.start(shares.on_step(0, 0.1, 0, 0), 10, 10)
    share.charge(7)
    share.charge(7)
    assert share.engine_s == 0.0
