"""Memory for bodies: no class and no payer can take what others need."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_core.sched.memory import BodyMemory

RANKS = (100, 0, -100)


def memory(*, several_payers: bool = True) -> BodyMemory:
    made = BodyMemory(1200)
    made.configure(RANKS, several_payers=several_payers)
    return made


def fill(held: BodyMemory, payer: str, rank: int, piece: int = 10) -> int:
    """Hold as much as one payer of one rank may, in pieces; return how much that was."""
    before = held.held_bytes
    while held.hold(payer, rank, piece):
        pass
    return held.held_bytes - before


@pytest.mark.parametrize(("rank", "most"), [(100, 1200), (0, 1000), (-100, 800)])
def test_a_rank_leaves_part_of_the_memory_to_the_ranks_above(rank: int, most: int) -> None:
    assert fill(memory(several_payers=False), "t", rank) == most


def test_lower_ranks_cannot_use_together_what_is_kept_for_a_higher_one() -> None:
    held = memory(several_payers=False)
    fill(held, "t", -100)
    fill(held, "t", 0)
    assert held.held_bytes == 1000
    assert held.hold("t", 100, 200)


def test_one_payer_of_many_gets_two_thirds_and_the_next_one_still_finds_some() -> None:
    held = memory()
    assert fill(held, "greedy", 100) == 800
    assert fill(held, "other", 100) > 200
    assert held.hold("third", 100, 50)


def test_a_payer_that_holds_nothing_may_hold_one_large_body() -> None:
    assert memory().hold("t", 100, 1100)
    assert not memory().hold("t", 100, 1201)


def test_what_is_released_can_be_held_again() -> None:
    held = memory()
    assert held.hold("t", -100, 800)
    assert not held.hold("u", -100, 1)
    held.release("t", -100, 800)
    assert held.held_bytes == 0
    assert held.hold("u", -100, 800)


def test_a_rank_that_is_gone_may_use_what_there_is() -> None:
    assert memory(several_payers=False).hold("t", 7, 1200)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(RANKS), st.integers(1, 500)), max_size=60
    )
)
def test_the_sum_is_what_is_held_and_never_above_the_limit(
    asked: list[tuple[str, int, int]],
) -> None:
    held = memory()
    taken = [each for each in asked if held.hold(*each)]
    assert held.held_bytes == sum(size for _, _, size in taken) <= 1200
    for each in taken:
        held.release(*each)
    assert held.held_bytes == 0
