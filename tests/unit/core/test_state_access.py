"""The operator reads a sidecar's state: it shows that it holds a key, for one pod and a while."""

from __future__ import annotations

import pytest

from weir_core.wire.peer_auth import Keys
from weir_core.wire.state_access import CLOCKS_DIFFER, authorization, may_read

OLD, NEW, OTHER = "0a" * 32, "0b" * 32, "0c" * 32
NOW = 1_800_000_000.5


@pytest.mark.parametrize(
    ("shown", "held"),
    [
        pytest.param([NEW], [NEW], id="one key"),
        pytest.param([NEW, OLD], [OLD], id="a sidecar that has not mounted the new key yet"),
        pytest.param([NEW, OLD], [NEW, OLD], id="a sidecar that has mounted it"),
        pytest.param([OLD], [NEW, OLD], id="an operator that knew only the old one"),
    ],
)
@pytest.mark.parametrize("later", [0.0, CLOCKS_DIFFER - 1, -CLOCKS_DIFFER])
def test_a_holder_of_a_key_may_read(shown: list[str], held: list[str], later: float) -> None:
    assert may_read(authorization(shown, "chat-1", NOW), Keys(held), "chat-1", NOW + later)


RIGHT = authorization([NEW], "chat-1", NOW)


@pytest.mark.parametrize(
    ("header", "later"),
    [
        pytest.param("", 0, id="nothing"),
        pytest.param("Bearer sk-1", 0, id="a client's key"),
        pytest.param(authorization([OTHER], "chat-1", NOW), 0, id="another service's key"),
        pytest.param(authorization([NEW], "chat-2", NOW), 0, id="another pod's proof"),
        pytest.param(authorization([], "chat-1", NOW), 0, id="no proof"),
        pytest.param(RIGHT, CLOCKS_DIFFER + 1, id="a proof shown again later"),
        pytest.param(RIGHT, -CLOCKS_DIFFER - 1, id="a proof of the future"),
        pytest.param(RIGHT.replace("Weir 1", "Weir 2"), 1e9, id="another time on it"),
        pytest.param(RIGHT.upper(), 0, id="otherwise spelt"),
        pytest.param("Weir " + "9" * 4000, 0, id="a number without end"),
        pytest.param("Weir 1 \udc80", 0, id="bytes that are no text"),
    ],
)
def test_nothing_else_may(header: str, later: float) -> None:
    assert not may_read(header, Keys([NEW]), "chat-1", NOW + later)


def test_a_sidecar_without_a_key_shows_nothing() -> None:
    assert not may_read(RIGHT, Keys(), "chat-1", NOW)
