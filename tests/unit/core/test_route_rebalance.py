"""Late binding: what waits moves for a clear gain, within the peer's room, and not for ever."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_core.route.load import ask_of, load_of
from weir_core.route.rebalance import MOST_MOVES, leaving, moves_to
from weir_core.route.router import HOP_LIMIT, Router
from weir_core.route.types import Ask, ClassLoad, LoadVector, Move
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.types import BUILT_IN_CLASSES, EngineFacts, EngineKind, Request

ENGINE = EngineFacts(EngineKind.WEIR, 256, 8192, 396_000)
POLICIES = {policy.name: policy for policy in BUILT_IN_CLASSES}
IDLE = LoadVector(
    classes=tuple(ClassLoad(policy.name, 0.0, 0) for policy in BUILT_IN_CLASSES),
    token_s=50e-6,
    step_s=0.01,
    light_step_s=0.009,
    step_tokens=8192,
    sequences_left=200,
    kv_tokens_left=300_000,
)


def request(serial: int, class_name: str = "standard", prompt_tokens: int = 4000) -> Request:
    return Request(f"q{serial}", "t", class_name, 0.0, 4 * prompt_tokens, prompt_tokens)


def backlogged(*waiting: Request, engine: EngineFacts | None = ENGINE) -> Scheduler:
    """Return a scheduler whose engine is busy, so that these wait."""
    made = Scheduler(SchedulerSettings(engine))
    if engine is not None:
        made.on_arrival(request(-1, "interactive", 40_000), 0.0)
    for each in waiting:
        made.on_arrival(each, 0.0)
    assert made.backlog() == len(waiting)
    return made


def moved(
    scheduler: Scheduler,
    peer: LoadVector = IDLE,
    been: Mapping[str, tuple[int, tuple[str, ...]]] | None = None,
    heard_s: float = 0.0,
    now: float = 0.0,
    own: LoadVector | None = None,
) -> list[Move]:
    router = Router("self")
    router.on_load("peer", peer, 0.0, heard_s)

    def ask_for(waiting: Request) -> Ask:
        ask = ask_of(waiting, POLICIES[waiting.class_name], scheduler.estimator, now)
        hops, tried = (been or {}).get(waiting.request_id, (0, ()))
        return msgspec.structs.replace(ask, hops=hops, tried=tried)

    own = own or load_of(scheduler, now)
    return moves_to("peer", router, scheduler, own, ask_for, now)


def ids(moves: list[Move]) -> list[str]:
    return [move.request_id for move in moves]


def test_the_most_important_and_oldest_move_first_and_only_a_few() -> None:
    waiting = [request(1, "batch"), *(request(serial) for serial in range(2, 9))]
    moves = moved(backlogged(*waiting))
    assert moves == [Move(f"q{serial}", "peer") for serial in range(2, 2 + MOST_MOVES)]
    assert ids(moved(backlogged(request(1, "batch"), request(2)))) == ["q2", "q1"]


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(
            msgspec.structs.replace(
                IDLE, classes=tuple(ClassLoad(name, 4.0, 0) for name in POLICIES)
            ),
            id="it has a backlog too",
        ),
        pytest.param(msgspec.structs.replace(IDLE, sequences_left=0), id="it has no slot"),
        pytest.param(msgspec.structs.replace(IDLE, kv_tokens_left=4000), id="it has no KV room"),
        pytest.param(msgspec.structs.replace(IDLE, draining=True), id="it drains"),
        pytest.param(msgspec.structs.replace(IDLE, token_s=2e-3), id="its prompts take too long"),
    ],
)
def test_nothing_moves_to_a_peer_where_it_would_not_begin_sooner(peer: LoadVector) -> None:
    assert moved(backlogged(request(1)), peer) == []


def test_what_waits_behind_an_engine_that_hangs_moves() -> None:
    nothing_before = msgspec.structs.replace(IDLE, sequences_left=0)
    hangs = msgspec.structs.replace(nothing_before, overdue_s=1.0)
    scheduler = backlogged(request(1))
    for own, wanted in ((nothing_before, []), (hangs, ["q1"])):
        assert ids(moved(scheduler, own=own)) == wanted


def test_nothing_moves_to_a_peer_that_is_silent_or_unknown() -> None:
    assert moved(backlogged(request(1)), heard_s=0.0, now=6.0) == []
    scheduler = backlogged(request(1))
    assert moves_to("x", Router("self"), scheduler, load_of(scheduler, 0.0), _no_ask, 0.0) == []


def _no_ask(waiting: Request) -> Ask:
    raise AssertionError(f"nobody has to know what {waiting.request_id} asks")


def test_no_more_moves_than_the_peer_has_room_for() -> None:
    scheduler = backlogged(*(request(serial) for serial in range(1, 9)))
    two_slots = msgspec.structs.replace(IDLE, sequences_left=2)
    assert len(moved(scheduler, two_slots)) == 2


def test_each_move_makes_the_peer_less_attractive() -> None:
    # The peer is half as fast: 40,000 tokens here are 2 s there after the fourth prompt.
    scheduler = backlogged(*(request(serial, prompt_tokens=12_000) for serial in range(1, 9)))
    slow = msgspec.structs.replace(IDLE, token_s=80e-6)
    assert 0 < len(moved(scheduler, slow)) < MOST_MOVES


def test_a_request_that_was_at_the_peer_or_at_its_last_hop_stays() -> None:
    scheduler = backlogged(request(1), request(2), request(3))
    been = {"q1": (1, ("peer",)), "q2": (HOP_LIMIT, ()), "q3": (1, ("other",))}
    assert ids(moved(scheduler, been=been)) == ["q3"]


def test_what_could_not_be_on_time_there_does_not_move() -> None:
    late = msgspec.structs.replace(request(1), ttft_target_s=0.15)
    assert moved(backlogged(late)) == []


def test_all_that_waits_leaves_in_order_of_class_and_age() -> None:
    waiting = [request(1, "batch"), request(2), request(3, "interactive"), request(4)]
    assert leaving(backlogged(*waiting)) == ["q3", "q2", "q4", "q1"]
    gone = backlogged(*waiting, engine=None)
    assert leaving(gone) == ["q3", "q2", "q4", "q1"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(POLICIES)),
            st.integers(1, 60_000),
            st.integers(0, HOP_LIMIT),
            st.booleans(),
        ),
        max_size=60,
    ),
    st.integers(0, 6),
    st.integers(0, 60_000),
    st.floats(0.0, 3.0),
)
def test_moves_are_few_fit_and_never_repeat(
    waiting: list[tuple[str, int, int, bool]], slots: int, room: int, wait_s: float
) -> None:
    requests = [request(serial, *each[:2]) for serial, each in enumerate(waiting)]
    been = {
        f"q{serial}": (hops, ("peer",) if was_there else ())
        for serial, (_, _, hops, was_there) in enumerate(waiting)
    }
    scheduler = Scheduler(SchedulerSettings(ENGINE))
    scheduler.on_arrival(request(-1, "interactive", 40_000), 0.0)
    for each in requests:
        scheduler.on_arrival(each, 0.0)
    peer = msgspec.structs.replace(
        IDLE,
        classes=tuple(ClassLoad(name, wait_s, 0) for name in POLICIES),
        sequences_left=slots,
        kv_tokens_left=room,
    )
    moves = moved(scheduler, peer, been)
    assert moves == moved(scheduler, peer, been)
    assert len(moves) <= min(MOST_MOVES, slots)
    assert len({move.request_id for move in moves}) == len(moves)
    assert sum(scheduler.tickets[name].prompt_tokens for name in ids(moves)) <= room
    for name in ids(moves):
        assert been[name][0] < HOP_LIMIT
        assert "peer" not in been[name][1]
