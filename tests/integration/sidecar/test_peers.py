"""Several sidecars in one process, each with its own port, keys and knowledge of the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from tests.unit.sidecar.fleet import (
    KEY,
    OTHER_KEY,
    Fleet,
    Member,
    Side,
    eventually,
    fleet,
    vector,
)
from weir_core.route.types import Ask, Candidate, Forward
from weir_core.sched.types import Served, ServedLately
from weir_core.wire.peer_auth import Hello, Keys
from weir_core.wire.peers import Heartbeat
from weir_core.wire.policies import PeerEntry, PolicyDocument
from weir_sidecar.peers.handshake import ClientHandshake

NEVER_S = 1e6
ASK = Ask("q1", "standard", 0, 50_000, 10)


@pytest.fixture
async def made() -> AsyncIterator[Fleet]:
    async with fleet() as one:
        yield one


def asks(number: int) -> Ask:
    return msgspec.structs.replace(ASK, request_id=f"q{number}")


def seen(of: Member, other: Member) -> Candidate:
    """How a sidecar judges another one for a request."""
    route = of.peers.router.choose(ASK, [other.name], None, {}, time.monotonic())
    assert isinstance(route, Forward)
    return route.candidates[0]


async def heartbeats(of: Member, count: int = 3) -> None:
    """Wait for some more loads."""
    wanted = len(of.loads) + count
    await eventually(lambda: len(of.loads) >= wanted)


class Line:
    """A connection to a peer port, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.sent = self.head = self.body = b""
        self.status = 0

    async def post(self, path: str, body: bytes, further: bytes = b"") -> Line:
        """Send a request and read its answer."""
        head = b"POST %b HTTP/1.1\r\nhost: weir\r\n%bcontent-length: %d\r\n\r\n"
        return await self.send(head % (path.encode(), further, len(body)) + body)

    async def send(self, data: bytes) -> Line:
        self.sent += data
        self.writer.write(data)
        async with asyncio.timeout(20):
            self.head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(self.head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self.body = await self.reader.readexactly(length)
        self.status = int(self.head.split()[1])
        return self

    async def greet(self, name: str, to: Member) -> None:
        """Show the key, as the sidecar with that name."""
        await ClientHandshake(Side(name, Keys((KEY,))), to.name).run(self.post)

    async def ended(self) -> bool:
        """Wait until the other side has closed."""
        async with asyncio.timeout(20):
            return await self.reader.read() == b""


@contextlib.asynccontextmanager
async def line_to(member: Member) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection("127.0.0.1", member.number)
    try:
        yield Line(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class Passage:
    """A way to a port on which traffic can stop without a word."""

    def __init__(self, goes: asyncio.Event) -> None:
        self._goes = goes
        self.port = self.target = 0
        self._writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Passage]:
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError):
            inner, outer = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.append(outer)
            await asyncio.gather(self._copy(reader, outer), self._copy(inner, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._goes.wait()
                writer.write(data)
        writer.close()


# ---- who is there


async def test_sidecars_find_each_other_from_the_document(made: Fleet) -> None:
    first, second, third = await made.of("first", "second", "third")
    for one in (first, second, third):
        assert one.peers.names == ("first", "second", "third")
        assert {"first", "second", "third"} == {*one.peers.router.known, one.name}


async def test_sidecars_find_each_other_from_a_greeting_alone(made: Fleet) -> None:
    old, other, new = [await made.add(name) for name in ("old", "other", "new")]
    old.told(other)
    other.told()
    await eventually(lambda: other.peers.usable == 1)
    new.told(old)
    await eventually(lambda: all(one.peers.usable == 2 for one in (old, other, new)))


async def test_a_gateway_is_known_and_gets_nothing(made: Fleet) -> None:
    gateway, replica = await made.add("gateway", gateway=True), await made.add("replica")
    gateway.told(replica)
    replica.told(gateway)
    await eventually(lambda: gateway.peers.usable == 1)
    await eventually(lambda: replica.state_of(gateway) == "gateway")
    assert (replica.peers.usable, replica.peers.router.known) == (0, ())
    assert gateway.peers.names == replica.peers.names == ("replica",)


async def test_what_the_document_no_longer_names_stays_while_it_is_heard(made: Fleet) -> None:
    near, far = await made.of("near", "far")
    near.told()
    await heartbeats(near)
    assert near.state_of(far) == "usable"


async def test_a_silent_sidecar_that_the_document_does_not_name_is_forgotten(made: Fleet) -> None:
    near = await made.add("near", forget_s=0.1)
    far, named = await made.add("far"), await made.add("named")
    near.told(named)
    far.told(near)
    named.told()
    await eventually(lambda: near.peers.usable == 2)
    await far.stop()
    await named.stop()
    await eventually(lambda: near.state_of(far) == "")
    assert near.state_of(named) == "lost"


async def test_more_sidecars_than_may_be_are_not_heard(
    made: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    near = await made.add("near", most=1)
    first, second = await made.add("first"), await made.add("second")
    near.told(first, second)
    first.told()
    second.told(near)
    await eventually(lambda: near.peers.usable == 1)
    await eventually(lambda: second.value("weir_peer_heartbeats_total", outcome="failed") > 0)
    assert near.peers.names == ("first", "near")
    assert "too many peers" in caplog.text


async def test_the_document_moves_a_sidecar(made: Fleet) -> None:
    near, far = await made.of("near", "far")
    await far.stop()
    await eventually(lambda: near.state_of(far) == "lost")
    again = await made.add("far")
    again.told()
    near.told(again)
    await eventually(lambda: near.state_of(again) == "usable")


async def test_a_sidecar_that_moves_while_it_is_asked_is_asked_again(made: Fleet) -> None:
    goes = asyncio.Event()
    goes.set()
    near, far = await made.add("near"), await made.add("far")
    async with Passage(goes).open() as way:
        way.target = far.number
        by_way = PeerEntry("far", f"127.0.0.1:{way.port}")
        far.peers.own.address = by_way.address
        near.peers.apply(PolicyDocument(peers=(by_way,), peer_keys=(KEY,)))
        far.told()
        await eventually(lambda: near.peers.usable == 1)
        goes.clear()
        asked = near.value("weir_peer_heartbeat_bytes_total", direction="sent")
        await eventually(
            lambda: near.value("weir_peer_heartbeat_bytes_total", direction="sent") > asked
        )
        near.told(far)
        far.peers.own.address = far.entry.address
        await eventually(lambda: near.value("weir_peers", state="usable") == 1)
        await heartbeats(near)


# ---- what they tell


async def test_loads_reach_the_router(made: Fleet) -> None:
    near, far = await made.of("near", "far")
    far.load = vector(left=1)
    await eventually(lambda: seen(near, far).room_ms > 1)
    far.load = vector(draining=True)
    await eventually(lambda: near.state_of(far) == "draining")
    assert near.peers.usable == 0
    assert near.lost == [], "what it has is not taken back from it"
    far.load = vector()
    await eventually(lambda: near.peers.usable == 1)


async def test_a_request_counts_until_the_other_says_that_it_is_in_its_load(made: Fleet) -> None:
    near, far = await made.of("near", "far")
    idle_ms = seen(near, far).wait_ms
    number = near.peers.forwarding(ASK, far.name, 0)
    await heartbeats(near)
    assert seen(near, far).wait_ms > 1.5 * idle_ms
    far.peers.taken(near.name, number)
    await eventually(lambda: seen(near, far).wait_ms < 1.5 * idle_ms)


async def test_all_up_to_the_highest_number_is_acknowledged(made: Fleet) -> None:
    near, far = await made.of("near", "far")
    numbers = [near.peers.forwarding(asks(number), far.name, 0) for number in range(3)]
    assert numbers == [1, 2, 3]
    idle_ms = seen(near, far).wait_ms / 4
    far.peers.taken(near.name, 2)
    far.peers.taken(near.name, 1)
    await eventually(lambda: seen(near, far).wait_ms < 2.5 * idle_ms)
    await heartbeats(near)
    assert seen(near, far).wait_ms > 1.5 * idle_ms


async def test_another_connection_of_one_sidecar_counts_on(made: Fleet) -> None:
    near = await made.add("near")
    near.told()
    await eventually(lambda: near.port.listens)
    said = msgspec.msgpack.encode(Heartbeat("third", "127.0.0.1:9", 1, vector()))
    for wanted in (0, 5):
        async with line_to(near) as line:
            await line.greet("third", near)
            await line.post("/weir/heartbeat", said)
            assert msgspec.msgpack.decode(line.body, type=Heartbeat).received == wanted
        near.peers.taken("third", 5)


async def test_one_exchange_serves_both(made: Fleet) -> None:
    near, far = await made.of("near", "far")
    begun = len(near.loads), len(far.loads)
    await heartbeats(near, 10)
    answered = [one.value("weir_peer_heartbeats_total", outcome="answered") for one in (near, far)]
    heard = [one.value("weir_peer_heartbeats_total", outcome="heard") for one in (near, far)]
    assert sum(answered) == pytest.approx(sum(heard), abs=2)
    assert len(far.loads) - begun[1] == pytest.approx(len(near.loads) - begun[0], abs=2)


async def test_what_cannot_wait_is_told_at_once(made: Fleet) -> None:
    near = await made.add("near", min_period_s=NEVER_S, max_period_s=NEVER_S)
    far = await made.add("far", min_period_s=NEVER_S, max_period_s=NEVER_S)
    near.told(far)
    far.told()
    await eventually(lambda: near.peers.usable == far.peers.usable == 1)
    near.load = vector(draining=True)
    near.peers.tell_now()
    await eventually(lambda: far.state_of(near) == "draining")


async def test_what_is_known_is_shown(made: Fleet) -> None:
    near, far = await made.of("near", "far")
    [shown] = near.peers.states()
    assert (shown["name"], shown["address"], shown["state"]) == ("far", far.entry.address, "usable")
    assert near.value("weir_peers", state="usable") == 1
    assert near.value("weir_peers", state="new") == 0
    assert near.value("weir_peer_load_age_seconds") > 0
    assert near.value("weir_peer_heartbeat_bytes_total", direction="received") > 0
    assert KEY not in near.metrics.render().decode() + str(near.peers.states())


# ---- keys


async def test_a_sidecar_with_another_key_gets_nothing(
    made: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    near, far, stranger = [await made.add(name) for name in ("near", "far", "stranger")]
    near.told(far, stranger)
    far.told(near, stranger)
    stranger.told(near, far, keys=(OTHER_KEY,))
    await eventually(lambda: near.peers.usable == far.peers.usable == 1)
    await eventually(
        lambda: (
            {stranger.state_of(near), stranger.state_of(far), near.state_of(stranger)}
            == {"unknown_key"}
        )
    )
    assert (stranger.loads, stranger.peers.usable) == ([], 0)
    assert "does not know our key" in caplog.text
    assert KEY not in caplog.text
    assert OTHER_KEY not in caplog.text


@pytest.mark.parametrize("path", ["/v1/models", "/weir/heartbeat", "/weir/hello", "/metrics"])
async def test_a_connection_without_the_key_gets_one_401(made: Fleet, path: str) -> None:
    near, _ = await made.of("near", "far")
    async with line_to(near) as line:
        await line.post(path, b"{}", b'x-weir-forwarded: {"class_name":"interactive"}\r\n')
        assert line.status == 401
        assert b"x-weir-returned: unauthenticated" in line.head
        assert await line.ended()
    assert near.requests == []


async def test_a_connection_that_has_shown_the_key_forwards_under_its_name(made: Fleet) -> None:
    near, _ = await made.of("near", "far")
    async with line_to(near) as line:
        await line.greet("third", near)
        await line.post("/v1/models", b"{}", b"x-weir-forwarded: {}\r\n")
        assert (line.status, line.body) == (200, b"done")
    [(http, sender)] = near.requests
    assert (sender, http.forwarded) == ("third", b"{}")


async def test_a_recorded_handshake_does_not_work_again(made: Fleet) -> None:
    near, _ = await made.of("near", "far")
    async with line_to(near) as line:
        await line.greet("third", near)
        recorded = line.sent
    async with line_to(near) as line:
        hello, _, proof = recorded.partition(b"POST /weir/hello")[2].partition(b"POST")
        await line.send(b"POST /weir/hello" + hello)
        assert line.status == 200
        await line.send(b"POST" + proof)
        assert line.status == 401
        assert await line.ended()


async def test_both_keys_work_while_they_rotate(made: Fleet) -> None:
    near, far = await made.of("near", "far")
    for of_near, of_far in (
        ((OTHER_KEY, KEY), (KEY,)),
        ((OTHER_KEY, KEY), (OTHER_KEY, KEY)),
        ((OTHER_KEY,), (OTHER_KEY, KEY)),
        ((OTHER_KEY,), (OTHER_KEY,)),
    ):
        near.told(far, keys=of_near)
        far.told(near, keys=of_far)
        await heartbeats(near)
        await heartbeats(far)
        await eventually(lambda: near.peers.usable == far.peers.usable == 1)
    assert near.lost == far.lost == []


async def test_a_connection_with_a_retired_key_ends(made: Fleet) -> None:
    near, _ = await made.of("near", "far")
    async with line_to(near) as line:
        await line.greet("third", near)
        near.told(keys=(OTHER_KEY,))
        assert await line.ended()


async def test_without_a_key_the_port_is_closed(made: Fleet) -> None:
    near, far = await made.add("near"), await made.add("far")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", near.number)
    near.told(far)
    far.told(near)
    await eventually(lambda: near.peers.usable == far.peers.usable == 1)
    near.told(far, keys=())
    await eventually(lambda: far.state_of(near) == "lost")
    assert near.peers.states() == []
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", near.number)
    near.told(far)
    await eventually(lambda: near.peers.usable == far.peers.usable == 1)


@pytest.mark.parametrize(
    "path", [pytest.param("", id="says nothing"), pytest.param("/weir/hello", id="only greets")]
)
async def test_a_connection_that_never_shows_the_key_ends(made: Fleet, path: str) -> None:
    near = await made.add("near", head_s=0.05)
    near.told()
    await eventually(lambda: near.port.listens)
    async with line_to(near) as line:
        if path:
            hello = Hello("third", 1, bytes(32), Keys((KEY,)).ids)
            await line.post(path, msgspec.json.encode(hello))
            assert line.status == 200
        assert await line.ended()


# ---- silence, loss, return


async def test_a_silent_sidecar_is_lost_and_comes_back(made: Fleet) -> None:
    goes = asyncio.Event()
    goes.set()
    async with Passage(goes).open() as to_near, Passage(goes).open() as to_far:
        near, far = [
            await made.add(
                name,
                address=f"127.0.0.1:{way.port}",
                min_silence_s=0.3,
                max_silence_s=0.3,
                connect_s=NEVER_S,  # so that only silence tells
            )
            for name, way in (("near", to_near), ("far", to_far))
        ]
        to_near.target, to_far.target = near.number, far.number
        near.peers.apply(
            PolicyDocument(peers=(PeerEntry("far", f"127.0.0.1:{to_far.port}"),), peer_keys=(KEY,))
        )
        far.told()
        await eventually(lambda: near.peers.usable == far.peers.usable == 1)
        goes.clear()
        await eventually(lambda: near.lost == ["far"] and far.lost == ["near"])
        assert (near.state_of(far), near.peers.usable) == ("lost", 0)
        assert near.peers.router.known == ()
        goes.set()
        await eventually(lambda: near.peers.usable == far.peers.usable == 1)


async def test_a_refused_connection_says_so_at_once(made: Fleet) -> None:
    near = await made.add("near", min_silence_s=NEVER_S, max_silence_s=NEVER_S)
    far = await made.add("far")
    near.told(far)
    far.told()
    await eventually(lambda: near.peers.usable == 1)
    await far.stop()
    await eventually(lambda: near.lost == ["far"])
    assert near.state_of(far) == "lost"


async def test_a_sidecar_that_was_late_itself_takes_none_for_silent(made: Fleet) -> None:
    near, far = await made.of("near", "far")
    near.skipped_s += 1000.0
    await heartbeats(near)
    assert (near.lost, near.state_of(far)) == ([], "usable")


async def test_a_restart_is_understood(made: Fleet) -> None:
    near, far = await made.of("near", "far")
    near.peers.taken("far", far.peers.forwarding(ASK, "near", 0))
    await far.stop()
    again = await made.add("far", port=far.number)
    again.told(near)
    await eventually(lambda: near.state_of(again) == "usable" and again.peers.usable == 1)
    idle_ms = seen(again, near).wait_ms
    assert again.peers.forwarding(ASK, "near", 0) == 1
    await heartbeats(again)
    assert seen(again, near).wait_ms > 1.5 * idle_ms, "the other process's 1 is not this one's"
    near.peers.taken("far", 1)
    await eventually(lambda: seen(again, near).wait_ms < 1.5 * idle_ms)


async def test_two_sidecars_with_one_name_are_told_of(
    made: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    near, older = await made.of("near", "far")
    newer = await made.add("far")
    newer.peers.own.epoch = older.peers.own.epoch + 1
    newer.told(near)
    await eventually(lambda: near.peers.states()[0]["address"] == newer.entry.address)
    await eventually(lambda: "two sidecars have one name" in caplog.text)
    assert near.state_of(newer) == "usable"


# ---- other versions, and what is no version at all


def beat(**fields: object) -> list[object]:
    """A heartbeat as it is on the wire."""
    said = Heartbeat("other", "127.0.0.1:1", 7, vector(), **fields)  # type: ignore[arg-type]
    items = msgspec.msgpack.decode(msgspec.msgpack.encode(said))
    assert isinstance(items, list)
    return items


async def test_what_a_replica_served_counts_once_and_from_0_after_its_restart(made: Fleet) -> None:
    near = await made.add("near")
    near.told()
    heard: list[tuple[str, str, float]] = []
    near.peers.on_served = lambda *said: heard.append(said)
    for epoch, number, tokens in [(7, 3, 100), (7, 4, 130), (7, 4, 130), (7, 3, 100), (8, 1, 10)]:
        served = ServedLately(number, (Served("gold", "ada", tokens),))
        said = Heartbeat("other", "127.0.0.1:1", epoch, vector(), served=served)
        assert near.peers.answer("other", msgspec.msgpack.encode(said)) is not None
    assert near.peers.answer("other", msgspec.msgpack.encode(beat()[:11])) is not None
    assert heard == [("gold", "ada", 30), ("gold", "ada", 10)]


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([*beat(), "later", {"and": 1}], id="a newer one says more"),
        pytest.param(beat()[:4], id="an older one says less"),
        pytest.param(beat()[:3], id="without a load"),
    ],
)
async def test_sidecars_of_neighbouring_versions_understand_each_other(
    made: Fleet, said: list[object]
) -> None:
    near = await made.add("near")
    near.told()
    answer = near.peers.answer("other", msgspec.msgpack.encode(said))
    assert answer is not None
    assert msgspec.msgpack.decode(answer, type=Heartbeat).name == "near"
    assert [one["name"] for one in near.peers.states()] == ["other"]


async def test_a_sidecar_of_a_newer_protocol_gets_no_requests_but_goes_on(made: Fleet) -> None:
    near, far = await made.of("near", "far")
    epoch = far.peers.own.epoch
    said = Heartbeat("far", far.entry.address, epoch, vector(), protocol=99)
    await far.stop()
    assert near.peers.answer("far", msgspec.msgpack.encode(said)) is not None
    assert (near.state_of(far), near.peers.usable, near.lost) == ("newer", 0, ["far"])
    assert near.peers.answer("far", msgspec.msgpack.encode(said)) is not None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"", 400, id="empty"),
        pytest.param(b"\xc1", 400, id="no msgpack"),
        pytest.param(b"\x91" * 5000, 400, id="deep"),
        pytest.param(msgspec.msgpack.encode([1, 2, 3]), 400, id="other types"),
        pytest.param(msgspec.msgpack.encode(beat()), 400, id="another name than it has shown"),
        pytest.param(
            msgspec.msgpack.encode(Heartbeat("third", "nowhere", 1)), 400, id="no address"
        ),
        pytest.param(
            msgspec.msgpack.encode(
                Heartbeat(
                    "third", "127.0.0.1:9", 1, served=ServedLately(1, (Served("c", "t", -1),))
                )
            ),
            400,
            id="fewer than no tokens",
        ),
        pytest.param(bytes((1 << 20) + 1), 413, id="more than a heartbeat may have"),
    ],
)
async def test_a_malformed_heartbeat_is_refused(
    made: Fleet, body: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    near, far = await made.of("near", "far")
    caplog.set_level(logging.ERROR)
    async with line_to(near) as line:
        await line.greet("third", near)
        await line.post("/weir/heartbeat", body)
        assert line.status == status
        assert await line.ended()
    assert near.state_of(far) == "usable"
    assert caplog.text == ""


async def test_a_heartbeat_in_pieces_is_heard(made: Fleet) -> None:
    near, _ = await made.of("near", "far")
    async with line_to(near) as line:
        await line.greet("third", near)
        body = msgspec.msgpack.encode(Heartbeat("third", "127.0.0.1:9", 1, vector()))
        head = b"POST /weir/heartbeat HTTP/1.1\r\nhost: weir\r\ncontent-length: %d\r\n\r\n"
        for piece in (head % len(body), body[:9]):
            line.writer.write(piece)
            await line.writer.drain()
            await heartbeats(near, 1)
        await line.send(body[9:])
        assert line.status == 200
        assert msgspec.msgpack.decode(line.body, type=Heartbeat).name == "near"
