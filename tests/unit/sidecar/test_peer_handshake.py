"""Both sides of a connection show the service's key, and no proof works a second time."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import msgspec
import pytest

from tests.unit.sidecar.fleet import KEY, OTHER_KEY, THIRD_KEY, Side
from weir_core.errors import EngineUnavailable
from weir_core.wire.peer_auth import Challenge, Hello, Keys, Proof, key_id, proof_of
from weir_core.wire.policies import PolicyDocument
from weir_sidecar.peers.handshake import (
    ClientHandshake,
    OtherName,
    ServerHandshake,
    UnknownKey,
)


@dataclass
class Reply:
    status: int
    body: bytes


class Line:
    """A connection to a server's half; keeps what was sent."""

    def __init__(self, server: Side) -> None:
        self.handshake = ServerHandshake(server, 0.0)
        self.sent: list[bytes] = []

    async def ask(self, path: str, body: bytes) -> Reply:
        assert path == "/weir/hello"
        self.sent.append(body)
        answer = self.handshake.answer(body)
        return Reply(401, b"") if answer is None else Reply(200, answer)


def side(name: str, *keys: str) -> Side:
    return Side(name, Keys(keys))


async def shake(client: Side, server: Side, expected: str = "") -> Line:
    line = Line(server)
    await ClientHandshake(client, expected or server.name).run(line.ask)
    return line


@pytest.mark.parametrize(
    ("of_client", "of_server", "want"),
    [
        pytest.param((KEY,), (KEY,), KEY, id="one key"),
        pytest.param((OTHER_KEY, KEY), (OTHER_KEY, KEY), OTHER_KEY, id="the newest of two"),
        pytest.param((OTHER_KEY, KEY), (KEY,), KEY, id="the other has not read the new one yet"),
        pytest.param((KEY,), (OTHER_KEY, KEY), KEY, id="this one has not"),
        pytest.param((OTHER_KEY, KEY), (THIRD_KEY, KEY), KEY, id="only the old one is common"),
    ],
)
async def test_sides_with_a_common_key_agree(
    of_client: tuple[str, ...], of_server: tuple[str, ...], want: str
) -> None:
    line = await shake(side("a", *of_client), side("b", *of_server))
    assert (line.handshake.done, line.handshake.name) == (True, "a")
    assert line.handshake.key == key_id(bytes.fromhex(want))


@pytest.mark.parametrize(
    ("of_client", "of_server"),
    [
        pytest.param((KEY,), (OTHER_KEY,), id="another key"),
        pytest.param((KEY,), (), id="none at the server"),
        pytest.param((), (KEY,), id="none at the client"),
    ],
)
async def test_sides_without_a_common_key_do_not(
    of_client: tuple[str, ...], of_server: tuple[str, ...]
) -> None:
    line = Line(side("b", *of_server))
    with pytest.raises(UnknownKey):
        await ClientHandshake(side("a", *of_client), "b").run(line.ask)
    assert not line.handshake.done


async def test_a_server_that_only_names_the_key_is_not_believed() -> None:
    line = Line(side("b", KEY))

    async def ask(path: str, body: bytes) -> Reply:
        reply = await line.ask(path, body)
        challenge = msgspec.json.decode(reply.body, type=Challenge)
        false = msgspec.structs.replace(challenge, proof=bytes(32))
        return Reply(200, msgspec.json.encode(false))

    with pytest.raises(UnknownKey):
        await ClientHandshake(side("a", KEY), "b").run(ask)
    assert len(line.sent) == 1, "the client proves nothing to it"


async def test_what_was_recorded_does_not_work_again() -> None:
    server = side("b", KEY)
    recorded = (await shake(side("a", KEY), server)).sent
    again = ServerHandshake(server, 0.0)
    assert again.answer(recorded[0]) is not None
    assert again.answer(recorded[1]) is None
    assert not again.done


