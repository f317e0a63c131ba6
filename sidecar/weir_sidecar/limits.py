"""The limits of tenants over all replicas, joined to the request path.

`weir_core.route.places` counts. Here its messages travel, and requests wait for a home's word: one
message at a time to each home, which takes along all that came up meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from weir_core.errors import EngineUnavailable
from weir_core.route.places import Answer, Members, Message, Places, Verdict, Wanted, Word
from weir_core.sched.limits import TenantLimits
from weir_core.sched.types import Reason
from weir_core.wire.peers import PLACES_PATH
from weir_core.wire.policies import PolicyDocument
from weir_sidecar.frontend import errors
from weir_sidecar.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from weir_sidecar.inflight import InFlightRequest
    from weir_sidecar.peers.peer import Peer
    from weir_sidecar.peers.peers import Peers

log = logging.getLogger(__name__)

MAX_PLACES_BYTES: Final = 4 << 20
"""Some ten thousand tenants, each with requests."""
_BATCH_S: Final = 0.05
"""What ends or is spent within this is told together."""
_REMINDER_S: Final = 1.0
"""A home is told of what is held there at least so often."""
_ANSWER_S: Final = 1.0
_AGAIN_S: Final = 0.03
"""Between two questions for one request, and after a message without an answer."""
_PATIENCE_S: Final = 3.0
"""After so long without a home's word this replica lets in no more than its part."""
_LONGEST_WAIT_S: Final = 39.0
"""What a client is told at most, before it is spread, as by the scheduler."""
_LATER: Final = Verdict(Word.LATER)
_ENCODER: Final = msgspec.msgpack.Encoder()
_MESSAGE: Final = msgspec.msgpack.Decoder(Message)
_ANSWER: Final = msgspec.msgpack.Decoder(Answer)


