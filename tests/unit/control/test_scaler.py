"""The scaler for KEDA, asked by a real gRPC client over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from tests.unit.control.test_operator_probes import free_port
from weir_core.units import Seconds
from weir_operator import external_scaler as keda
from weir_operator.advice import Advice
from weir_operator.scaler import METRIC, Scaler, serving

SERVICE = ("models", "chat")
WITHIN_S = 30.0
"""Bounds a test that hangs."""


def reference(name: str = "chat", **metadata: str) -> Any:
    return keda.ScaledObjectRef(name=name, namespace="models", scalerMetadata=metadata)


class Keda:
    """Asks as KEDA does."""

    def __init__(self, channel: Any) -> None:
        self.is_active = self._unary(channel, "IsActive", keda.IsActiveResponse)
        self.metric_spec = self._unary(channel, "GetMetricSpec", keda.GetMetricSpecResponse)
        self.metrics = self._unary(channel, "GetMetrics", keda.GetMetricsResponse)
        self.stream: Callable[[Any], Any] = channel.unary_stream(
            f"/{keda.SERVICE}/StreamIsActive",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=keda.IsActiveResponse.FromString,
        )

    def _unary(self, channel: Any, name: str, answer: Any) -> Callable[[Any], Any]:
        call = channel.unary_unary(
            f"/{keda.SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return lambda message: call(message, timeout=WITHIN_S, wait_for_ready=True)


@asynccontextmanager
async def asking(advice: Advice) -> AsyncIterator[Keda]:
    port = free_port()
    async with serving(advice, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Keda(channel)


@pytest.fixture
async def advice() -> Advice:
    return Advice()


@pytest.fixture
async def client(advice: Advice) -> AsyncIterator[Keda]:
    async with asking(advice) as made:
        yield made


async def read(stream: Any) -> Any:
    """Return what a stream says next: a bool, or `EOF` where it ended in order."""
    async with asyncio.timeout(WITHIN_S):
        said = await stream.read()
    return said if said is grpc.aio.EOF else said.result


def test_messages_are_numbered_as_keda_numbers_them() -> None:
    request = keda.GetMetricsRequest(scaledObjectRef=reference(a="b"), metricName="m")
    inner = b"\x0a\x04chat\x12\x06models\x1a\x06\x0a\x01a\x12\x01b"
    assert request.SerializeToString() == bytes([0x0A, len(inner)]) + inner + b"\x12\x01m"
    value = keda.MetricValue(metricName="m", metricValue=2, metricValueFloat=2.0)
    assert value.SerializeToString() == b"\x0a\x01m\x10\x02\x19" + bytes(6) + b"\x00\x40"


@pytest.mark.parametrize("wanted", [0, 3])
async def test_the_number_is_a_metric_with_a_target_of_one(
    advice: Advice, client: Keda, wanted: int
) -> None:
    advice.tell(SERVICE, wanted)
    (spec,) = (await client.metric_spec(reference())).metricSpecs
    assert (spec.metricName, spec.targetSize, spec.targetSizeFloat) == (METRIC, 1, 1.0)
    asked = keda.GetMetricsRequest(scaledObjectRef=reference(), metricName=METRIC)
    (value,) = (await client.metrics(asked)).metricValues
    told = (value.metricName, value.metricValue, value.metricValueFloat)
    assert told == (METRIC, wanted, float(wanted))
    assert (await client.is_active(reference())).result is (wanted > 0)


async def test_a_trigger_may_name_a_service_of_another_name(advice: Advice, client: Keda) -> None:
    advice.tell(SERVICE, 1)
    assert (await client.is_active(reference("scaled-chat", service="chat"))).result


async def test_what_is_not_known_is_an_error_and_never_zero(client: Keda) -> None:
    asked = keda.GetMetricsRequest(scaledObjectRef=reference(), metricName=METRIC)
    for call, message in ((client.is_active, reference()), (client.metrics, asked)):
        with pytest.raises(grpc.aio.AioRpcError, match="models/chat nothing is known") as caught:
            await call(message)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (await client.metric_spec(reference())).metricSpecs


async def test_a_stream_tells_of_a_wake_at_once_also_of_a_service_that_comes_later(
    advice: Advice, client: Keda
) -> None:
    stream = client.stream(reference())
    other = client.stream(reference("other"))
    advice.tell(SERVICE, 0)
    assert await read(stream) is False
    advice.tell(("models", "other"), 2)
    assert await read(other) is True
    advice.tell(SERVICE, 1)
    assert await read(stream) is True


async def test_streams_end_in_order_when_the_operator_stops(advice: Advice) -> None:
    async with AsyncExitStack() as stack:
        port = free_port()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        advice.tell(SERVICE, 0)
        async with serving(advice, port):
            stream = Keda(channel).stream(reference())
            assert await read(stream) is False
        assert await read(stream) is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK


class Context:
    """What gRPC gives a call."""

    async def abort(self, code: grpc.StatusCode, _: str) -> None:
        raise RuntimeError(code.name)


async def test_a_stream_repeats_itself(advice: Advice) -> None:
    scaler = Scaler(advice, repeat_s=Seconds(0.001))
    advice.tell(SERVICE, 1)
    stream = scaler.stream(reference(), Context())
    assert [(await anext(stream)).result for _ in range(3)] == [True] * 3
    await stream.aclose()


async def test_a_stream_ends_in_order_after_a_while(advice: Advice) -> None:
    scaler = Scaler(advice, repeat_s=Seconds(0.001), longest_s=Seconds(0.01))
    async with asyncio.timeout(WITHIN_S):
        assert [each async for each in scaler.stream(reference(), Context())] == []


async def test_streams_are_bounded_in_number(advice: Advice) -> None:
    scaler = Scaler(advice, streams=1)
    advice.tell(SERVICE, 1)
    first = scaler.stream(reference(), Context())
    assert (await anext(first)).result
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        await anext(scaler.stream(reference(), Context()))
    await first.aclose()
    second = scaler.stream(reference(), Context())
    assert (await anext(second)).result
    await second.aclose()
