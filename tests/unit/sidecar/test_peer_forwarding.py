"""A request goes to another sidecar over its peer port, and the answer comes back as it is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from tests.unit.sidecar.fakes import Buffer
from tests.unit.sidecar.fleet import Fleet, fleet
from weir_sidecar.frontend.answer import Answer
from weir_sidecar.inflight import InFlightRequest
from weir_sidecar.peers.peer import Peer
from weir_sidecar.upstreams.splice import Ending, Exchange, ExchangeOwner
from weir_sidecar.upstreams.upstream import Call

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
FORWARDED = b'{"class_name":"batch"}'


def call(body: bytes = b"{}", further: bytes = b"x-weir-forwarded: %b\r\n" % FORWARDED) -> Call:
    head = b"%b%bcontent-length: %d\r\n" % (HEAD, further, len(body))
    return Call(head, b"", (body,), bodiless=False)


class Waiting:
    """A client that waits for an answer."""

    head_sent = False

    def __init__(self) -> None:
        self.buffer = Buffer()

    def exchange(
        self,
        clock: Callable[[], float],
        owner: ExchangeOwner,
        *,
        bodiless: bool,
        counts_tokens: bool,
    ) -> Exchange:
        return Exchange(
            self.buffer, clock, bodiless=bodiless, owner=owner, counts_tokens=counts_tokens
        )


class Request:
    """A request in flight, as far as an upstream looks at it."""

    dispatch = trace = None
    streams = False
    is_placed = True
    arrival = 0.0

    def __init__(self, *, takes_refusals: bool = False) -> None:
        self.client = Waiting()
        self.exchange: Exchange | None = None
        self.upstream: Peer | None = None
        self._takes_refusals = takes_refusals

    def on_exchange(self, exchange: Exchange) -> None:
        """Leave it to what awaits the attempt."""

    def holds_back(self, exchange: Exchange, piece: bytes) -> bool:
        assert self.upstream is not None
        return self.upstream.suspects(cast(InFlightRequest, self), exchange, piece)

    def tokens_in(self, piece: bytes) -> int:  # noqa: ARG002
        return 0

    def takes_refusal(self, answer: Exchange) -> bool:  # noqa: ARG002
        return self._takes_refusals

    async def go_to(self, peer: Peer, sent: Call) -> Exchange | None:
        return await peer.attempt(cast(InFlightRequest, self), sent)


async def two(made: Fleet) -> Peer:
    """The way from `near` to `far`."""
    near, far = await made.of("near", "far")
    peer = near.peers.find(far.name)
    assert peer is not None
    return peer


async def test_a_forwarded_request_reaches_the_other_and_its_answer_comes_back() -> None:
    async with fleet() as made:
        peer, request = await two(made), Request()
        exchange = await request.go_to(peer, call(b'{"a": 1}'))
        assert exchange is not None
        assert exchange.ending is Ending.COMPLETE
        assert request.client.buffer.written == b"[200]done"
        [(http, sender)] = made.members[1].requests
        assert (sender, http.head.path) == ("near", "/v1/chat/completions")
        assert http.forwarded == FORWARDED
        assert http.take() == b'{"a": 1}'


async def test_what_differs_in_each_request_leaves_the_head_as_it_is() -> None:
    async with fleet() as made:
        peer = await two(made)
        for number in (b"1", b"2", b""):
            further = b"x-weir-forwarded: %b \r\n" % number if number else b""
            await Request().go_to(peer, call(further=further))
        requests = [http for http, _ in made.members[1].requests]
        assert [http.forwarded for http in requests] == [b"1", b"2", b""]
        assert len({id(http.head) for http in requests}) == 1


@pytest.mark.parametrize(
    ("status", "headers", "is_held"),
    [
        pytest.param(429, {"x-llm-d-request-dropped-reason": "rejected-saturated"}, True, id="429"),
        pytest.param(503, {"x-weir-returned": "backlogged"}, True, id="returned"),
        pytest.param(429, {}, False, id="of the engine itself"),
        pytest.param(400, {"x-llm-d-request-dropped-reason": "no"}, False, id="a client's fault"),
        pytest.param(200, {}, False, id="an answer"),
    ],
)
@pytest.mark.parametrize("is_last_word", [True, False])
async def test_a_refusal_is_held_back_until_the_request_takes_it(
    status: int, headers: dict[str, str], is_held: bool, is_last_word: bool
) -> None:
    async with fleet() as made:
        peer, request = await two(made), Request(takes_refusals=is_last_word)
        made.members[1].respond = lambda _: Answer(status, b"words", headers=headers)
        exchange = await request.go_to(peer, call())
        assert exchange is not None
        passes = is_last_word or not is_held
        assert exchange.ending is (Ending.COMPLETE if passes else Ending.LOST)
        assert request.client.buffer.written == (b"[%d]words" % status if passes else b"")
        assert made.members[0].state_of(made.members[1]) == "usable"


async def test_a_request_to_a_sidecar_that_is_gone_comes_back_at_once() -> None:
    async with fleet() as made:
        peer = await two(made)
        near, far = made.members
        await far.stop()
        assert await Request().go_to(peer, call()) is None
        assert near.state_of(far) == "lost"
        assert near.lost == ["far"]
        assert near.peers.usable == 0
