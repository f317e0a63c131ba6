"""Prefix caches in a fleet: what sidecars know by digests, and what routing makes of it."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from weir_cli.simulate import app
from weir_sim.baselines import ReplicaView
from weir_sim.fleet import FleetConfig, simulate_fleet
from weir_sim.fleet_load import FleetLoad, fleet_capacity
from weir_sim.fleet_peers import Messages
from weir_sim.fleet_prefixes import SidecarPrefixes, chain_of
from weir_sim.fleet_report import FleetReport, fleet_report
from weir_sim.prefix_routers import CacheAware, Product, SessionHash
from weir_sim.profiles import PROFILES
from weir_sim.traces import read_trace
from weir_sim.workload import SimRequest, WorkloadSpec, mix

EXCERPT = Path(__file__).parent / "traces" / "mooncake_conversation_excerpt.jsonl"
H100 = PROFILES["h100-8b"]
CHATS = WorkloadSpec(1.0, 1.0, streams=mix(batch=1.0), turns=5, think_s=5.0)
EQUAL = [1.0] * 4


def request(*blocks: int, tokens: int = 0, session: str = "") -> SimRequest:
    prompt_tokens = tokens or 512 * len(blocks) + 100
    return SimRequest("q", 0.0, "t", "batch", prompt_tokens, 10, blocks, session)


@cache
def shown(routing: str, messages: Messages | None = None) -> FleetReport:
    requests = FleetLoad(H100, EQUAL, 40.0, CHATS).requests(0.6, seed=0)
    config = FleetConfig(H100, EQUAL, routing, messages=messages or Messages(0.2))
    return fleet_report(simulate_fleet(config, requests))


def test_conversations_go_on_where_their_prefix_is() -> None:
    weir, counts = shown("weir"), shown("least-request")
    assert weir.hit_ratio > 0.9 * shown("session-hash").hit_ratio
    assert weir.hit_ratio > 2 * counts.hit_ratio
    assert weir.ttft_p99_s is not None
    assert counts.ttft_p99_s is not None
    assert weir.ttft_p99_s < counts.ttft_p99_s


def test_lost_digests_cost_hits_and_nothing_else() -> None:
    lossy = shown("weir", Messages(0.2, age_s=1.0, loss=0.5))
    assert lossy.hit_ratio > 0.8 * shown("weir").hit_ratio
    assert lossy.attainment_ratio > 0.99
    assert shown("weir", Messages(loss=1.0)).hit_ratio < lossy.hit_ratio


def test_a_listener_that_missed_an_update_gets_all_with_the_next() -> None:
    teller, listener = SidecarPrefixes("a", H100), SidecarPrefixes("b", H100)
    first, second = request(1, 2, 3), request(4, 5, 6)
    for serial, each in enumerate((first, second)):
        chain = chain_of(each, serial)
        teller.started(chain, each.prompt_tokens, 0)
        teller.ended(chain, each.prompt_tokens)
        update, snapshot, behind = teller.updates()
        assert (update, behind) == (snapshot, frozenset())
    assert listener.hear("a", update)
    teller.is_behind(7)
    _, snapshot, behind = teller.updates()
    assert behind == {7}
    assert not listener.hear("a", snapshot)
    known = listener.cached(chain_of(first, 9), first.prompt_tokens, ("c",), 0)
    assert known == {"a": 1536, "b": 0, "c": 0}


@pytest.mark.parametrize(
    ("kind", "views", "want"),
    [
        pytest.param(CacheAware, [ReplicaView(9), ReplicaView(9)], 0, id="cache-aware"),
        pytest.param(
            CacheAware, [ReplicaView(99), ReplicaView(9)], 1, id="cache-aware, unequal loads"
        ),
        pytest.param(Product, [ReplicaView(4), ReplicaView(4)], 0, id="product"),
        pytest.param(
            Product, [ReplicaView(4, 90_000), ReplicaView(4)], 1, id="product, prompts wait there"
        ),
    ],
)
def test_a_second_turn_follows_the_first_while_loads_allow_it(
    kind: type[CacheAware] | type[Product], views: list[ReplicaView], want: int
) -> None:
    router = kind(random.Random(0), 100)
    first = router.choose(request(1, 2), [ReplicaView(), ReplicaView()])
    ordered = views if first == 0 else views[::-1]
    assert router.choose(request(1, 2, 3), ordered) == (want if first == 0 else 1 - want)


def test_a_session_keeps_its_replica() -> None:
    router = SessionHash()
    chosen = {router.choose(request(session="s1"), [ReplicaView(n)] * 5) for n in range(5)}
    assert len(chosen) == 1


def test_a_trace_is_offered_at_the_wanted_load() -> None:
    trace = read_trace(EXCERPT)
    offered = FleetLoad(H100, [1.0], 100.0, WorkloadSpec(1.0, 1.0, streams=mix(batch=1.0)), trace)
    low, high = offered.requests(0.25, 0), offered.requests(0.5, 0)
    assert len(low) < len(high)
    assert high[9].arrival_s == pytest.approx(low[9].arrival_s / 2)
    assert {each.class_name for each in low} == {"batch"}
    assert [each.hash_ids for each in high[: len(low)]] == [each.hash_ids for each in low]


def test_capacity_is_a_load_that_is_met_and_grows_with_the_replicas() -> None:
    spec = WorkloadSpec(1.0, 1.0, streams=mix(interactive=1.0))
    small, large = ([1.0], [1.0, 1.0])
    goodputs = []
    for speeds in (small, large):
        offered = FleetLoad(H100, speeds, 4.0, spec)
        found = fleet_capacity(FleetConfig(H100, speeds), offered, "weir", 0.95)
        assert 0.3 < found.load < 3.0
        goodputs.append(found.goodput_per_s)
    assert goodputs[1] > 1.5 * goodputs[0]


def test_the_commands_take_a_trace_and_whole_systems() -> None:
    fleet = ["fleet", "--replicas", "2", "--trace", str(EXCERPT), "--duration", "20", "--json"]
    done = CliRunner().invoke(app, [*fleet, "--routings", "weir,cache-aware"])
    assert done.exit_code == 0, done.output
    assert all("hit_ratio" in json.loads(line) for line in done.stdout.splitlines())
    arguments = ["fleet-capacity", "--replicas", "1", "--duration", "2", "--routings", "weir"]
    table = CliRunner().invoke(app, [*arguments, "--systems", "fcfs"])
    assert table.exit_code == 0, table.output
    assert "fcfs" in table.stdout
    wrong = CliRunner().invoke(app, [*arguments[:2], "2", "--speeds", "1,0.5", "--systems", "fcfs"])
    assert wrong.exit_code == 2
    assert CliRunner().invoke(app, [*fleet[:4], "nowhere.jsonl"]).exit_code == 2
