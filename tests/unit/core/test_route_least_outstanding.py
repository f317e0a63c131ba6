"""Which replica a front asks: the ready one with the least to do, never a silent one."""

from __future__ import annotations

from weir_core.route.least_outstanding import LeastOutstanding


def router(*ready: str, out: tuple[str, ...] = ()) -> LeastOutstanding:
    made = LeastOutstanding([*ready, *out])
    for name in ready:
        made.on_probe(name, ready=True)
    return made


def chosen(made: LeastOutstanding, *tried: str, now: float = 0.0) -> str | None:
    found = made.choose(tried, now)
    return None if found is None else found[0]


def test_equal_replicas_take_turns() -> None:
    made = router("a", "b")
    seen = []
    for _ in range(4):
        found = made.choose((), 0.0)
        assert found is not None
        seen.append(found[0])
        made.on_end(*found)
    assert seen == ["a", "b", "a", "b"]


def test_the_one_with_fewer_outstanding_gets_the_next() -> None:
    made = router("a", "b")
    assert [chosen(made) for _ in range(4)] == ["a", "b", "a", "b"]
    assert (made.outstanding("a"), made.outstanding("b")) == (2, 2)


def test_a_replica_that_was_tried_is_not_asked_again() -> None:
    made = router("a", "b")
    assert made.has_others(["a"])
    assert chosen(made, "a") == "b"
    assert chosen(made, "a", "b") is None
    assert not made.has_others(["a", "b"])


def test_only_ready_replicas_are_asked_and_a_lost_one_is_out_until_its_next_probe() -> None:
    made = router("a", "b", out=("c",))
    made.on_lost("a")
    assert [chosen(made), chosen(made)] == ["b", "b"]
    made.on_probe("a", ready=True)
    assert chosen(made) == "a"


def test_a_replica_that_is_silent_while_another_answers_gets_nothing_new() -> None:
    made = router("a", "b")
    assert chosen(made, now=0.0) == "a"  # and is never answered
    second = made.choose((), 0.1)
    assert second is not None
    made.on_begun(*second, now=0.2)
    third = made.choose((), 0.3)
    assert third is not None
    made.on_end(*second)
    assert [chosen(made, now=3.0) for _ in range(3)] == ["b", "b", "b"]
    made.on_begun("a", 1, now=3.1)
    assert chosen(made, now=3.2) == "a"


def test_a_replica_that_is_slow_while_the_others_are_too_is_not_silent() -> None:
    made = router("a", "b")
    assert [chosen(made, now=0.0), chosen(made, now=0.0)] == ["a", "b"]
    assert [chosen(made, now=60.0), chosen(made, now=60.0)] == ["a", "b"]


def test_where_all_left_are_silent_one_is_asked_all_the_same() -> None:
    made = router("a", "b")
    assert chosen(made, now=0.0) == "a"
    other = made.choose((), 0.0)
    assert other is not None
    made.on_begun(*other, now=1.0)
    assert chosen(made, "b", now=5.0) == "a"
