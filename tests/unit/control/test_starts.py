"""How long the next engine still loads: told from starts that were seen, and from nothing else."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.unit.control.builders import NOW, body, container, deployment, observed, pod
from tests.unit.control.test_conditions import spoken, verdicts
from weir_operator import status
from weir_operator.observed import Observed

Manifest = dict[str, Any]


def written(ago_s: float) -> str:
    """Return a time so many seconds ago, as Kubernetes writes it."""
    moment: datetime = NOW - timedelta(seconds=ago_s)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def loading(since_s: float) -> Manifest:
    """Return a pod whose engine loads for so many seconds."""
    return pod(container("engine", startedAt=written(since_s)))


def serving(since_s: float, ready_s: float) -> Manifest:
    """Return a pod whose engine was started, and which became ready, so many seconds ago."""
    one = pod(container("engine", started=True, startedAt=written(since_s)), ready=True)
    one["status"]["conditions"][0]["lastTransitionTime"] = written(ready_s)
    return one


def seen_after(took_s: int | None, *pods: Manifest, ago_s: float = 9000) -> Observed:
    """Return a world with these pods after a start that took so long."""
    held = body()
    if took_s is not None:
        kept = {"name": "cpu", "startSeconds": took_s, "startedAt": written(ago_s)}
        held["status"] = {"pools": [kept]}
    one = deployment(1, readyReplicas=0, availableReplicas=0)
    return observed({"cpu": one}, pods, held=held)


def kept(seen: Observed) -> tuple[int, str] | None:
    """Return the start that the status after a pass holds."""
    (pool,) = status.observed(seen, spoken(seen), "t")["pools"]
    return (pool["startSeconds"], pool["startedAt"]) if "startSeconds" in pool else None


@pytest.mark.parametrize(
    ("took_s", "since_s", "want"),
    [
        pytest.param(None, 20, "the engine is loading the model", id="none was seen"),
        pytest.param(
            62, 25, "the engine is loading the model: about 40 s left, as the last start took 62 s",
            id="the rest",
        ),
        pytest.param(
            62, 61, "the engine is loading the model: about 10 s left, as the last start took 62 s",
            id="nearly there",
        ),
        pytest.param(
            62, 62, "the engine is loading the model: longer than the last start, which took 62 s",
            id="later than the last",
        ),
    ],
)  # fmt: skip
def test_the_time_left_is_that_of_the_last_start(
    took_s: int | None, since_s: float, want: str
) -> None:
    seen = verdicts(seen_after(took_s, loading(since_s)))
    assert seen["ModelReady"].message == want
    rest = want.partition(": ")[2]
    assert (rest in seen["WorkloadsReady"].message) if rest else ("left" not in str(seen))


def test_of_several_the_one_that_is_first_counts() -> None:
    seen = verdicts(seen_after(62, loading(5), loading(45)))
    assert "about 20 s left" in seen["ModelReady"].message


@pytest.mark.parametrize(
    ("before", "pods", "want"),
    [
        pytest.param(None, [serving(62, 0)], (62, written(62)), id="just ready"),
        pytest.param(None, [serving(900, 300)], None, id="ready for long, perhaps again"),
        pytest.param(None, [serving(9000, 5)], None, id="ready again after hours"),
        pytest.param(None, [loading(62)], None, id="not ready"),
        pytest.param((50, 9000), [loading(62)], (50, written(9000)), id="the kept one stays"),
        pytest.param(
            (50, 900), [serving(900, 5)], (50, written(900)), id="the same start, ready again"
        ),
        pytest.param(
            (50, 300), [serving(900, 5)], (50, written(300)), id="an earlier one, ready again"
        ),
        pytest.param((50, 9000), [serving(70, 2)], (68, written(70)), id="a newer one"),
        pytest.param(
            (50, 9000),
            [serving(70, 2), serving(90, 10)],
            (68, written(70)),
            id="the newest of several",
        ),
    ],
)
def test_the_newest_start_that_was_seen_is_kept(
    before: tuple[int, float] | None, pods: list[Manifest], want: tuple[int, str] | None
) -> None:
    took_s, ago_s = before or (None, 0.0)
    assert kept(seen_after(took_s, *pods, ago_s=ago_s)) == want