class _Asked:
    """A request that waits for a home's word."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

    def settle(self, verdict: Verdict) -> None:
        """Let it go on."""
        if not self.verdict.done():
            self.verdict.set_result(verdict)


class _Line:
    """What is on its way to one home, and what goes next."""

    def __init__(self) -> None:
        self.next: list[_Asked] = []
        self.sent: list[_Asked] = []
        self.task: asyncio.Task[None] | None = None


class FleetLimits:
    """The limits of tenants, as this sidecar and the others keep them together.

    Args:
        peers: The other sidecars of the service.
        tenants: What is counted here.
        metrics: The instruments.
        clock: Seconds that only move forward.
    """

    def __init__(
        self, peers: Peers, tenants: TenantLimits, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._peers = peers
        self._tenants = tenants
        self._metrics = metrics
        self._clock = clock
        # A process begins no more than a thousand sessions in each millisecond.
        self.places = Places(peers.own.name, tenants, peers.own.epoch * 1000)
        self._named: frozenset[str] = frozenset()
        self._lines: dict[str, _Line] = {}
        self._silent: set[str] = set()
        """Homes that gave no word in time, since the view changed."""
        self._timer: asyncio.TimerHandle | None = None
        self._reminded_s = float("-inf")
        self._closed = False
        peers.watch(self._members_changed)

    # ---- what the request path asks

    def counts(self, request: InFlightRequest) -> bool:
        """Tell whether a request is to be counted by all replicas together, and is not yet."""
        caller = request.caller
        assert caller is not None
        return not request.holds_place and self.places.home_of(caller.tenant) != ""

    def place_at_once(self, request: InFlightRequest) -> bool:
        """Count a request among its payer's where no other sidecar is to be asked.

        Returns:
            Whether nothing is left to do.

        Raises:
            ApiError: Its tenant has too much already, here or elsewhere.
        """
        caller = request.caller
        assert caller is not None
        if not self.counts(request):
            return True
        sequences = request.asks.sequences
        if not self._tenants.allows(caller.tenant, sequences):
            raise self._refusal(request, Reason.TOO_LARGE, 0.0)
        if self.places.home_of(caller.tenant) != self.places.own:
            return False
        verdict = self.places.take(caller.tenant, sequences, self._clock())
        return self._heed(request, verdict)

    async def place(self, request: InFlightRequest) -> None:
        """Count a request among its payer's, at the word of the tenant's home.

        One that reached a gateway whose home is silent goes on uncounted: the replica that it goes
        to counts it.

        Raises:
            ApiError: Its tenant has too much already.
        """
        caller, until_s = request.caller, self._clock() + _PATIENCE_S
        assert caller is not None
        wanted = Wanted(caller.tenant, request.asks.sequences)
        while not self.place_at_once(request):
            home, verdict = self.places.home_of(caller.tenant), _LATER
            if home != self.places.own:
                verdict = await self._ask(home, wanted)
            if verdict.word is Word.LATER and (home in self._silent or self._clock() >= until_s):
                self._silent.add(home)
                verdict = self.places.take_part(caller.tenant, wanted.sequences, self._clock())
                self._metrics.places("alone")
                if verdict.word is Word.LATER:
                    return
            if self._heed(request, verdict):
                return
            await asyncio.sleep(_AGAIN_S)

    def free(self, request: InFlightRequest) -> None:
        """Give back what a request that has ended held."""
        if request.places:
            assert request.caller is not None
            self.places.give_back(request.caller.tenant, request.places)
            request.places = 0
        self.poke()

    def poke(self) -> None:
        """Have the homes told soon of what has changed."""
        if self._tenants.changed and self._timer is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_BATCH_S, self._tell)

    def _heed(self, request: InFlightRequest, verdict: Verdict) -> bool:
        """Tell whether a request has its places; raise the refusal."""
        if verdict.word is Word.LATER:
            return False
        if verdict.word is Word.REFUSED:
            # A home may say anything.
            wait_s = min(_LONGEST_WAIT_S, max(1.0, verdict.wait_s))
            raise self._refusal(request, Reason.TENANT_LIMIT, wait_s)
        self._metrics.places("granted")
        request.places = request.asks.sequences
        return True

    def _refusal(self, request: InFlightRequest, reason: Reason, wait_s: float) -> errors.ApiError:
        self._metrics.places("refused")
        self._metrics.of_class(request.class_name).rejections(reason).inc()
        return errors.rejected(reason, wait_s)

    # ---- the other sidecars

    def apply(self, document: PolicyDocument) -> None:
        """Take over the replicas that the document names; its limits are in force."""
        keyed = bool(document.peer_keys)
        self._named = frozenset(one.name for one in document.peers if one.serves and keyed)
        self._members_changed()

    def keep(self) -> None:
        """Do what is due by time; called about once a second."""
        now = self._clock()
        if now - self._reminded_s >= _REMINDER_S:
            self._reminded_s = now
            self.places.remind()
            self._tell()

    def answer(self, sender: str, body: bytes) -> bytes | None:
        """Return the answer to a message of a sidecar; None where it is malformed."""
        try:
            message = _MESSAGE.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return _ENCODER.encode(self.places.on_message(sender, message, self._clock()))

    def close(self) -> None:
        """Tell nobody anything from now on."""
        self._closed = True
        self._peers.watch(None)
        if self._timer is not None:
            self._timer.cancel()
        for line in self._lines.values():
            if line.task is not None:
                line.task.cancel()

    def _members_changed(self) -> None:
        reachable, heard, down = self._peers.seen()
        view = self.places.view
        self.places.learn(Members(self._named, reachable, heard, down), self._clock())
        if self.places.view != view:
            self._silent.clear()
            for line in self._lines.values():  # another home may have to be asked
                for asked in (*line.next, *line.sent):
                    asked.settle(_LATER)
        self._tell()

    # ---- messages

    async def _ask(self, home: str, wanted: Wanted) -> Verdict:
        asked = _Asked(wanted)
        line = self._line_to(home)
        line.next.append(asked)
        self._hurry(home, line)
        try:
            return await asked.verdict
        except asyncio.CancelledError:
            done = asked.verdict.done() and not asked.verdict.cancelled()
            if done and asked.verdict.result().word is Word.GRANTED:
                self.places.give_back(wanted.tenant, wanted.sequences)
                self.poke()
            raise

    def _line_to(self, home: str) -> _Line:
        line = self._lines.get(home)
        if line is None:
            line = self._lines[home] = _Line()
        return line

    def _tell(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for home in self.places.due():
            self._hurry(home, self._line_to(home))

    def _hurry(self, home: str, line: _Line) -> None:
        if line.task is None and not self._closed:
            line.task = asyncio.get_running_loop().create_task(self._talk(home, line))

    async def _talk(self, home: str, line: _Line) -> None:
        """Send messages to one home, one after the other, while there is anything to say."""
        try:
            while True:
                is_due = home in self.places.due()
                line.sent, line.next = [one for one in line.next if not one.verdict.done()], []
                if not line.sent and not is_due:
                    return
                peer = self._peers.find(home)
                if peer is None or not self.places.tells(home):
                    return
                if not await self._exchange(peer, line):
                    await asyncio.sleep(_AGAIN_S)
        finally:
            line.task = None
            for asked in (*line.sent, *line.next):
                asked.settle(_LATER)

    async def _exchange(self, peer: Peer, line: _Line) -> bool:
        """Send one message, and take over its answer or the lack of it."""
        places, home = self.places, peer.name
        message = places.compose(home, [one.wanted for one in line.sent], self._clock())
        answer = await self._send(peer, _ENCODER.encode(message))
        if answer is None:
            places.failed(home)
        elif places.on_answer(home, message, answer, self._clock()):
            for asked, verdict in zip(line.sent, answer.verdicts, strict=False):
                self._hand_over(asked, verdict)
        is_taken = answer is not None and answer.is_known
        for asked in line.sent:
            asked.settle(_LATER)
        return is_taken

    def _hand_over(self, asked: _Asked, verdict: Verdict) -> None:
        wanted = asked.wanted
        if verdict.word is Word.GRANTED:
            if asked.verdict.done():  # the request has ended meanwhile
                self.places.drop(wanted.tenant)
                self.poke()
            else:
                self.places.hold(wanted.tenant, wanted.sequences)
        asked.settle(verdict)

    async def _send(self, peer: Peer, body: bytes) -> Answer | None:
        try:
            reply = await peer.ask(
                PLACES_PATH, body, timeout_s=_ANSWER_S, limit_bytes=MAX_PLACES_BYTES
            )
            return _ANSWER.decode(reply.body) if reply.status == 200 else None
        except EngineUnavailable:
            if peer.on_doubt is not None:
                peer.on_doubt(peer)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            log.warning("answer of a peer is malformed", extra={"error": str(error)})
        return None
