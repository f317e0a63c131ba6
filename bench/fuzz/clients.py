"""Clients of the fuzz: what they send, how they leave, and what they must have been answered."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from bench.fuzz import requests
from bench.fuzz.engine import NOT_HTTP, kind_of
from bench.fuzz.network import Listening, SimulatedLoop
from bench.fuzz.requests import Sent
from weir_core.wire.peers import FORWARDED_HEADER, RETURNED_HEADER

_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3}) [^\r\n]*")
_CODES: Final = frozenset({500, 501, 502, 503, 504, 505})
_TOLD: Final = (b"retry-after", b"retry-after-ms", b"x-llm-d-request-dropped-reason")
"""Headers of the sidecar's own 429 and 503."""
_BETWEEN_SIDECARS: Final = frozenset({FORWARDED_HEADER, RETURNED_HEADER})


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer on the wire; `body` is without framing, None where it is cut short."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes | None

    @property
    def is_ours(self) -> bool:
        """Whether the sidecar made it, and not the engine."""
        return self.headers.get(b"server") == b"weir"

    @property
    def is_until_close(self) -> bool:
        """Whether its end is that of its connection."""
        return b"transfer-encoding" not in self.headers and b"content-length" not in self.headers

    @property
    def ends_connection(self) -> bool:
        """Whether nothing follows it."""
        says_so = self.headers.get(b"connection", b"").lower() == b"close"
        return says_so or self.body is None or self.is_until_close

    def is_body(self, wanted: Collection[bytes]) -> bool:
        """Tell whether it has one of these bodies, or says itself that it broke off."""
        says_so = self.is_until_close and b"\n\nevent: error\n: " in (self.body or b"")
        return self.body is None or self.body in wanted or says_so


class NotHttp(ValueError):
    """What the sidecar sent is not an HTTP answer."""


class Client:
    """One connection of a client.

    Args:
        rng: Decides what it does.
        loop: The simulated loop.
        server: Where it connects.
    """

    def __init__(self, rng: random.Random, loop: SimulatedLoop, server: Listening) -> None:
        self._loop = loop
        self.received: list[bytes] = []
        self.is_gone = self.left = self.is_slow = False
        """The connection has ended; the client ended it; it did not read for a while."""
        self.is_far = False
        """Its answers may come from another sidecar: where one has no length, a cut is its end."""
        self.begun = 0
        """Requests of which it sent something."""
        count = rng.choice((1, 1, 1, 2, 4))
        self.sent = [requests.request(rng) for _ in range(count)]
        # How an answer ends is known only where it is known which request it answers.
        self.sent = [each for each in self.sent if each.bodiless][:1] or self.sent
        self.wire = server.connect(self)
        self._steps = self._play(rng)
        self.wire.begin()
        self._go_on()

    def took(self, piece: bytes) -> None:
        """Take bytes of an answer."""
        self.received.append(piece)

    def closed(self) -> None:
        """Hear that the connection is gone."""
        self.is_gone = True

    def _go_on(self) -> None:
        if self.is_gone:
            return
        delay_s = next(self._steps, None)
        if delay_s is not None:
            self._loop.call_later(delay_s, self._go_on)

    # What a client does; each step yields the seconds until the next.

    def _play(self, rng: random.Random) -> Iterator[float]:
        self.is_slow = rng.random() < 0.06
        if self.is_slow:
            self.wire.peer_reads(False)
        leaves_early = rng.random() < 0.12
        for number, sent in enumerate(self.sent):
            if leaves_early and number == len(self.sent) - 1:
                yield from self._send(rng, sent.data[: rng.randrange(len(sent.data) + 1)], sent)
                yield rng.choice((0.0, 0.0, 0.01, 0.1, 0.6, 5.0))
                self._leave(rng)
                return
            yield from self._send(rng, sent.data, sent)
            yield rng.choice((0.0, 0.0, 0.01, 0.6, 4.0))
        yield rng.choice((0.5, 3.0, 8.0, 30.0))
        self.wire.peer_reads(True)
        yield rng.choice((1.0, 20.0, 200.0))
        self._leave(rng)

    def _send(self, rng: random.Random, data: bytes, sent: Sent) -> Iterator[float]:
        self.begun += bool(data)
        chance = rng.random()
        if chance < 0.7 or not data:
            cuts: list[int] = []
        elif chance < 0.8:
            cuts = [min(sent.cut, len(data))]
        elif chance < 0.98:
            cuts = sorted(rng.randrange(len(data)) for _ in range(rng.choice((1, 2, 5))))
        else:
            cuts = list(range(1, min(60, len(data))))
        pause_s = rng.choice((0.0, 0.0, 0.0, 0.01, 0.3, 3.0)) if cuts else 0.0
        for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if start < stop:
                self.wire.deliver(data[start:stop])
                yield pause_s if len(cuts) < 10 else 0.0

    def _leave(self, rng: random.Random) -> None:
        self.left = True
        if rng.random() < 0.5:
            self.wire.hang_up()
        else:
            self.wire.reset()

    # What must hold when all is over.

    def answers(self) -> list[Answer]:
        """Return what was answered; raise `NotHttp`."""
        bodiless = self.sent[0].bodiless
        found, data = [], b"".join(self.received)
        while data:
            answer, data = _first(data, bodiless)
            if answer is None:
                break
            if answer.status != 100:
                found.append(answer)
        may_be_cut = self.wire.was_aborted or self.left or self.is_far
        if found and found[-1].is_until_close and may_be_cut:
            found[-1] = replace(found[-1], body=None)
        return found

    def faults(self, bodies: Mapping[int, Collection[bytes]], *, may_close: bool) -> Iterator[str]:
        """Yield what is wrong with the answers.

        Args:
            bodies: What the engine sent for each script.
            may_close: A drain may have ended the connection without an answer.
        """
        try:
            answers = self.answers()
        except NotHttp as error:
            yield f"not HTTP: {error}"
            return
        if len(answers) > len(self.sent) and all(each.is_whole for each in self.sent):
            yield f"{len(answers)} answers to {len(self.sent)} requests"
        for answer in answers:
            yield from self._wrong(answer, bodies)
        if not may_close and self._is_unanswered(answers):
            yield f"{len(answers)} answers to {self.begun} requests, and the connection was closed"
        cut = [number for number, each in enumerate(answers, start=1) if each.body is None]
        if cut and (not self.is_gone or cut[0] < len(answers)):
            yield "an answer is cut short, and the connection goes on"

    def _is_unanswered(self, answers: Sequence[Answer]) -> bool:
        """Tell whether the sidecar hung up on a client without the answer that it had to give."""
        if self.left or self.is_slow or len(answers) >= self.begun:
            return False
        if not all(each.is_whole for each in self.sent):
            return False
        return not answers or not (answers[-1].ends_connection or self._is_old(len(answers) - 1))

    def _is_old(self, number: int) -> bool:
        return not self.sent[number].data.partition(b"\r\n")[0].endswith(b"HTTP/1.1")

    def _wrong(self, answer: Answer, bodies: Mapping[int, Collection[bytes]]) -> Iterator[str]:
        headers, status = answer.headers, answer.status
        if b"x-request-id" not in headers and not _is_preflight_or_health(answer):
            yield f"status {status} without an id: {headers}"
        if not _BETWEEN_SIDECARS.isdisjoint(headers):
            yield f"status {status} with a header that is for sidecars: {headers}"
        if answer.is_ours:
            yield from self._wrong_refusal(answer)
        script = headers.get(requests.SCRIPT, b"")
        if script.isdigit() and not self.sent[0].bodiless:
            want = bodies.get(int(script))
            if want is not None and not answer.is_body(want):
                got = (answer.body or b"")[:300]
                sent = [each[:300] for each in sorted(want)]
                yield f"the engine sent {sent!r}, the client got {got!r}"

    def _wrong_refusal(self, answer: Answer) -> Iterator[str]:
        status, headers = answer.status, answer.headers
        if status in (429, 503) and not all(name in headers for name in _TOLD):
            yield f"status {status} without the headers to try again: {headers}"
        kinds = {kind_of(each.script) for each in self.sent}
        is_clean = all(each.is_whole for each in self.sent)
        if status == 500 or (status == 502 and is_clean and not kinds & NOT_HTTP):
            yield f"status {status}: {answer.body!r} after {kinds}"
        if status > 500 and status not in _CODES:
            yield f"status {status}"
        if answer.body is None and not self.left and not self.is_slow:
            yield f"a refusal with status {status} is cut short"
        elif answer.body and not self.sent[0].bodiless:
            try:
                msgspec.json.decode(answer.body)
            except msgspec.DecodeError:
                yield f"a refusal that is not JSON: {answer.body[:200]!r}"


