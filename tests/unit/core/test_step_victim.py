"""Who gives way to a higher class, and who may not be asked again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_core.step.victim import MAX_TIMES, RECOMPUTE_SHARE, Holder, Need, Preemptions

INTERACTIVE, STANDARD, BATCH = 100, 0, -100


@pytest.mark.parametrize(
    ("need", "holders", "want"),
    [
        pytest.param(
            Need(STANDARD, 1, 0), [Holder("equal", STANDARD, 10, 1)], [], id="never an equal"
        ),
        pytest.param(
            Need(INTERACTIVE, 1, 0),
            [Holder("standard", STANDARD, 5, 1), Holder("batch", BATCH, 500, 4)],
            ["batch"], id="the lowest class first",
        ),
        pytest.param(
            Need(INTERACTIVE, 1, 0),
            [Holder("much", BATCH, 900, 8), Holder("little", BATCH, 90, 1)],
            ["little"], id="in it, who loses least",
        ),
        pytest.param(
            Need(INTERACTIVE, 1, 6),
            [Holder("a", BATCH, 10, 1), Holder("b", BATCH, 20, 2), Holder("c", BATCH, 700, 6)],
            ["c"], id="nobody besides who is needed",
        ),
        pytest.param(
            Need(INTERACTIVE, 0, 9), [Holder("a", BATCH, 10, 4)], [], id="nobody in vain"
        ),
        pytest.param(Need(INTERACTIVE, 0, 0), [Holder("a", BATCH, 1, 4)], [], id="nothing lacks"),
        pytest.param(
            Need(INTERACTIVE, 1, 0),
            [Holder("long", BATCH, 9000, 70), Holder("standard", STANDARD, 5, 1)],
            ["long"], id="one that costs more than can be saved up",
        ),
        pytest.param(
            Need(INTERACTIVE, 0, 9),
            [Holder("batch", BATCH, 9000, 2), Holder("standard", STANDARD, 5, 9)],
            ["standard"], id="a cheap one of the next class behind a dear one that is too little",
        ),
        pytest.param(
            Need(INTERACTIVE, 0, 100),
            [Holder("a", BATCH, 9000, 60), Holder("b", BATCH, 9001, 60)],
            ["a", "b"], id="several that cost more than can be saved up",
        ),
    ],
)  # fmt: skip
def test_chooses(need: Need, holders: list[Holder], want: list[str]) -> None:
    chosen = Preemptions(burst_tokens=8192).choose(need, holders)
    assert [one.request_id for one in chosen] == want


def test_nobody_goes_again_before_computing_more_than_was_lost() -> None:
    preemptions, need = Preemptions(100_000), Need(INTERACTIVE, 1, 0)
    assert preemptions.choose(need, [Holder("a", BATCH, 500, 4)])
    assert not preemptions.choose(need, [Holder("a", BATCH, 500, 4)])
    assert preemptions.choose(need, [Holder("a", BATCH, 501, 4)])


def test_nobody_goes_more_often_than_the_bound_unless_it_is_a_new_request() -> None:
    preemptions, need = Preemptions(100_000), Need(INTERACTIVE, 1, 0)
    for times in range(MAX_TIMES):
        assert preemptions.choose(need, [Holder("a", BATCH, 10 + times, 1)])
    assert not preemptions.choose(need, [Holder("a", BATCH, 5000, 40)])
    preemptions.forget("a")
    assert preemptions.choose(need, [Holder("a", BATCH, 10, 1)])


def test_a_debt_is_earned_back_before_anybody_goes_again() -> None:
    preemptions, need = Preemptions(1000), Need(INTERACTIVE, 1, 0)
    assert preemptions.choose(need, [Holder("long", BATCH, 5000, 40)])
    preemptions.earn(int(4000 / RECOMPUTE_SHARE))
    assert not preemptions.is_worth_a_look("high")
    assert not preemptions.choose(need, [Holder("short", BATCH, 1, 1)])
    preemptions.earn(int(1 / RECOMPUTE_SHARE))
    assert preemptions.is_worth_a_look("high")
    assert preemptions.choose(need, [Holder("short", BATCH, 1, 1)])


def test_a_whole_batch_goes_without_looking_at_each_one_for_each_other() -> None:
    class Counted(int):
        reads = 0

        def __radd__(self, other: int) -> int:
            Counted.reads += 1
            return other + int(self)

    holders = [Holder(f"r{n}", BATCH, n, Counted(4)) for n in range(1000)]
    chosen = Preemptions(10_000).choose(Need(INTERACTIVE, 0, 3998), holders)
    assert chosen == holders
    assert Counted.reads <= 2 * len(holders)


HOLDERS = st.lists(
    st.builds(
        Holder,
        request_id=st.integers(0, 9).map("r{}".format),
        rank=st.sampled_from([INTERACTIVE, STANDARD, BATCH]),
        computed=st.integers(0, 4000),
        blocks=st.integers(0, 32),
    ),
    max_size=10,
    unique_by=lambda one: one.request_id,
)
NEEDS = st.builds(
    Need,
    rank=st.sampled_from([INTERACTIVE, STANDARD, BATCH]),
    slots=st.integers(0, 1),
    blocks=st.integers(0, 40),
)


@given(st.lists(st.tuples(NEEDS, HOLDERS, st.integers(0, 4000)), max_size=30))
def test_whatever_comes_only_lower_classes_go_and_only_while_there_is_credit(
    rounds: list[tuple[Need, list[Holder], int]],
) -> None:
    preemptions, burst = Preemptions(4000), 4000
    earned = lost = 0.0
    times: dict[str, int] = {}
    for need, holders, computed in rounds:
        preemptions.earn(computed)
        earned += RECOMPUTE_SHARE * computed
        chosen = preemptions.choose(need, holders)
        if chosen:
            assert lost < burst + earned
            assert len(chosen) >= need.slots
            assert sum(one.blocks for one in chosen) >= need.blocks
        for one in chosen:
            assert one.rank < need.rank
            lost += one.computed
            times[one.request_id] = times.get(one.request_id, 0) + 1
    assert all(count <= MAX_TIMES for count in times.values())
