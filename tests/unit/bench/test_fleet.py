"""bench/fleet sends equal conversations to all, and counts each request once."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest

from bench.fleet import report
from bench.fleet.chats import LOADS, Capacity, Chat, Turn, answered
from bench.fleet.load import Answers, Sent
from bench.fleet.report import Row, Used, row
from bench.fleet.routers import cases
from bench.peers.load import Answer, chat_body
from weir_sim.step_engine import parse

SPEEDS = (1.0, 1.0)
GOOD = Answer("standard", 200, 0.2, 1.2, 26, complete=True)
NOTHING = Used(0, 0, 1000, 600, 0, 0, [], 0)


@pytest.fixture(scope="module")
def capacity() -> Capacity:
    return Capacity()


def sent(answer: Answer, at_s: float = 30.0, turn: int = 0) -> Sent:
    return Sent(at_s, "chat", turn, answer)


def of(target: str, *all_sent: Sent, load: str = "chats 0.7x", seed: int = 0) -> Row:
    answers = Answers(list(all_sent), 0.0, 45.0)
    return row(target, LOADS[load], "equal", seed, answers, NOTHING)


@pytest.mark.parametrize("name", LOADS)
def test_equal_seeds_are_equal_clients(capacity: Capacity, name: str) -> None:
    load = replace(LOADS[name], window_s=10.0)
    assert capacity.clients(load, SPEEDS, 1) == capacity.clients(load, SPEEDS, 1)
    assert capacity.clients(load, SPEEDS, 1) != capacity.clients(load, SPEEDS, 2)


@pytest.mark.parametrize("name", ["chats 0.7x", "mix 2x"])
def test_the_offered_rate_is_the_ratio_of_what_the_engines_complete(
    capacity: Capacity, name: str
) -> None:
    load = replace(LOADS[name], window_s=500.0)
    clients = capacity.clients(load, SPEEDS, 0)
    per_s = sum(len(each.turns) for each in clients) / load.window_s
    assert per_s == pytest.approx(load.ratio * capacity.per_s(load, SPEEDS), rel=0.1)
    assert capacity.per_s(load, (1.0, 1.0)) == 4 * capacity.per_s(load, (0.5,))


def test_a_turn_begins_with_the_conversation_so_far_and_ends_with_its_own_length() -> None:
    chat = Chat(0.0, "standard", "one", [Turn(300, 7), Turn(40, 9)], system=1)
    first, second = chat.messages()
    said = [*chat.opening(), first]
    one = parse("chat", chat_body("standard", said))
    two = parse("chat", chat_body("standard", [*said, answered(7), second]))
    assert two.text.startswith(one.text)
    assert (one.output_tokens, two.output_tokens) == (7, 9)
    shared = one.blocks(16)
    assert two.blocks(16)[: len(shared)] == shared


def test_conversations_of_one_system_prompt_share_its_blocks_and_no_more() -> None:
    def blocks(name: str) -> list[int]:
        chat = Chat(0.0, "standard", name, [Turn(300, 7)], system=1)
        messages = [*chat.opening(), *chat.messages()]
        return parse("chat", chat_body("standard", messages)).blocks(16)

    shared = set(blocks("one")) & set(blocks("two"))
    assert len(shared) == pytest.approx(600 / 16, abs=1)


def test_what_was_sent_before_the_caches_were_warm_counts_for_nothing_but_chunks() -> None:
    found = of("weir", sent(GOOD, at_s=1.0), sent(GOOD), sent(GOOD, turn=1))
    assert (found.requests, found.chunks) == (2, 78)


def test_a_request_without_a_first_token_counts_with_the_time_that_it_waited() -> None:
    waited = Answer("standard", 200, None, 9.0, closed=True)
    refused = Answer("standard", 429, None, 0.1, retry_after=True)
    found = of("weir", sent(GOOD, turn=1), sent(waited, turn=1), sent(refused, turn=1))
    assert found.later_s == pytest.approx((0.2 + 9.0) / 2)
    assert found.first_s is None
    assert (found.refused, found.unfinished, found.cut + found.failed) == (1, 1, 0)


def test_ratios_are_to_the_best_that_is_not_weir() -> None:
    def late(first_s: float) -> Sent:
        return sent(Answer("standard", 200, first_s, 3.0, 26, complete=True), turn=1)

    rows = [of("weir", late(0.3)), of("weir, stock engines", late(0.1))]
    rows += [of("smg", late(0.6)), of("envoy least-request", late(1.2))]
    ratios = {line[2]: line[4] for line in report.chats(rows)}
    assert ratios == {
        "weir": "0.50",
        "weir, stock engines": "0.17",
        "smg": "1.00",
        "envoy least-request": "2.00",
    }
    assert report.missed(rows) == []
    assert len(report.missed([*rows, of("weir", late(0.9), seed=1), of("weir", late(0.9))])) == 1


def test_goodput_that_is_too_low_at_twice_the_capacity_is_a_miss() -> None:
    rows = [of("weir", sent(GOOD), load="mix 2x"), of("smg", sent(GOOD), load="mix 2x")]
    assert report.missed(rows) == ["missed: equal, mix 2x: goodput 1.00x, not 1.6x"]


def test_a_chunk_costs_what_longer_answers_cost_more() -> None:
    def run(load: str, tokens: int, cpu_s: float) -> Row:
        answer = Answer("interactive", 200, 0.2, 1.2, tokens, complete=True)
        found = of("weir", sent(answer), sent(answer), load=load)
        used = Used(cpu_s + 1.0, 1.0, 0, 0, 0, 1, [], 0)
        return Row(
            **{**{name: getattr(found, name) for name in Row.__struct_fields__}, "used": used}
        )

    rows = [run("answers of 64", 64, 2e-3 + 2 * 63 * 5e-6), run("answers of 1", 1, 2e-3)]
    assert report.cost(rows) == [("weir", "equal", "1000", "5.0", "50 %")]


def test_every_target_gets_every_load_with_every_seed() -> None:
    options = argparse.Namespace(
        targets=["weir", "smg"], loads=["mix 2x"], speeds=["equal"], seeds=2, first_seed=0
    )
    assert sorted((case.seed, case.target) for case in cases(options)) == [
        (0, "smg"), (0, "weir"), (1, "smg"), (1, "weir"),
    ]  # fmt: skip
