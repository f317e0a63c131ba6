"""Whether a machine has what replicas ask for."""

from __future__ import annotations

import pytest

from weir_cli.room import Room, asked_by, shortage

GIB = float(2**30)


def test_what_runs_side_by_side_in_a_pod_is_added_up() -> None:
    template = {
        "spec": {
            "initContainers": [
                {"resources": {"requests": {"cpu": "4"}}},
                {"restartPolicy": "Always", "resources": {"requests": {"cpu": "250m"}}},
            ],
            "containers": [{"resources": {"requests": {"cpu": 1}, "limits": {"memory": "2Gi"}}}],
        }
    }
    assert asked_by(template) == Room(1.25, 2 * GIB)


@pytest.mark.parametrize(
    ("has", "said"),
    [
        pytest.param(Room(4, 8 * GIB), "", id="it fits"),
        pytest.param(Room(2, 8 * GIB), "3 CPUs and 6 GiB together", id="too few CPUs"),
        pytest.param(Room(4, 4 * GIB), "this machine has 4 and 4 GiB", id="too little memory"),
    ],
)
def test_it_is_said_when_replicas_ask_for_more_than_there_is(has: Room, said: str) -> None:
    words = shortage("chat", [Room(1, 2 * GIB)] * 3, has)
    assert said in words
    assert bool(words) is bool(said)
