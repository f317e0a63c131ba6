"""INV-10: a minimum share is not a pass, whatever the size of a prompt and the kind of engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from weir_core.sched.tickets import OUTPUT_WEIGHT
from weir_core.sched.types import BUILT_IN_CLASSES, Action, Dispatch, Reject
from weir_sim.audit import step_violations
from weir_sim.baselines import Front
from weir_sim.engine_model import EngineModel
from weir_sim.profiles import PROFILES
from weir_sim.run import SYSTEMS, SimConfig, SimResult, simulate
from weir_sim.workload import LONG_PROMPTS, SimRequest, Stream, WorkloadSpec, generate

H100 = PROFILES["h100-8b"]
HIGHEST = max(policy.rank for policy in BUILT_IN_CLASSES)


def book_among_chats(book_tokens: int) -> list[SimRequest]:
    """Steady interactive and standard traffic, which the engine can just do, and one book."""
    chats = [SimRequest(f"chat-{i}", i * 0.05, "chat", "interactive", 300, 60) for i in range(1200)]
    apps = [SimRequest(f"app-{i}", i * 0.066, "app", "standard", 1500, 150) for i in range(900)]
    book = SimRequest("book", 5.0, "night", "batch", book_tokens, 50)
    return sorted([*chats, *apps, book], key=lambda request: request.arrival_s)


def run(system: str, workload: Sequence[SimRequest]) -> tuple[SimResult, list[str], list[Action]]:
    """Return what came out, what the steps broke, and what the fronts did."""
    broken: list[str] = []
    done: list[Action] = []

    def step_check(engine: EngineModel) -> None:
        broken.extend(step_violations(engine, HIGHEST))

    def check(_front: Front, _now: float, actions: list[Action]) -> None:
        done.extend(actions)

    config = SimConfig(H100, SYSTEMS[system])
    return simulate(config, workload, check, step_check=step_check), broken, done


def refused_chats(actions: Sequence[Action]) -> list[str]:
    return [a.request_id for a in actions if isinstance(a, Reject) and "chat" in a.request_id]


@pytest.mark.parametrize("book_tokens", [2_000, 20_000, 60_000, 100_000])
def test_a_book_on_its_minimum_share_has_no_interactive_request_refused(book_tokens: int) -> None:
    result, broken, actions = run("weir", book_among_chats(book_tokens))
    (book,) = [a for a in actions if isinstance(a, Dispatch) and a.request_id == "book"]
    assert (book.by_min_share, book.rank) == (True, -100)
    assert refused_chats(actions) == []
    assert broken == []
    (trip,) = [trip for trip in result.trips if trip.request.request_id == "book"]
    assert trip.finished_s < 60.0  # its share is one: it ends while the others still come


@pytest.mark.parametrize("system", ["weir-priority", "weir-fcfs"])
@pytest.mark.parametrize(
    ("book_tokens", "by_share"),
    [
        pytest.param(2_000, True, id="as long as a step"),
        pytest.param(100_000, False, id="as long as a book"),
    ],
)
def test_an_engine_that_would_run_it_first_is_given_a_step_of_it_at_most(
    system: str, book_tokens: int, by_share: bool
) -> None:
    _, _, actions = run(system, book_among_chats(book_tokens))
    dispatches = [a for a in actions if isinstance(a, Dispatch) and a.request_id == "book"]
    assert dispatches[-1].by_min_share is by_share
    assert refused_chats(actions) == []


def test_steps_compute_the_highest_rank_first_whatever_else_was_let_in() -> None:
    streams = (
        Stream("interactive", "chat", 0.2),
        Stream("standard", "app", 0.5),
        Stream("batch", "nightly", 0.29),
        Stream("batch", "books", 0.01, replace(LONG_PROMPTS, prompt_median=30_000)),
    )
    workload = generate(WorkloadSpec(rate=30.0, duration_s=60.0, streams=streams), 3)
    _, broken, actions = run("weir", workload)
    assert any(isinstance(action, Dispatch) and action.by_min_share for action in actions)
    assert broken == []


def test_a_class_keeps_its_share_where_the_one_above_is_more_than_the_engine_can_do() -> None:
    # Nothing of any step is left then, so its requests are served at the rank they go before.
    streams = (
        Stream("interactive", "chat", 0.9),
        Stream("batch", "nightly", 0.099),
        Stream("batch", "books", 0.001, LONG_PROMPTS),
    )
    workload = generate(WorkloadSpec(rate=80.0, duration_s=90.0, streams=streams), 0)
    result, _, actions = run("weir", workload)
    served = {"interactive": 0.0, "batch": 0.0}
    for trip in result.trips:
        if 30.0 <= trip.first_token_s < 90.0:
            tokens = trip.request.prompt_tokens + OUTPUT_WEIGHT * trip.request.output_tokens
            served[trip.request.class_name] += tokens
    assert served["batch"] / sum(served.values()) >= 0.04
    sizes = {request.request_id: request.prompt_tokens for request in workload}
    raised = [a for a in actions if isinstance(a, Dispatch) and a.by_min_share and a.rank == 100]
    assert raised
    assert max(sizes[action.request_id] for action in raised) <= 4200  # a step, as estimated