def _is_preflight_or_health(answer: Answer) -> bool:
    return b"access-control-allow-methods" in answer.headers or (
        answer.headers.get(b"content-type", b"").startswith(b"text/plain")
        and answer.status in (200, 503)
    )


def _first(data: bytes, bodiless: bool) -> tuple[Answer | None, bytes]:
    """Return the first answer and what follows it; None where its head is not whole."""
    end = data.find(b"\r\n\r\n")
    lines = (data if end < 0 else data[:end]).split(b"\r\n")
    found = _STATUS.fullmatch(lines[0])
    if found is None:
        if end < 0 and b"HTTP/1.1 200 x".startswith(lines[0][:7]):
            return None, b""
        raise NotHttp(repr(data[:200]))
    if end < 0:
        return None, b""
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon:
            raise NotHttp(repr(line))
        headers[name.lower()] = value.strip()
    status = int(found[1])
    body, rest = _body(data[end + 4 :], status, headers, bodiless)
    return Answer(status, headers, body), rest


def _body(
    data: bytes, status: int, headers: Mapping[bytes, bytes], bodiless: bool
) -> tuple[bytes | None, bytes]:
    # What could not be read is answered with a body: nothing is known of its method.
    if (bodiless and data[:5] in (b"", b"HTTP/")) or status in (100, 204, 304):
        return b"", data
    if headers.get(b"transfer-encoding") == b"chunked":
        return _unchunked(data)
    if b"content-length" in headers:
        length = int(headers[b"content-length"])
        return (data[:length], data[length:]) if len(data) >= length else (None, b"")
    return data, b""


def _unchunked(data: bytes) -> tuple[bytes | None, bytes]:
    pieces, at = [], 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None, b""
        try:
            size = int(data[at:end].partition(b";")[0], 16)
        except ValueError:
            raise NotHttp(f"a chunk of size {data[at:end][:40]!r}") from None
        at = end + 2
        if len(data) < at + size + 2:
            return None, b""
        pieces.append(data[at : at + size])
        at += size + 2
        if not size:
            return b"".join(pieces), data[at:]