async def test_a_proof_of_the_server_is_none_of_a_client() -> None:
    server = side("b", KEY)
    handshake = ServerHandshake(server, 0.0)
    hello = Hello("a", 1, bytes(32), server.keys.ids)
    answer = handshake.answer(msgspec.json.encode(hello))
    assert answer is not None
    shown = msgspec.json.decode(answer, type=Challenge).proof
    assert handshake.answer(msgspec.json.encode(Proof(shown))) is None


async def test_a_proof_is_of_the_names_too() -> None:
    key, nonces = bytes.fromhex(KEY), (bytes(32), bytes(32))
    proofs = {
        proof_of(key, role, nonces, names)
        for role in (b"client", b"server")
        for names in (("a", "bc"), ("ab", "c"), ("bc", "a"))
    }
    assert len(proofs) == 6


async def test_another_sidecar_at_the_address_is_not_taken_for_the_one_that_was_there() -> None:
    with pytest.raises(OtherName, match="is b"):
        await shake(side("a", KEY), side("b", KEY), expected="gone")


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00\xff", id="no JSON"),
        pytest.param(b"[" * 2000, id="deep"),
        pytest.param(b'{"name":"a","epoch":1,"nonce":"AA==","keys":[]}', id="short nonce"),
        pytest.param(
            msgspec.json.encode(Hello("a b", 1, bytes(32), Keys((KEY,)).ids)), id="odd name"
        ),
        pytest.param(
            msgspec.json.encode(Hello("a" * 254, 1, bytes(32), Keys((KEY,)).ids)), id="long name"
        ),
        pytest.param(
            msgspec.json.encode(Hello("b", 1, bytes(32), Keys((KEY,)).ids)), id="the own name"
        ),
        pytest.param(msgspec.json.encode(Proof(bytes(32))), id="a proof before the hello"),
        pytest.param(
            msgspec.json.encode(Hello("a", 1, bytes(32), ("x",) * 8 + Keys((KEY,)).ids)),
            id="too many keys",
        ),
    ],
)
def test_a_bad_hello_ends_it(first: bytes) -> None:
    handshake = ServerHandshake(side("b", KEY), 0.0)
    assert handshake.answer(first) is None
    assert not handshake.done


async def test_a_connection_gets_one_handshake() -> None:
    line = await shake(side("a", KEY), side("b", KEY))
    assert line.handshake.answer(line.sent[0]) is None
    failed = ServerHandshake(side("b", KEY), 0.0)
    assert failed.answer(line.sent[0]) is not None
    assert failed.answer(line.sent[1]) is None
    assert failed.answer(line.sent[0]) is None


async def test_a_key_that_is_retired_between_the_two_messages_is_not_taken() -> None:
    server = side("b", KEY)
    line = Line(server)

    async def ask(path: str, body: bytes) -> Reply:
        reply = await line.ask(path, body)
        server.keys = Keys((OTHER_KEY,))
        return reply

    with pytest.raises(UnknownKey):
        await ClientHandshake(side("a", KEY), "b").run(ask)


async def test_what_is_no_sidecar_is_said_so() -> None:
    async def ask(path: str, body: bytes) -> Reply:
        return Reply(404, b"<html>")

    with pytest.raises(EngineUnavailable, match="no sidecar"):
        await ClientHandshake(side("a", KEY), "b").run(ask)


def test_newer_sidecars_may_say_more() -> None:
    hello = msgspec.json.encode(Hello("a", 1, bytes(32), Keys((KEY,)).ids, protocol=9))
    fields = msgspec.json.decode(hello)
    assert isinstance(fields, dict)
    fields["later"] = [1]
    handshake = ServerHandshake(side("b", KEY), 0.0)
    assert handshake.answer(msgspec.json.encode(fields)) is not None


def test_keys_are_in_no_representation(caplog: pytest.LogCaptureFixture) -> None:
    document = PolicyDocument(peer_keys=(KEY,))
    logging.getLogger("test").warning("%r %r", document, Keys((KEY,)))
    assert KEY not in caplog.text
    assert key_id(bytes.fromhex(KEY)) in caplog.text
