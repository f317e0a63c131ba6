"""Which requests have spans, as the SDK's sampler says.

Asking a sampler costs several objects of the SDK. The common samplers (`parentbased_always_on`,
which is the SDK's default, and `parentbased_traceidratio`, which the operator sets) decide by the
caller's flag, or else by the trace id alone. For these `root_bound` says all, and the sampler is
asked only where the caller sent a `tracestate`. Every other sampler is asked for each request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import (
    DEFAULT_ON,
    Decision,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_PARENT_BASED: Final = re.compile(
    r"ParentBased\{root:(?:(AlwaysOnSampler)|(AlwaysOffSampler)|TraceIdRatioBased\{(.+)\}),"
    r"remoteParentSampled:AlwaysOnSampler,remoteParentNotSampled:AlwaysOffSampler,.*\}"
)


class Sampling:
    """One sampler of the SDK.

    Args:
        sampler: Decides which requests have spans.

    Attributes:
        root_bound: Without a caller's decision, requests are sampled whose trace id's lower 64 bits
            are below; None where the sampler has to be asked.
    """

    def __init__(self, sampler: Sampler = DEFAULT_ON) -> None:
        self._sampler = sampler
        self.root_bound = _root_bound(sampler)

    def decide(
        self, method: str, path: str, trace_id: str, parent: Mapping[str, str]
    ) -> tuple[bool, str]:
        """Tell whether a request is sampled, and its `tracestate`; empty where it has none.

        Args:
            method: The request's.
            path: The request's.
            trace_id: 32 hexadecimal digits; the caller's, where that is of use.
            parent: The caller's trace headers.
        """
        above = _PROPAGATOR.extract(parent) if parent else None
        if not trace.get_current_span(above).get_span_context().is_valid:
            above = None
        verdict = self._sampler.should_sample(
            above,
            int(trace_id, 16),
            method,
            SpanKind.SERVER,
            attributes={"http.request.method": method, "url.path": path},
        )
        state = verdict.trace_state.to_header() if verdict.trace_state else ""
        return verdict.decision is Decision.RECORD_AND_SAMPLE, state


def _root_bound(sampler: Sampler) -> int | None:
    if type(sampler).should_sample is not ParentBased.should_sample:
        return None
    found = _PARENT_BASED.fullmatch(sampler.get_description())
    if found is None:
        return None
    always, never, rate = found.groups()
    if always or never:
        return 1 << 64 if always else 0
    return TraceIdRatioBased.get_bound_for_rate(float(rate))
