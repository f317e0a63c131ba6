"""Whose scheduler orders an engine's steps is told, whichever it is."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from e2e.eventually import eventually
from e2e.installation import Installation
from e2e.kube import Manifest, conditions
from e2e.service import MODEL, NAMESPACE, Service, restarts

# The longest prompt the tiny model takes must then fit into one step.
WHOLE_PROMPTS = ["--no-enable-chunked-prefill", "--max-num-batched-tokens=8192"]


@pytest.fixture
def plain(weir: Installation) -> Iterator[Service]:
    """A service whose engine cuts no prompts, so that there is nothing for Weir to order."""
    service = Service(weir.target, "plain", {"replicas": 1, "engine": {"args": WHOLE_PROMPTS}})
    service.apply()
    yield service
    service.delete()


def scheduling(service: Service, status: str) -> Manifest:
    """Wait until SchedulingReady is so; return it."""

    def said() -> Manifest:
        found = conditions(service.object())["SchedulingReady"]
        assert found["status"] == status, found
        return found

    return eventually(said, within_s=30)


def test_an_engine_with_weirs_scheduler_is_asked_again_when_it_starts_again(
    quickstart: Service,
) -> None:
    assert scheduling(quickstart, "True")["reason"] == "Weir"
    quickstart.target.kill(quickstart.pod(), "engine")
    scheduling(quickstart, "Unknown")
    quickstart.wait_ready(replicas=1)
    assert scheduling(quickstart, "True")["reason"] == "Weir"


@pytest.fixture
def mode_edited(quickstart: Service) -> Iterator[Service]:
    """The quickstart; its spec says nothing of a mode again afterwards."""
    yield quickstart
    quickstart.patch({"engine": {"scheduling": None}})


def test_an_edited_mode_divides_the_running_engines_steps_within_seconds(
    mode_edited: Service,
) -> None:
    pod = mode_edited.pod()
    eventually(lambda: computes_in(mode_edited, "latency"), within_s=10)
    mode_edited.patch({"engine": {"scheduling": {"mode": "throughput"}}})
    eventually(lambda: computes_in(mode_edited, "throughput"), within_s=10)
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
    before = scheduling(quickstart, "True")
    weir.kill()
    weir.ready()
    weir.acts_on(quickstart)
    assert scheduling(quickstart, "True") == before


def test_an_engine_without_weirs_scheduler_is_named_with_its_reason_and_serves(
    plain: Service,
) -> None:
    plain.wait_ready(replicas=1)
    said = scheduling(plain, "False")
    assert said["reason"] == "Fallback"
    assert plain.pod()["metadata"]["name"] in said["message"]
    assert "chunked prefill is off" in said["message"]
    events = plain.target.kubectl.list("events", NAMESPACE)
    uid = plain.object()["metadata"]["uid"]
    told = [one["reason"] for one in events if one["involvedObject"].get("uid") == uid]
    assert told.count("Fallback") == 1
    body = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(f"{plain.url()}/v1/chat/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
