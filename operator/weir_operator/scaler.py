"""An external-push scaler for KEDA: it tells how many replicas the work of a service takes.

The metric is that number, with a target of 1 for each replica, so the HPA that KEDA makes comes to
the same number. A service is active while the number is not 0. KEDA asks for both at each polling
interval, and keeps a stream open on which it is told at once that a service at zero is wanted. It
is told so every few seconds again, because it may not have been able to act on it.

KEDA opens a stream again at once only when the last one ended in order; after any other end it
waits for up to a minute. So streams end by themselves every few minutes, before the connection is
lost on its way, and when the operator stops or loses its lease. An operator that does not lead
does not listen: it knows of no service.

A number that is not known yet is an error of `GetMetrics` and `IsActive`, never 0, and KEDA keeps
what is there. `GetMetricSpec` is always answered: KEDA counts failures towards `fallback` only
behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import grpc

from weir_core.units import Seconds
from weir_operator import external_scaler as keda
from weir_operator.advice import Advice

METRIC: Final = "weir_wanted_replicas"
SERVICE_KEY: Final = "service"
"""Of a trigger's metadata: the InferenceService; without it the ScaledObject's own name counts."""
REPEAT_S: Final = Seconds(5.0)
LONGEST_STREAM_S: Final = Seconds(240.0)
STREAMS: Final = 2048
"""One for each ScaledObject. What is above is refused, and KEDA polls all the same."""
_POLLS: Final = 256
_LONGEST_MESSAGE: Final = 64 << 10
_END_S: Final = Seconds(2.0)
"""Given to answers that are under way when it stops."""


class Scaler:
    """Answers KEDA.

    Args:
        advice: The services that another autoscaler scales.
        streams: That may be open at once.
        repeat_s: A stream is told the same again after so long.
        longest_s: After so long a stream ends in order.
    """

    def __init__(
        self,
        advice: Advice,
        streams: int = STREAMS,
        repeat_s: Seconds = REPEAT_S,
        longest_s: Seconds = LONGEST_STREAM_S,
    ) -> None:
        self._advice = advice
        self._free = streams
        self._repeat_s = repeat_s
        self._longest_s = longest_s

    async def is_active(self, request: Any, context: Any) -> Any:
        """Tell whether there shall be a replica."""
        return keda.IsActiveResponse(result=await self._known(request, context) > 0)

    async def metric_spec(self, _request: Any, _context: Any) -> Any:
        """Tell the metric, and its target for each replica."""
        spec = keda.MetricSpec(metricName=METRIC, targetSize=1, targetSizeFloat=1.0)
        return keda.GetMetricSpecResponse(metricSpecs=[spec])

    async def metrics(self, request: Any, context: Any) -> Any:
        """Tell how many replicas there shall be."""
        number = await self._known(request.scaledObjectRef, context)
        value = keda.MetricValue(
            metricName=METRIC, metricValue=number, metricValueFloat=float(number)
        )
        return keda.GetMetricsResponse(metricValues=[value])

    async def stream(self, request: Any, context: Any) -> AsyncGenerator[Any, None]:
        """Tell at once when there shall be a replica, and again and again."""
        if self._free <= 0:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams are open")
        self._free -= 1
        try:
            async for wanted in self._turns(_service(request)):
                yield keda.IsActiveResponse(result=wanted > 0)
        finally:
            self._free += 1

    async def _turns(self, service: tuple[str, str]) -> AsyncIterator[int]:
        now = asyncio.get_running_loop().time
        end = now() + self._longest_s
        while now() < end and not self._advice.is_over:
            turn, wanted = self._advice.next_turn(service), self._advice.of(service)
            if wanted is not None:
                yield wanted
            with suppress(TimeoutError):
                async with asyncio.timeout(self._repeat_s):
                    await turn.wait()

    async def _known(self, request: Any, context: Any) -> int:
        service = _service(request)
        wanted = self._advice.of(service)
        if wanted is None:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE,
                f"of InferenceService {service[0]}/{service[1]} nothing is known: the operator has "
                "just started, or there is none of this name with spec.scaling.mode: Advise (the "
                f"trigger's metadata names it by `{SERVICE_KEY}`)",
            )
        assert wanted is not None, "abort raises"
        return wanted


def _service(reference: Any) -> tuple[str, str]:
    return reference.namespace, reference.scalerMetadata.get(SERVICE_KEY) or reference.name


def _handlers(scaler: Scaler) -> Any:
    calls = {
        "IsActive": (scaler.is_active, keda.ScaledObjectRef, keda.IsActiveResponse),
        "GetMetricSpec": (scaler.metric_spec, keda.ScaledObjectRef, keda.GetMetricSpecResponse),
        "GetMetrics": (scaler.metrics, keda.GetMetricsRequest, keda.GetMetricsResponse),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            call, asked.FromString, answered.SerializeToString
        )
        for name, (call, asked, answered) in calls.items()
    }
    handlers["StreamIsActive"] = grpc.unary_stream_rpc_method_handler(
        scaler.stream, keda.ScaledObjectRef.FromString, keda.IsActiveResponse.SerializeToString
    )
    return grpc.method_handlers_generic_handler(keda.SERVICE, handlers)


@asynccontextmanager
async def serving(advice: Advice, port: int) -> AsyncIterator[None]:
    """Answer KEDA while the context lasts, in plain gRPC; then end all streams in order.

    Args:
        advice: The services that another autoscaler scales.
        port: Where to listen, by IPv4 and by IPv6.
    """
    server = grpc.aio.server(
        options=(
            ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a second listener
            ("grpc.max_receive_message_length", _LONGEST_MESSAGE),
        ),
        maximum_concurrent_rpcs=STREAMS + _POLLS,
    )
    server.add_generic_rpc_handlers((_handlers(Scaler(advice)),))
    server.add_insecure_port(f"[::]:{port}")
    await server.start()
    try:
        yield
    finally:
        advice.end()
        await server.stop(_END_S)
