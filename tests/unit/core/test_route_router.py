"""Where a request goes: few candidates, the best one by its own speed, nothing to the unfit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

import msgspec
import pytest

from weir_core.route.router import HOP_LIMIT, MOST_CANDIDATES, Router
from weir_core.route.types import Ask, Candidate, ClassLoad, Forward, Keep, LoadVector, Nowhere

IDLE = LoadVector(
    classes=(ClassLoad("interactive", 0.0, 0), ClassLoad("batch", 0.0, 0)),
    token_s=50e-6,
    step_s=0.01,
    light_step_s=0.009,
    step_tokens=8192,
    sequences_left=200,
    kv_tokens_left=300_000,
)
CHAT = Ask(
    "q1", "interactive", 100, prompt_tokens=1000, output_tokens=100,
    left_s=1.0, ttft_target_s=1.0, tpot_target_s=0.05,
)  # fmt: skip
NIGHTLY = Ask(
    "q2", "batch", -100, prompt_tokens=1000, output_tokens=100,
    left_s=60.0, ttft_target_s=60.0, tpot_target_s=0.5,
)  # fmt: skip


def loaded(wait_s: float = 0.0, ahead: int = 0, **other: float | bool) -> LoadVector:
    classes = tuple(ClassLoad(each.name, wait_s, ahead) for each in IDLE.classes)
    return msgspec.structs.replace(IDLE, classes=classes, **other)


def slowed(load: LoadVector, speed: float) -> LoadVector:
    return msgspec.structs.replace(
        load,
        token_s=load.token_s / speed,
        step_s=load.step_s / speed,
        light_step_s=load.light_step_s / speed,
    )


def router(**loads: LoadVector) -> Router:
    made = Router("self")
    for name, load in loads.items():
        made.on_load(name, load, 0.0, now=0.0)
    return made


def routed(
    made: Router,
    ask: Ask = CHAT,
    own: LoadVector | None = IDLE,
    cached: Mapping[str, int] | None = None,
    now: float = 0.0,
    seed: int = 0,
) -> Keep | Forward | Nowhere:
    cached = cached or {}
    found = made.candidates(ask, cached, now, random.Random(seed))
    return made.choose(ask, found, own, cached, now)


def target(route: Keep | Forward | Nowhere) -> str:
    return route.replica if isinstance(route, Forward) else "self"


def judged(route: Keep | Forward | Nowhere, name: str) -> Candidate:
    assert not isinstance(route, Nowhere)
    return next(each for each in route.candidates if each.replica == name)


def test_without_peers_a_replica_serves_alone() -> None:
    route = routed(router(), own=loaded(wait_s=99.0))
    assert isinstance(route, Keep)
    assert route.reason == "alone"


def test_a_request_leaves_a_busy_replica_for_an_idle_one() -> None:
    route = routed(router(other=IDLE), own=loaded(wait_s=0.5))
    assert isinstance(route, Forward)
    assert (route.replica, route.hops, route.reason) == ("other", 1, "best")
    assert len(route.candidates) == 2


def test_a_request_stays_where_another_replica_is_better_by_less_than_the_hop() -> None:
    made = Router("self", hop_s=0.05)
    made.on_load("other", IDLE, 0.0, now=0.0)
    assert target(routed(made, own=loaded(wait_s=0.04))) == "self"
    assert target(routed(made, own=loaded(wait_s=0.06))) == "other"
    assert judged(routed(made), "other").hop_ms == pytest.approx(50.0)
    assert judged(routed(made), "self").hop_ms == 0.0


def test_of_two_equal_replicas_the_one_with_fewer_sequences_is_better_and_credit_counts() -> None:
    made = router(fuller=loaded(sequences=40), emptier=loaded(sequences=20))
    own = loaded(wait_s=9.0)
    assert target(routed(made, own=own)) == "emptier"
    for serial in range(30):
        made.on_sent("emptier", msgspec.structs.replace(CHAT, request_id=f"s{serial}"), 1000)
    route = routed(made, msgspec.structs.replace(CHAT, prompt_tokens=1), own=own)
    gap_ms = judged(route, "emptier").decode_ms - judged(route, "fuller").decode_ms
    assert gap_ms == pytest.approx(10 * 0.3 * 9.0)


def test_credit_is_counted_by_rank_until_it_ended_or_the_vector_shows_it() -> None:
    made = router(other=IDLE)
    asks = [CHAT, NIGHTLY, msgspec.structs.replace(CHAT, request_id="q3", sequences=3)]

    def credit(rank: int, now: float = 0.0) -> tuple[int, int, int]:
        view = made.view_of("other", "interactive", rank, now)
        assert view is not None
        return view.sent_tokens, view.sent_sequences, view.sent_kv_tokens

    for ask in [*asks, asks[0]]:  # sent again it counts once
        made.on_sent("other", ask, cached=400)
    assert credit(rank=100) == (1200, 5, 3300)
    assert credit(rank=-100) == (1800, 5, 3300)
    made.on_ended("q1")
    made.on_acknowledged("q2", 1.0)
    made.on_load("other", IDLE, 0.0, now=1.0)
    assert credit(rank=-100, now=1.0) == (600, 3, 1100)
    made.on_ended("q2")
    made.on_refused("q3", 1.0)
    made.on_load("other", IDLE, 0.0, now=2.0)
    assert credit(rank=-100, now=2.0) == (0, 0, 0)


class Draws(random.Random):
    """Counts what is drawn."""

    drawn = 0

    def random(self) -> float:
        self.drawn += 1
        return super().random()


def test_where_all_replicas_are_found_no_more_are_drawn() -> None:
    rng = Draws(1)
    assert router(other=IDLE).candidates(CHAT, {}, 0.0, rng) == ["self", "other"]
    assert rng.drawn == 2


def test_a_sequence_counts_by_the_pace_of_its_replica() -> None:
    made = router(fast=loaded(sequences=40), slow=slowed(loaded(sequences=20), 0.25))
    route = routed(made, msgspec.structs.replace(NIGHTLY, output_tokens=0), own=loaded(wait_s=9.0))
    assert judged(route, "slow").decode_ms == 2 * judged(route, "fast").decode_ms


def test_a_draining_replica_gets_nothing_until_it_says_otherwise() -> None:
    made = router(other=loaded(draining=True))
    assert target(routed(made, own=loaded(wait_s=9.0))) == "self"
    made.on_load("other", IDLE, 0.0, now=1.0)
    assert target(routed(made, own=loaded(wait_s=9.0), now=1.0)) == "other"


def test_a_silent_replica_gets_nothing_until_it_is_heard_again() -> None:
    made = router(other=IDLE)
    own = loaded(wait_s=9.0)
    assert target(routed(made, own=own, now=4.9)) == "other"
    assert target(routed(made, own=own, now=5.1)) == "self"
    made.on_load("other", IDLE, 0.0, now=5.2)
    assert target(routed(made, own=own, now=5.3)) == "other"


def test_an_engine_that_hangs_is_expected_to_go_on_so_and_makes_no_other_look_worse() -> None:
    made = router(hangs=loaded(overdue_s=2.0), other=loaded(ahead=2000))
    route = routed(made, own=loaded(wait_s=0.5))
    assert target(route) == "other"
    assert judged(route, "hangs").wait_ms == pytest.approx(2e3 + judged(route, "self").wait_ms, 0.3)
    assert not judged(route, "hangs").feasible
    assert judged(route, "other").feasible


def test_a_refusing_replica_gets_nothing_for_longer_each_time() -> None:
    made, own, now = router(other=IDLE), loaded(wait_s=9.0), 0.0
    pauses = []
    for _ in range(3):
        made.on_sent("other", CHAT, 0)
        made.on_refused("q1", now)
        refused_s = now
        while target(routed(made, own=own, now=now)) == "self":
            now += 0.01
            made.on_load("other", IDLE, 0.0, now)
        pauses.append(round(now - refused_s, 1))
    assert pauses == [0.1, 0.2, 0.4]


def test_an_acknowledgement_ends_a_row_of_refusals() -> None:
    made = router(other=IDLE)
    for now in (0.0, 1.0):
        made.on_sent("other", CHAT, 0)
        made.on_refused("q1", now)
    made.on_sent("other", CHAT, 0)
    made.on_acknowledged("q1", 2.0)
    made.on_sent("other", NIGHTLY, 0)
    made.on_refused("q2", 3.0)
    made.on_load("other", IDLE, 0.0, 3.15)
    assert target(routed(made, own=loaded(wait_s=9.0), now=3.15)) == "other"


def test_a_replica_that_is_gone_gets_nothing() -> None:
    made = router(a=IDLE, b=IDLE, c=IDLE)
    made.on_gone("a")
    made.on_gone("never-known")
    targets = {target(routed(made, own=loaded(wait_s=9.0), seed=seed)) for seed in range(50)}
    assert targets == {"b", "c"}


def test_a_replica_that_returned_a_request_is_not_asked_for_it_again() -> None:
    ask = msgspec.structs.replace(CHAT, hops=1, tried=("other",))
    made = router(other=IDLE)
    assert target(routed(made, ask, own=loaded(wait_s=9.0))) == "self"
    assert target(routed(made, ask, own=loaded(wait_s=9.0), cached={"other": 900})) == "self"


def test_at_the_hop_limit_a_request_stays() -> None:
    ask = msgspec.structs.replace(CHAT, hops=HOP_LIMIT)
    route = routed(router(other=IDLE), ask, own=loaded(wait_s=9.0))
    assert isinstance(route, Keep)
    assert route.reason == "hop-limit"
    front = Router("")
    front.on_load("other", IDLE, 0.0, now=0.0)
    assert routed(front, ask, own=None) == Nowhere("q1")


def test_a_sidecar_without_an_engine_sends_everything_on() -> None:
    made = Router("")
    assert routed(made, own=None) == Nowhere("q1")
    made.on_load("other", IDLE, 0.0, now=0.0)
    route = routed(made, own=None)
    assert isinstance(route, Forward)
    assert (route.replica, route.reason) == ("other", "no-engine-here")


def test_a_replica_whose_engine_is_gone_sends_requests_away_and_keeps_them_where_it_cannot() -> (
    None
):
    down = loaded(draining=True)
    assert target(routed(router(other=loaded(wait_s=0.5)), own=down)) == "other"
    assert isinstance(routed(router(), own=down), Keep)


def test_candidates_are_few_and_never_all() -> None:
    made = Router("self")
    for number in range(100):
        made.on_load(f"r{number}", IDLE, 0.0, now=0.0)
    ask = msgspec.structs.replace(CHAT, session_replica="r7")
    cached = {"r1": 100, "r2": 900, "r3": 500}
    found = made.candidates(ask, cached, 0.0, random.Random(0))
    assert found[:4] == ["self", "r7", "r2", "r3"]
    assert len(set(found)) == len(found) == MOST_CANDIDATES


def test_equal_inputs_give_equal_choices() -> None:
    def choices(seed: int) -> list[str]:
        made = Router("self")
        for number in range(20):
            made.on_load(f"r{number}", loaded(wait_s=number % 7 / 10), 0.0, now=0.0)
        rng = random.Random(seed)
        chosen = []
        for serial in range(50):
            ask = msgspec.structs.replace(CHAT, request_id=f"q{serial}")
            found = made.candidates(ask, {}, 0.0, rng)
            name = target(made.choose(ask, found, loaded(wait_s=0.3), {}, 0.0))
            made.on_sent(name, ask, 0)
            chosen.append(name)
        return chosen

    assert choices(1) == choices(1)
    assert choices(1) != choices(2)


def test_a_burst_spreads_inside_one_heartbeat_by_what_was_sent() -> None:
    made = router(a=IDLE, b=IDLE)
    got: Counter[str] = Counter()
    for serial in range(60):
        ask = msgspec.structs.replace(CHAT, request_id=f"q{serial}")
        name = target(routed(made, ask, own=loaded(wait_s=9.0), seed=serial))
        made.on_sent(name, ask, 0)
        got[name] += 1
    assert got == {"a": 30, "b": 30}


def test_what_was_sent_counts_until_a_vector_that_holds_it_comes() -> None:
    made = router(other=IDLE)

    def wait_ms(now: float) -> float:
        return judged(routed(made, now=now), "other").wait_ms

    alone = wait_ms(0.0)
    made.on_sent("other", msgspec.structs.replace(CHAT, request_id="sent"), 0)
    beside = alone + 1000 * IDLE.token_s * 1000
    assert wait_ms(0.0) == pytest.approx(beside)
    made.on_load("other", IDLE, 0.0, now=0.2)  # measured before the request was there
    assert wait_ms(0.2) == pytest.approx(beside)
    made.on_acknowledged("sent", now=0.3)
    made.on_load("other", IDLE, 0.2, now=0.4)  # measured at 0.2 still
    assert wait_ms(0.4) >= beside
    made.on_load("other", IDLE, 0.0, now=0.5)
    assert wait_ms(0.5) == pytest.approx(alone)


def test_what_was_sent_counts_more_the_older_the_vector_is() -> None:
    made = router(other=IDLE)
    alone = judged(routed(made), "other").wait_ms
    made.on_sent("other", msgspec.structs.replace(CHAT, request_id="sent"), 0)
    prompt_ms = 1000 * IDLE.token_s * 1000
    for age_s in (0.0, 1.0, 3.0):
        wait_ms = judged(routed(made, now=age_s), "other").wait_ms
        assert wait_ms == pytest.approx(alone + (1.0 + age_s) * prompt_ms)


def test_what_was_sent_counts_no_more_once_it_has_ended() -> None:
    made = router(other=IDLE)
    alone = judged(routed(made), "other").score_ms
    made.on_sent("other", msgspec.structs.replace(CHAT, request_id="sent"), 0)
    made.on_ended("sent")
    assert judged(routed(made), "other").score_ms == alone


def test_what_was_sent_of_a_lower_class_does_not_delay_a_higher_one() -> None:
    made = router(other=IDLE)
    alone = judged(routed(made), "other").wait_ms
    made.on_sent("other", NIGHTLY, 0)
    assert judged(routed(made), "other").wait_ms == alone


def test_a_vector_that_was_overtaken_is_dropped() -> None:
    made = router()
    made.on_load("other", loaded(wait_s=0.4), 0.0, now=1.0)
    made.on_load("other", IDLE, 0.5, now=1.1)
    route = routed(made, now=1.2)
    assert judged(route, "other").wait_ms > 400
    assert judged(route, "other").age_ms == pytest.approx(200)


def test_a_replica_that_can_be_on_time_goes_before_one_that_is_otherwise_better() -> None:
    late = loaded(wait_s=0.7)
    full = loaded(wait_s=0.0, sequences_left=0)  # on time by the forecast, but with no slot free
    route = routed(router(other=full), msgspec.structs.replace(CHAT, left_s=0.5), own=late)
    assert judged(route, "other").score_ms > judged(route, "self").score_ms
    assert not judged(route, "self").feasible
    assert target(route) == "other"


def test_where_no_replica_can_be_on_time_the_best_one_is_chosen() -> None:
    late = msgspec.structs.replace(CHAT, left_s=0.01)
    assert target(routed(router(other=loaded(wait_s=0.2)), late, own=loaded(wait_s=0.4))) == "other"


def test_a_class_with_tight_targets_avoids_a_replica_that_would_be_its_alone() -> None:
    own = slowed(IDLE, 0.25)
    made = router(other=loaded(wait_s=0.3))
    assert target(routed(made, CHAT, own=own)) == "other"
    assert target(routed(made, NIGHTLY, own=own)) == "self"


def test_a_slow_replica_gets_less_without_configuration() -> None:
    made = router(fast=IDLE, slow=slowed(IDLE, 0.25))
    got: Counter[str] = Counter()
    for serial in range(200):
        ask = msgspec.structs.replace(NIGHTLY, request_id=f"q{serial}")
        name = target(routed(made, ask, own=loaded(wait_s=99.0), seed=serial))
        made.on_sent(name, ask, 0)
        got[name] += 1
    assert 3.0 < got["fast"] / got["slow"] < 6.0


def test_fast_replicas_are_drawn_more_often() -> None:
    made = Router("self")
    for number in range(50):
        made.on_load(f"fast{number}", IDLE, 0.0, now=0.0)
        made.on_load(f"slow{number}", slowed(IDLE, 0.25), 0.0, now=0.0)
    rng = random.Random(0)
    drawn: Counter[str] = Counter()
    for _ in range(500):
        found = made.candidates(NIGHTLY, {}, 0.0, rng)
        drawn.update(name[:4] for name in found if name != "self")
    assert 3.0 < drawn["fast"] / drawn["slow"] < 5.5


def test_a_prefix_is_worth_a_wait_and_more_so_where_the_other_replica_is_busy() -> None:
    made = router(holder=loaded(wait_s=0.15))
    long = msgspec.structs.replace(NIGHTLY, prompt_tokens=4000)
    cached = {"holder": 3800}
    assert target(routed(made, long, own=IDLE, cached=cached)) == "holder"
    assert target(routed(made, long, own=IDLE, cached={})) == "self"
    made.on_load("holder", loaded(wait_s=1.5), 0.0, now=0.0)
    assert target(routed(made, long, own=IDLE, cached=cached)) == "self"
    busy = loaded(ahead=8192)
    assert target(routed(made, long, own=busy, cached=cached)) == "holder"


def test_the_parts_of_a_score_add_up() -> None:
    made = router(other=loaded(wait_s=0.1, ahead=4000, sequences_left=3))
    route = routed(made, cached={"self": 512})
    assert not isinstance(route, Nowhere)
    for each in route.candidates:
        parts = each.wait_ms + each.recompute_ms + each.decode_ms + each.room_ms + each.hop_ms
        assert each.score_ms == pytest.approx(parts)


@pytest.mark.parametrize(
    "load",
    [loaded(sequences_left=0), loaded(kv_tokens_left=500)],
    ids=["no slot", "too little KV room"],
)
def test_scarce_room_is_charged_up_to_an_answers_length(load: LoadVector) -> None:
    route = routed(router(other=load))
    assert judged(route, "other").room_ms == pytest.approx(100 * IDLE.step_s * 1000)
    assert judged(route, "self").room_ms < 1.0


def test_what_waits_of_a_lower_class_takes_no_room_from_a_higher_one() -> None:
    """A replica with a backlog of batch once got no more of a class that waits elsewhere."""
    classes = (
        ClassLoad("interactive", 0.0, 0),
        ClassLoad("batch", 0.0, 0, waiting=300, waiting_tokens=400_000),
    )
    backlog = msgspec.structs.replace(IDLE, classes=classes)
    empty, full = router(other=IDLE), router(other=backlog)
    above = [judged(routed(made, CHAT), "other").score_ms for made in (empty, full)]
    assert above[0] == above[1]
    of_class = [judged(routed(made, NIGHTLY), "other") for made in (empty, full)]
    assert of_class[1].room_ms > 100 * of_class[0].room_ms
    assert of_class[1].decode_ms > of_class[0].decode_ms


def test_the_replica_that_looks_best_to_all_does_not_get_everybodys_requests() -> None:
    """100 sidecars with the same second-old vectors, in which one replica of 100 is idle."""
    got: Counter[str] = Counter()
    for sidecar in range(100):
        made = Router("self")
        for number in range(100):
            made.on_load(f"r{number}", loaded(wait_s=0.0 if number == 7 else 0.2), 1.0, now=1.0)
        got[target(routed(made, own=loaded(wait_s=0.3), now=1.0, seed=sidecar))] += 1
    assert got["r7"] <= 6
    assert len(got) > 50


def test_a_prefix_on_a_replica_that_is_no_candidate_costs_nothing() -> None:
    made = router(holder=loaded(draining=True), other=loaded(ahead=4000))
    route = routed(made, cached={"holder": 900})
    assert [judged(route, name).recompute_ms for name in ("self", "other")] == [0.0, 0.0]


def test_the_hop_counts_towards_the_deadline() -> None:
    made = Router("self", hop_s=0.4)
    made.on_load("other", IDLE, 0.0, now=0.0)
    ask = msgspec.structs.replace(CHAT, left_s=0.3)
    assert not judged(routed(made, ask), "other").feasible
    assert judged(routed(made, ask), "self").feasible


def test_a_replica_that_claims_to_need_no_time_at_all_breaks_nothing() -> None:
    made = router(other=msgspec.structs.replace(IDLE, token_s=0.0, step_s=0.0, step_tokens=0))
    assert target(routed(made, own=loaded(wait_s=0.5))) == "other"


def test_what_an_old_vector_says_beyond_the_average_counts_less_and_less() -> None:
    made = Router("self")
    for number in range(9):
        made.on_load(f"r{number}", loaded(wait_s=0.4), 0.0, now=0.0)
    made.on_load("idle", IDLE, 0.0, now=0.0)

    def wait_ms(now: float) -> float:
        return judged(made.choose(CHAT, ["idle"], None, {}, now), "idle").wait_ms

    waits = [wait_ms(now) for now in (0.0, 0.1, 0.5, 4.0)]
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(60, abs=1)  # its own prompt, and a step
    assert waits[1] < waits[0] + 200
    assert waits[3] > waits[0] + 280


def test_an_estimate_that_is_far_off_hides_nobody() -> None:
    made = Router("")
    for at in range(200):
        for name in ("a", "b"):
            token_s = 1e-9 if at == 100 and name == "a" else 1e-4
            made.on_load(name, loaded(token_s=token_s), 0.0, now=0.2 * at)
        assert isinstance(routed(made, own=None, now=0.2 * at, seed=at), Forward), at


def test_the_one_usable_replica_of_many_is_found() -> None:
    made = router(**{f"r{number}": loaded(draining=number != 7) for number in range(300)})
    made.name = ""
    for seed in range(50):
        assert target(routed(made, own=None, seed=seed)) == "r7"
