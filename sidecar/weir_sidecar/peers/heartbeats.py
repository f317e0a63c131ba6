"""Heartbeats: when a member gets one, what becomes of it, and who is silent.

Each pair exchanges one heartbeat a period, begun by the side that is due first: the question and
its answer say the same of both. A member is lost when it was silent for too long, and at once when
no connection to it can be opened. A process that was late itself takes nobody for silent: what it
has not read yet waits in its sockets.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from weir_core.errors import EngineUnavailable
from weir_core.wire.peers import HEARTBEAT_PATH, Heartbeat
from weir_sidecar.descriptors import caused_by, is_own_shortage
from weir_sidecar.peers.handshake import OtherName, UnknownKey
from weir_sidecar.peers.member import Member, PeerState
from weir_sidecar.peers.membership import Membership
from weir_sidecar.peers.peer import Peer, Unreachable
from weir_sidecar.settings import Peering
from weir_sidecar.telemetry.metrics import Metrics
from weir_sidecar.upstreams.connections import Reply

log = logging.getLogger(__name__)

MAX_HEARTBEAT_BYTES: Final = 1 << 20
_JITTER: Final = 0.1
"""Part of a period by which heartbeats come sooner or later, so that two sides do not both begin
and all members do not come at once."""
_LOST_PERIOD_S: Final = 1.0
_LOST_GROWTH: Final = 1.5
_LOST_MOST: Final = 5.0
"""A lost member is tried again after a second, and after more with each failure in a row, up to
five; one that is back says so itself."""
_ANSWER_S: Final = 1.0
"""Bound on the answer to a heartbeat."""
_LATE_S: Final = 0.25
"""From here on, what the run loop is late by is not held against the members."""
_DECODER: Final = msgspec.msgpack.Decoder(Heartbeat)


class Heartbeats:
    """Sends heartbeats to the members, and hears the answers.

    Args:
        known: The members.
        peering: Bounds.
        metrics: The instruments.
        clock: Seconds that only move forward.
        say: Returns what a member is told.

    Attributes:
        on_answer: Called with what a member has answered, and when.
        keep_port: Called in each second; the peer port opens and closes by it.
    """

    def __init__(
        self,
        known: Membership,
        peering: Peering,
        metrics: Metrics,
        clock: Callable[[], float],
        say: Callable[[Member], bytes],
    ) -> None:
        self._known = known
        self._peering = peering
        self._metrics = metrics
        self._clock = clock
        self._say = say
        self.on_answer: Callable[[Member, Heartbeat, float], None] | None = None
        self.keep_port: Callable[[], Awaitable[None]] | None = None
        self._port_s = float("-inf")
        self._rng = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers, self._failures = map(metrics.heartbeats.labels, ("answered", "failed"))
        self._received = metrics.heartbeat_bytes.labels("received")
        known.attend = self._attend

    def keep_port_now(self) -> None:
        """Have the port looked at at once."""
        self._port_s = float("-inf")
        self._known.due.hurry()

    def decoded(self, body: bytes, sender: str) -> Heartbeat | None:
        """Return a heartbeat of a sidecar; None where it is malformed."""
        self._received.inc(len(body))
        try:
            heartbeat = _DECODER.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            heartbeat = None
        if heartbeat is None or heartbeat.name != sender:
            self._known.warn("heartbeat is malformed", {"peer": sender})
            return None
        return heartbeat

    async def run(self) -> None:
        """Send heartbeats, and notice who is silent, until cancelled."""
        wanted_s = self._clock()
        try:
            while True:
                now = self._clock()
                self._excuse(now - wanted_s, now)
                for member in self._known.due.due(now + self._known.tick_s / 2):
                    self._look_at(member, now)
                if now >= self._port_s and self.keep_port is not None:
                    self._port_s = now + 1.0
                    await self.keep_port()
                wait_s = min(1.0, max(self._known.tick_s, self._known.due.next_s - now))
                wanted_s = now + wait_s
                await self._known.due.pause(wait_s)
        finally:
            # They end by themselves. Compiled, this task went on after its cancellation when it
            # waited for them here (python -m bench.fuzz --seed 41 --batch 1 --kind fleet).
            for task in self._tasks:
                task.cancel()

    def _excuse(self, late_s: float, now: float) -> None:
        """Leave out of every silence the time in which this process did not run."""
        if late_s > _LATE_S:
            for member in self._known:
                member.heard_s = min(now, member.heard_s + late_s)
                member.asked_s = min(now, member.asked_s + late_s)

    def put_off(self, member: Member, now: float) -> None:
        """Have a member be due a period from now."""
        jitter = 1.0 + _JITTER * (2.0 * self._rng.random() - 1.0)
        member.due_s = now + self._known.period_s * jitter

    def _look_at(self, member: Member, now: float) -> None:
        """Look at one member, and send it a heartbeat unless one waits for its answer."""
        peering = self._peering
        if member.state.is_heard and self.is_silent(member, now):
            member.reached = False
            self._known.become(member, PeerState.LOST)
        if not member.in_document and now - member.heard_s > peering.forget_s:
            self._known.forget(member)
            return
        if member.state.is_heard or member.state is PeerState.NEW:
            self.put_off(member, now)
            silent_s = member.heard_s + peering.silence_s(self._known.period_s)
            member.due_s = min(member.due_s, max(silent_s, now + self._known.tick_s))
        else:
            wait_s = _LOST_PERIOD_S * min(_LOST_GROWTH**member.failures, _LOST_MOST)
            member.due_s = now + max(self._known.period_s, wait_s) * (
                1.0 + _JITTER * self._rng.random()
            )
        if not member.asking:
            self._begin(member, now)
        elif now - member.asked_s >= _ANSWER_S:
            member.peer.give_up()

    def is_silent(self, member: Member, now: float) -> bool:
        """Tell whether a member has said nothing for too long."""
        return now - member.heard_s >= self._peering.silence_s(self._known.period_s)

    def _begin(self, member: Member, now: float) -> None:
        """Send one heartbeat: on a kept connection it needs no task."""
        member.asking, member.asked_s = True, now
        body = self._say(member)
        if not member.peer.ask_at_once(HEARTBEAT_PATH, body, MAX_HEARTBEAT_BYTES):
            self._begin_slowly(member)

    def _begin_slowly(self, member: Member) -> None:
        task = asyncio.get_running_loop().create_task(self._ask(member))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("heartbeat failed", exc_info=task.exception())
            self._metrics.task_failures.inc()

    async def _ask(self, member: Member) -> None:
        """Send one heartbeat on a new connection."""
        peer = member.peer
        try:
            reply = await peer.ask(
                HEARTBEAT_PATH,
                self._say(member),
                timeout_s=_ANSWER_S,
                limit_bytes=MAX_HEARTBEAT_BYTES,
            )
        except EngineUnavailable as error:
            member.asking = False
            if peer is member.peer and not member.is_gone:
                self._failed(member, error)
        else:
            member.asking = False
            if peer is member.peer and not member.is_gone:
                self._answered(member, reply)

    def _replied(self, peer: Peer, reply: Reply | None, has_died: bool) -> None:
        """Take the answer that came on a kept connection."""
        member = self._known.of(peer)
        if member is None:
            return
        if reply is not None:
            member.asking = False
            self._answered(member, reply)
        elif has_died:  # while it was kept, perhaps
            self._begin_slowly(member)
        else:
            member.asking = False
            self._failed(member, EngineUnavailable("no answer in time"))

    def _answered(self, member: Member, reply: Reply) -> None:
        """Take over what the answer to a heartbeat says."""
        now = self._clock()
        heartbeat = self.decoded(reply.body, member.name) if reply.status == 200 else None
        if heartbeat is None:
            self._failed(member, EngineUnavailable(f"answer of status {reply.status}"))
            return
        self._answers.inc()
        member.failures, member.rtt_s = 0, now - member.asked_s
        if self.on_answer is not None:
            self.on_answer(member, heartbeat, now)

    def _failed(self, member: Member, error: EngineUnavailable) -> None:
        """Note that a heartbeat has no answer."""
        if is_own_shortage(error):
            return  # what was known of the peer stays
        self._failures.inc()
        member.failures += 1
        is_refused = caused_by(error, ConnectionRefusedError) is not None
        self._known.note_down(member, is_refused)
        if isinstance(error, UnknownKey):
            words = {**self._known.words(member), "why": str(error)}
            self._known.warn("peer does not know our key", words)
            self._out_of_reach(member, PeerState.UNKNOWN_KEY)
        elif isinstance(error, Unreachable | OtherName):
            self._out_of_reach(member, PeerState.LOST)

    def _out_of_reach(self, member: Member, state: PeerState) -> None:
        member.reached = False
        self._known.become(member, state)
        address = member.document_address
        if address and address != member.peer.address:
            self._known.move(member, address)

    def _unreachable(self, peer: Peer) -> None:
        """Note that no connection could be opened for a request."""
        member = self._known.of(peer)
        if member is not None:
            if member.state.is_heard:
                self._known.due.put_now(member)  # to find out whether anything is there
            self._out_of_reach(member, PeerState.LOST)

    def _doubted(self, peer: Peer) -> None:
        """Look at once whether a member is still there: a connection to it has ended."""
        member = self._known.of(peer)
        if member is not None and member.state.is_heard:
            self._known.due.put_now(member)

    def _attend(self, peer: Peer) -> None:
        peer.on_unreachable, peer.on_doubt = self._unreachable, self._doubted
        peer.on_reply = self._replied
