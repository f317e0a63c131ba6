"""What is noted of a request that ended is in every reading after it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from weir_core.wire.fields import Usage
from weir_sidecar.outcomes import Outcome
from weir_sidecar.telemetry.metrics import Metrics

ENDED = st.tuples(
    st.sampled_from(["batch", "interactive"]),
    st.sampled_from(list(Outcome)),
    st.integers(0, 40).map(lambda eighths: eighths / 8),
    st.none() | st.integers(0, 40).map(lambda eighths: eighths / 8),
    st.integers(0, 1 << 40),
    st.none() | st.builds(Usage, st.integers(0, 1 << 20), st.integers(0, 1 << 20)),
)


@given(st.lists(ENDED), st.integers(1, 400))
def test_what_ended_is_counted_once(
    seen: list[tuple[str, Outcome, float, float | None, int, Usage | None]], times: int
) -> None:
    metrics = Metrics(CollectorRegistry())
    value = metrics.registry.get_sample_value
    rounds = times if len(seen) < 5 else 1  # so that there are often more than wait at once
    for _ in range(rounds):
        for ended in seen:
            metrics.ended(*ended)
    for class_name in ("batch", "interactive"):
        of = {"class": class_name}
        own = [ended for ended in seen if ended[0] == class_name]
        for outcome in Outcome:
            count = value("weir_requests_total", {**of, "outcome": outcome.value})
            assert (count or 0) == rounds * sum(ended[1] is outcome for ended in own)
        assert (value("weir_request_duration_seconds_count", of) or 0) == rounds * len(own)
        spent = rounds * sum(ended[2] for ended in own)
        assert (value("weir_request_duration_seconds_sum", of) or 0) == spent
        firsts = [ended[3] for ended in own if ended[3] is not None]
        assert (value("weir_time_to_first_token_seconds_count", of) or 0) == rounds * len(firsts)
        assert (value("weir_time_to_first_token_seconds_sum", of) or 0) == rounds * sum(firsts)
    usages = [ended[5] for ended in seen if ended[5] is not None]
    assert value("weir_streamed_bytes_total") == rounds * sum(ended[4] for ended in seen)
    assert value("weir_prompt_tokens_total") == rounds * sum(u.prompt_tokens for u in usages)
    assert value("weir_output_tokens_total") == rounds * sum(u.output_tokens for u in usages)


@pytest.mark.parametrize("requests", [1, 255, 256, 257, 1000])
def test_outcomes_and_a_page_have_what_has_just_ended(requests: int) -> None:
    metrics = Metrics(CollectorRegistry())
    for number in range(requests):
        outcome = Outcome.OK if number % 2 else Outcome.CLIENT_GONE
        metrics.ended("batch", outcome, 1.0, None, 0, None)
    told = Counter(metrics.outcomes())
    assert (told["ok"], told["client_gone"]) == (requests // 2, (requests + 1) // 2)
    metrics.ended("batch", Outcome.CUT, 1.0, None, 0, None)
    line = b'weir_requests_total{class="batch",outcome="cut_by_shutdown"} 1.0\n'
    assert line in metrics.render()


@pytest.mark.parametrize(
    ("outcome", "ttft_s", "met", "missed"),
    [
        pytest.param(Outcome.OK, 1.0, 1, 0, id="at the target"),
        pytest.param(Outcome.OK, 1.1, 0, 1, id="late"),
        pytest.param(Outcome.CLIENT_GONE, 0.5, 1, 0, id="the client left after its first token"),
        pytest.param(Outcome.CLIENT_GONE, 1.1, 0, 1, id="the client left after a late one"),
        pytest.param(Outcome.CLIENT_GONE, None, None, None, id="the client left before it"),
        pytest.param(Outcome.CLIENT_ERROR, None, None, None, id="a wrong request"),
        pytest.param(Outcome.CLIENT_ERROR, 0.1, None, None, id="the engine found it wrong"),
        pytest.param(Outcome.REJECTED_TENANT_LIMIT, None, None, None, id="the tenant's limit"),
        pytest.param(Outcome.REJECTED_SATURATED, None, 0, 1, id="shed"),
        pytest.param(Outcome.ENGINE_ERROR, 0.5, 0, 1, id="broken after its first token"),
    ],
)
def test_a_request_is_judged_by_its_target(
    outcome: Outcome, ttft_s: float | None, met: int | None, missed: int | None
) -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.judge("interactive", outcome, ttft_s, 1.0)
    value = metrics.registry.get_sample_value
    results = [
        value("weir_attainment_requests_total", {"class": "interactive", "result": result})
        for result in ("met", "missed")
    ]
    assert results == [met, missed]
