"""Whose scheduler orders an engine's steps is told, whichever it is."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.service import MODEL, NAMESPACE, Service, restarts


@pytest.fixture
def mode_edited(quickstart: Service) -> Iterator[Service]:
    """The quickstart; its spec says nothing of a mode again afterwards."""
    yield quickstart
    quickstart.patch({"engine": {"scheduling": None}})


def test_an_edited_mode_divides_the_running_engines_steps(mode_edited: Service) -> None:
    pod = mode_edited.pod()
    eventually(lambda: computes_in(mode_edited, "latency"))
    mode_edited.patch({"engine": {"scheduling": {"mode": "throughput"}}})
    eventually(lambda: computes_in(mode_edited, "throughput"))
    now = mode_edited.pod()
    assert now["metadata"]["uid"] == pod["metadata"]["uid"]
    assert restarts(now) == restarts(pod)


def computes_in(service: Service, mode: str) -> None:
    """Have the service's only engine compute, and see that the last step was divided so."""
    body = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(f"{service.url()}/v1/chat/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    lines = service.metrics().splitlines()
    said = [line for line in lines if line.startswith("weir_engine_scheduler_info")]
    assert said == [f'weir_engine_scheduler_info{{fallback="0",kind="weir",mode="{mode}"}} 1.0'], (
        said
    )


def test_an_operator_that_starts_again_finds_out_again(
    weir: Installation, quickstart: Service
) -> None:
    before = quickstart.says("SchedulingReady", "True", "Weir")
    weir.kill()
    weir.ready()
    weir.acts_on(quickstart)
    assert quickstart.says("SchedulingReady", "True", "Weir") == before


def test_an_engine_without_weirs_scheduler_is_named_with_its_reason_and_serves(
    plain: Service,
) -> None:
    said = plain.says("SchedulingReady", "False", "Fallback")
    assert plain.pod()["metadata"]["name"] in said["message"]
    assert "chunked prefill is off" in said["message"]
    events = plain.target.kubectl.list("events", NAMESPACE)
    uid = plain.object()["metadata"]["uid"]
    told = [one["reason"] for one in events if one["involvedObject"].get("uid") == uid]
    assert told.count("Fallback") == 1
    body = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(f"{plain.url()}/v1/chat/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
