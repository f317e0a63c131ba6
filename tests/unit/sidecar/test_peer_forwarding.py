"""A request goes to another sidecar over its peer port, and the answer comes back as it is sent."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from tests.unit.sidecar.fakes import http_request, make_driver
from tests.unit.sidecar.fleet import Fleet, fleet
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.inflight import Handler, InFlightRequest
from weir_sidecar.peers.peer import Peer
from weir_sidecar.registry import Registry
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams.splice import Ending, Exchange
from weir_sidecar.upstreams.upstream import Call

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
FORWARDED = b'{"class_name":"batch"}'


def call(body: bytes = b"{}", further: bytes = b"x-weir-forwarded: %b\r\n" % FORWARDED) -> Call:
    head = b"%b%bcontent-length: %d\r\n" % (HEAD, further, len(body))
    return Call(head, b"", (body,), bodiless=False)


class Transport:
    """A client's transport that keeps what it gets."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False


def sent_by_a_client() -> tuple[InFlightRequest, Transport]:
    """A request in flight, and what its client gets."""
    now = 0.0
    registry = Registry(Metrics(CollectorRegistry()), lambda: now, Settings().limits)
    driver = make_driver(registry, lambda: now)
    handler = Handler(registry, Settings(), driver, lambda: now)
    request = InFlightRequest(http_request(path="/v1/chat/completions"), handler)
    transport = Transport()
    request.client.transport = transport  # type: ignore[assignment]
    return request, transport


async def go_to(peer: Peer, request: InFlightRequest, sent: Call) -> Exchange | None:
    request.away = peer
    return await peer.attempt(request, sent)


async def two(made: Fleet) -> Peer:
    """The way from `near` to `far`."""
    near, far = await made.of("near", "far")
    peer = near.peers.find(far.name)
    assert peer is not None
    return peer


async def test_a_forwarded_request_reaches_the_other_and_its_answer_comes_back() -> None:
    async with fleet() as made:
        peer, (request, client) = await two(made), sent_by_a_client()
        exchange = await go_to(peer, request, call(b'{"a": 1}'))
        assert exchange is not None
        assert exchange.ending is Ending.COMPLETE
        assert client.written.startswith(b"HTTP/1.1 200 ")
        assert client.written.endswith(b"\r\n\r\ndone")
        [(http, sender)] = made.members[1].requests
        assert (sender, http.head.path) == ("near", "/v1/chat/completions")
        assert http.forwarded == FORWARDED
        assert http.take() == b'{"a": 1}'


async def test_what_differs_in_each_request_leaves_the_head_as_it_is() -> None:
    async with fleet() as made:
        peer = await two(made)
        for number in (b"1", b"2", b""):
            further = b"x-weir-forwarded: %b \r\n" % number if number else b""
            await go_to(peer, sent_by_a_client()[0], call(further=further))
        requests = [http for http, _ in made.members[1].requests]
        assert [http.forwarded for http in requests] == [b"1", b"2", b""]
        assert len({id(http.head) for http in requests}) == 1


@pytest.mark.parametrize(
    ("status", "headers", "passes"),
    [
        pytest.param(429, {"x-llm-d-request-dropped-reason": "rejected-saturated"}, True, id="429"),
        pytest.param(429, {"x-weir-returned": "refused"}, True, id="refused, and no other is left"),
        pytest.param(503, {"x-weir-returned": "backlogged b"}, False, id="returned"),
        pytest.param(429, {}, True, id="of the engine itself"),
        pytest.param(400, {"x-llm-d-request-dropped-reason": "no"}, True, id="a client's fault"),
        pytest.param(200, {}, True, id="an answer"),
    ],
)
async def test_what_comes_back_to_be_routed_again_does_not_reach_the_client(
    status: int, headers: dict[str, str], passes: bool
) -> None:
    async with fleet() as made:
        peer, (request, client) = await two(made), sent_by_a_client()
        made.members[1].respond = lambda _: Answer(status, b"words", headers=headers)
        exchange = await go_to(peer, request, call())
        assert exchange is not None
        assert exchange.ending is (Ending.COMPLETE if passes else Ending.LOST)
        assert client.written.endswith(b"words") is passes
        assert b"x-weir-returned" not in client.written
        assert made.members[0].state_of(made.members[1]) == "usable"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([b"x-%d: y" % number for number in range(254)], id="many headers"),
        pytest.param([b"x-%d: %b" % (n, b"y" * 65_000) for n in range(64)], id="long headers"),
    ],
)
async def test_a_head_as_large_as_a_client_may_send_is_taken_with_more(lines: list[bytes]) -> None:
    async with fleet() as made:
        peer, (request, client) = await two(made), sent_by_a_client()
        theirs = b"".join(line + b"\r\n" for line in lines)
        further = b"x-weir-forwarded: %b\r\n" % (b"f" * 30_000)
        exchange = await go_to(peer, request, call(further=theirs + further))
        assert exchange is not None
        assert exchange.status == 200
        assert client.written.endswith(b"done")


async def test_a_request_to_a_sidecar_that_is_gone_comes_back_at_once() -> None:
    async with fleet() as made:
        peer = await two(made)
        near, far = made.members
        await far.stop()
        assert await go_to(peer, sent_by_a_client()[0], call()) is None
        assert near.state_of(far) == "lost"
        assert near.lost == ["far"]
        assert near.peers.usable == 0
