"""Shares of tenants over a fleet: equal in all, not in each replica."""

from __future__ import annotations

import pytest

from weir_core.sched.tickets import OUTPUT_WEIGHT
from weir_sim.fleet import Fleet, FleetConfig, FleetTrip, Routing
from weir_sim.fleet_peers import Messages, Peers
from weir_sim.profiles import PROFILES
from weir_sim.replica import as_request
from weir_sim.workload import SimRequest

SPEEDS = [0.125, 0.25]
PROMPT, OUTPUT = 2000, 20


class Staying(Peers):
    """Every request stays at the replica that its session names."""

    def arrived(self, trip: FleetTrip) -> None:
        trip.ingress = int(trip.request.session)
        self._fleet.send(trip, trip.ingress, as_request(trip))


class StayingFleet(Fleet):
    """Its replicas send each other nothing but heartbeats."""

    def _make_routing(self) -> Routing:
        return Staying(self)


def served(messages: Messages) -> dict[tuple[str, int], float]:
    """Return what tenants were served at replicas while all of them had requests waiting.

    Tenant a sends to both replicas, b to the second one only.
    """
    places = [("a", 0), ("a", 1), ("b", 1)]
    requests = [
        SimRequest(
            f"{tenant}{replica}-{serial}", 0.0, tenant, "batch", PROMPT, OUTPUT, (), f"{replica}"
        )
        for serial in range(150)
        for tenant, replica in places
    ]
    config = FleetConfig(PROFILES["h100-8b"], SPEEDS, "weir-early", messages=messages, drain_s=40.0)
    result = StayingFleet(config, requests).run()
    done = dict.fromkeys(places, 0.0)
    for trip in result.trips:
        if trip.finished_s >= 0:
            done[trip.request.tenant, trip.replica] += PROMPT + OUTPUT_WEIGHT * OUTPUT
    assert all(scheduler.pool.requests for scheduler in result.schedulers)
    return done


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param(Messages(heartbeat_s=0.2), id="as usual"),
        pytest.param(Messages(heartbeat_s=1.0, loss=0.3, jitter_s=1.5), id="late, lost, overtaken"),
    ],
)
def test_a_tenant_of_one_replica_gets_as_much_as_one_of_two(messages: Messages) -> None:
    done = served(messages)
    of_a, of_b = done["a", 0] + done["a", 1], done["b", 1]
    assert of_b == pytest.approx(of_a, rel=0.15)
    assert of_b > 2 * done["a", 1] > 0


def test_without_word_of_each_other_each_replica_shares_for_itself() -> None:
    done = served(Messages(heartbeat_s=0.2, shares=False))
    assert done["b", 1] == pytest.approx(done["a", 1], rel=0.1)
    assert done["a", 0] + done["a", 1] > 1.7 * done["b", 1]
