"""An engine that spreads over nodes: what LeaderWorkerSet says, and what is waited for."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import pytest

from weir_core.errors import InvalidSpec, ModelUnavailable
from weir_engine import group
from weir_engine.group import Member, join, patiently

LEADER = {"LWS_LEADER_ADDRESS": "127.0.0.1", "LWS_WORKER_INDEX": "0"}
WORKER = {**LEADER, "LWS_WORKER_INDEX": "1"}


def never(seconds: float) -> None:
    pytest.fail(f"waited for {seconds} s")


def test_the_leader_waits_for_nothing() -> None:
    found = join(LEADER, pause=never)
    assert (found.rank, found.leader) == (0, found.own)


def test_a_worker_waits_until_its_leader_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setattr(group, "MASTER_PORT", listener.getsockname()[1])
        waited: list[float] = []

        def pause(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 2:
                listener.listen()

        assert join(WORKER, pause) == Member(1, "127.0.0.1", "127.0.0.1")
    assert len(waited) == 2


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="no group"),
        pytest.param({**LEADER, "LWS_WORKER_INDEX": "x"}, id="no rank"),
    ],
)
def test_refuses_to_run_outside_of_a_group(environment: Mapping[str, str]) -> None:
    with pytest.raises(InvalidSpec, match=r"engine.parallelism.nodes: is above 1"):
        join(environment)


class Hub:
    """Lacks a model for its first two downloads."""

    def __init__(self) -> None:
        self.asked = 0

    def fetch(self, _: Mapping[str, str]) -> None:
        self.asked += 1
        if self.asked < 3:
            raise ModelUnavailable("hf://org/model: the hub does not answer")


def test_a_download_in_a_group_goes_on_until_it_is_there() -> None:
    hub, waited = Hub(), list[float]()
    patiently(hub.fetch, WORKER, waited.append)
    assert (hub.asked, len(waited)) == (3, 2)


def test_a_download_elsewhere_fails_for_the_kubelet_to_see() -> None:
    hub = Hub()
    with pytest.raises(ModelUnavailable):
        patiently(hub.fetch, {}, pause=never)
    assert hub.asked == 1
