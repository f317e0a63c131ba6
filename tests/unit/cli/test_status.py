"""`weir status` shows what each replica's engine has and who waits for it."""

from __future__ import annotations

from typing import Any

import pytest

from weir_cli.show import load_of


def state(**waiting: int) -> dict[str, Any]:
    classes = [{"name": name, "rank": 0, "waiting": count} for name, count in waiting.items()]
    return {"scheduling": {"at_engine": 3, "classes": classes}}


@pytest.mark.parametrize(
    ("said", "want"),
    [
        pytest.param(state(interactive=0, batch=57), ("3", "batch 57"), id="one class waits"),
        pytest.param(state(a=1, b=2), ("3", "a 1, b 2"), id="two classes wait"),
        pytest.param(state(interactive=0), ("3", "0"), id="nobody waits"),
        pytest.param({"scheduling": None}, ("-", "-"), id="the engine is loading"),
        pytest.param(None, ("-", "-"), id="the sidecar does not answer"),
        pytest.param(["strange"], ("-", "-"), id="something else answers"),
    ],
)
def test_shows_the_load(said: Any, want: tuple[str, str]) -> None:
    assert load_of(said) == want
