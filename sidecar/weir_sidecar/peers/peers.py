"""The other sidecars of the service: who is there, in what state, with what load.

Members come from the policy document, from whoever greets with the service's key, and from what
others tell a newcomer. Each pair exchanges one heartbeat a period, begun by the side that is due
first: the question and its answer say the same of both. A member may get requests once a
heartbeat of ours was answered, so that a connection to it is known to work and is kept.

A member is lost when it was silent for too long, and at once when no connection to it can be
opened. A process that was late itself takes nobody for silent: what it has not read yet waits in
its sockets.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Protocol

import msgspec

from weir_core.errors import EngineUnavailable
from weir_core.route.digest import DigestUpdate
from weir_core.route.router import Router
from weir_core.route.types import Ask, LoadVector
from weir_core.wire.peer_auth import Keys, is_name
from weir_core.wire.peers import HEARTBEAT_PATH, PROTOCOL, Heartbeat
from weir_core.wire.policies import PeerEntry, PolicyDocument
from weir_sidecar.descriptors import is_own_shortage
from weir_sidecar.peers.due import DueQueue
from weir_sidecar.peers.handshake import OtherName, UnknownKey
from weir_sidecar.peers.member import Member, PeerState
from weir_sidecar.peers.own import Own
from weir_sidecar.peers.peer import Peer, Unreachable, split_address
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry.logs import Seldom
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
_TICK: Final = 0.1
"""Members that are due within this part of a period are looked at together: a wake-up costs as much
as a heartbeat."""
_SPREAD_S: Final = 1.0
"""256 new members are greeted over this time, fewer over a part of it."""
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Heartbeat)


class Digests(Protocol):
    """What the prefixes' side makes of digests."""

    def update_for(self, seq: int) -> DigestUpdate | None:
        """Return what a peer needs that has the digest of this number."""

    def heard(self, peer: str, update: DigestUpdate) -> int:
        """Take an update of a peer's digest; return the number of the digest that is held."""

    def peer_gone(self, peer: str) -> None:
        """Forget a peer that has left."""


class Peers:
    """The other sidecars of the service.

    Args:
        name: Of this one; empty stands for a name made of its address.
        settings: Addresses and bounds.
        metrics: The instruments.
        clock: Seconds that only move forward.
        load: This replica's load, now; None while there is none to tell.
        gateway: This sidecar never has an engine.

    Attributes:
        router: Knows the loads of those that may get requests.
        on_load: Called after a member's load was heard.
        on_lost: Called when a member that might have had requests of ours is lost.
        keep_port: Called in each second; the peer port opens and closes by it.
        digests: What makes digests of prefixes, if anything does.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float],
        load: Callable[[], LoadVector | None],
        gateway: bool = False,
    ) -> None:
        self.settings = settings
        self.own = Own(name, settings.addresses, load, clock)
        self.router = Router("" if gateway else self.own.name)
        self.on_load: Callable[[str], None] | None = None
        self.on_lost: Callable[[str], None] | None = None
        self.keep_port: Callable[[], Awaitable[None]] | None = None
        self.digests: Digests | None = None
        self.usable = 0
        """Members that may get requests now."""
        self._gateway = gateway
        self._metrics = metrics
        self._clock = clock
        self._port_s = float("-inf")
        self._rng = random.Random()
        self._members: dict[str, Member] = {}
        self._names: tuple[str, ...] | None = None
        self._count_members()
        self._due = DueQueue(clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._seldom: dict[str, Seldom] = {}
        self._closed = False
        self._heard, self._answers, self._failures = map(
            metrics.heartbeats.labels, ("heard", "answered", "failed")
        )
        self._sent, self._received = map(metrics.heartbeat_bytes.labels, ("sent", "received"))
        for state in PeerState:
            metrics.peers.labels(state)
        metrics.peer_load_age.set_function(self._oldest_load_s)

    # ---- what the request path asks

    def find(self, name: str) -> Peer | None:
        """Return the way to a member."""
        member = self._members.get(name)
        return None if member is None else member.peer

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all replicas, this one among them; the same in every sidecar."""
        if self._names is None:
            found = [one.name for one in self._members.values() if one.state.has_load]
            self._names = tuple(sorted(found if self._gateway else [*found, self.own.name]))
        return self._names

    def forwarding(self, ask: Ask, name: str, cached: int) -> int:
        """Note that a request goes to a member; return its number there."""
        self.router.on_sent(name, ask, cached)
        member = self._members.get(name)
        if member is None:
            return 0
        member.sent += 1
        member.unacknowledged.append((member.sent, ask.request_id))
        return member.sent

    def taken(self, sender: str, number: int) -> None:
        """Note a request that a member has forwarded and that is in the load from now on."""
        self._metrics.forwards_taken.inc()
        self.own.load_changed()
        member = self._members.get(sender)
        if member is not None and number > member.taken:
            member.taken = number

    # ---- what changes it

    def listens_at(self, port: int) -> None:
        """Note the port that the peer port got."""
        self.own.listens_at(port)

    def tell_now(self) -> None:
        """Send heartbeats at once: the load has changed in a way that the others must know."""
        self.own.load_changed()
        for member in self._members.values():
            if member.state.is_heard:
                self._due.put_now(member)

    def apply(self, document: PolicyDocument) -> None:
        """Take over the keys and the members that the document names."""
        self._apply_keys(Keys(document.peer_keys))
        named = document.peers if self.own.keys else ()
        now = self._clock()
        for member in self._members.values():
            member.in_document = False
        for entry in named:
            known = self._learn(entry, now)
            if known is None:
                continue
            known.in_document = True
            if entry.address != known.document_address:
                known.document_address = entry.address
                self._move(known, entry.address)
        if not self.own.keys:
            for member in list(self._members.values()):
                self._forget(member)
        self._port_s = float("-inf")
        self._due.hurry()

    def _apply_keys(self, keys: Keys) -> None:
        before, self.own.keys = self.own.keys, keys
        if any(each not in keys for each in before.ids):
            for member in self._members.values():
                member.peer.drop_idle()
        if before.ids != keys.ids:
            for member in self._members.values():
                if member.state is PeerState.UNKNOWN_KEY:
                    self._due.put_now(member)

    def _learn(self, entry: PeerEntry, now: float) -> Member | None:
        """Return a member, which may be new; None where it cannot be one."""
        member = self._members.get(entry.name)
        if member is not None or entry.name == self.own.name or self._closed:
            return member
        if not is_name(entry.name) or not _is_address(entry.address):
            self._warn("peer without a usable name and address", {})
            return None
        if len(self._members) >= self.settings.peering.most:
            self._warn(
                "too many peers: some are not heard", {"at_most": self.settings.peering.most}
            )
            return None
        member = Member(self._way_to(entry.name, entry.address), now)
        self._members[entry.name] = member
        self._count_members()
        self._metrics.peers.labels(member.state).inc()
        log.info("peer known", extra=self._words(member))
        spread_s = _SPREAD_S * min(1.0, len(self._members) / 256)
        self._due.put(member, now + self._rng.random() * spread_s)
        return member

    def _count_members(self) -> None:
        self._period_s = self.settings.peering.period_s(len(self._members))
        self._tick_s = _TICK * self._period_s

    def _way_to(self, name: str, address: str) -> Peer:
        peer = Peer(self.own, name, address, self.settings, self._metrics, self._clock)
        peer.on_unreachable, peer.on_doubt = self._unreachable, self._doubted
        peer.on_reply = self._replied
        return peer

    def _move(self, member: Member, address: str) -> None:
        """Note that a member is at another address."""
        if address == member.peer.address or not _is_address(address):
            return
        member.peer.close()
        member.peer = self._way_to(member.name, address)
        member.reached = member.asking = False
        if member.state.has_load:
            self._become(member, PeerState.NEW)
        self._due.put_now(member)

    def _forget(self, member: Member) -> None:
        self._become(member, PeerState.LOST)
        member.is_gone = True
        member.peer.close()
        del self._members[member.name]
        self._count_members()
        self._metrics.peers.labels(member.state).dec()
        if self.digests is not None:
            self.digests.peer_gone(member.name)
        log.info("peer forgotten", extra=self._words(member))

    def _become(self, member: Member, state: PeerState) -> None:
        """Change a member's state, and tell of a loss."""
        before = member.state
        if before is state:
            return
        member.state = state
        self._names = None
        self.usable += (state is PeerState.USABLE) - (before is PeerState.USABLE)
        self._metrics.peers.labels(before).dec()
        self._metrics.peers.labels(state).inc()
        log.info("peer is %s", state.value, extra=self._words(member))
        if before.has_load and not state.has_load:
            self.router.on_gone(member.name)
            member.unacknowledged.clear()
            if self.on_lost is not None:
                self.on_lost(member.name)

    # ---- what is heard

    def greeted(self, name: str, epoch: int) -> None:
        """Note that a sidecar has opened a connection and shown its key."""
        member = self._members.get(name)
        if member is not None:
            member.counts_anew(epoch)

    def answer(self, sender: str, body: bytes) -> bytes | None:
        """Return the answer to the heartbeat of a sidecar; None where it is malformed."""
        now = self._clock()
        self._received.inc(len(body))
        heartbeat = self._decoded(body, sender)
        if heartbeat is None or heartbeat.name != sender:
            return None
        member = self._learn(PeerEntry(sender, heartbeat.address), now)
        if member is None:
            return None
        self._heard.inc()
        self._note(member, heartbeat, now, member.rtt_s / 2)
        known: tuple[PeerEntry, ...] = ()
        if heartbeat.asks_peers:
            known = tuple(self._entries(but=sender))
        return self._encoded(member, known)

    def _note(self, member: Member, heartbeat: Heartbeat, now: float, transit_s: float) -> None:
        """Take over what a member says of itself."""
        if heartbeat.epoch != member.epoch and not self._note_epoch(member, heartbeat.epoch, now):
            return
        member.heard_s = now
        if member.reached:
            self._put_off(member, now)
        elif not member.asking:  # it is for us to find out whether it can be reached
            self._due.put_now(member)
        if heartbeat.address and heartbeat.address != member.peer.address:
            self._move(member, heartbeat.address)
        for entry in heartbeat.peers[: self.settings.peering.most]:
            self._learn(entry, now)
        if heartbeat.protocol > PROTOCOL:
            self._become(member, PeerState.NEWER)
            return
        measured_s = now - max(0.0, heartbeat.age_s) - transit_s
        self._acknowledge(member, heartbeat.received, measured_s)
        self._note_digest(member, heartbeat)
        if member.reached:
            self._note_load(member, heartbeat.load, measured_s, now)

    def _note_load(
        self, member: Member, load: LoadVector | None, measured_s: float, now: float
    ) -> None:
        if load is None:
            self._become(member, PeerState.GATEWAY)
            return
        member.loaded_s = measured_s
        self._become(member, PeerState.DRAINING if load.draining else PeerState.USABLE)
        self.router.on_load(member.name, load, now - measured_s, now)
        if self.on_load is not None:
            self.on_load(member.name)

    def _note_epoch(self, member: Member, epoch: int, now: float) -> bool:
        """Note another process of a member; false where it is the older one of two."""
        if member.epoch and epoch < member.epoch and not self._is_silent(member, now):
            self._warn("two sidecars have one name", self._words(member))
            return False
        if member.epoch:
            log.info("peer restarted", extra=self._words(member))
            if member.state.has_load:
                self._become(member, PeerState.NEW)
            member.reached = False
            self._due.put_now(member)
        member.restarted(epoch)
        member.counts_anew(epoch)
        return True

    def _acknowledge(self, member: Member, received: int, measured_s: float) -> None:
        waiting = member.unacknowledged
        while waiting and waiting[0][0] <= received:
            self.router.on_acknowledged(waiting.popleft()[1], measured_s)

    def _note_digest(self, member: Member, heartbeat: Heartbeat) -> None:
        member.told_seq = heartbeat.digest_seq
        if self.digests is not None and heartbeat.digest is not None:
            member.held_seq = self.digests.heard(member.name, heartbeat.digest)

    def _decoded(self, body: bytes, sender: str) -> Heartbeat | None:
        try:
            return _DECODER.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._warn("heartbeat is malformed", {"peer": sender})
            return None

    # ---- what is said

    def _encoded(self, member: Member, known: tuple[PeerEntry, ...] = ()) -> bytes:
        own, digest = self.own, None
        load, age_s = own.load()
        if self.digests is not None:
            digest = self.digests.update_for(member.told_seq)
        body = _ENCODER.encode(
            Heartbeat(
                own.name,
                own.address,
                own.epoch,
                load,
                age_s,
                member.taken,
                known,
                digest,
                member.held_seq,
                asks_peers=not member.told_peers,
            )
        )
        self._sent.inc(len(body))
        return body

    def _entries(self, but: str) -> Iterable[PeerEntry]:
        for member in self._members.values():
            if member.state.is_heard and member.name != but:
                yield PeerEntry(member.name, member.peer.address)

    # ---- heartbeats

    async def run(self) -> None:
        """Send heartbeats, and notice who is silent, until cancelled."""
        wanted_s = self._clock()
        try:
            while True:
                now = self._clock()
                self._excuse(now - wanted_s, now)
                for member in self._due.due(now + self._tick_s / 2):
                    self._look_at(member, now)
                if now >= self._port_s and self.keep_port is not None:
                    self._port_s = now + 1.0
                    await self.keep_port()
                wait_s = min(1.0, max(self._tick_s, self._due.next_s - now))
                wanted_s = now + wait_s
                await self._due.pause(wait_s)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _excuse(self, late_s: float, now: float) -> None:
        """Leave out of every silence the time in which this process did not run."""
        if late_s > _LATE_S:
            for member in self._members.values():
                member.heard_s = min(now, member.heard_s + late_s)

    def _put_off(self, member: Member, now: float) -> None:
        """Have a member be due a period from now."""
        jitter = 1.0 + _JITTER * (2.0 * self._rng.random() - 1.0)
        member.due_s = now + self._period_s * jitter

    def _look_at(self, member: Member, now: float) -> None:
        """Look at one member, and send it a heartbeat unless one waits for its answer."""
        peering = self.settings.peering
        if member.state.is_heard and self._is_silent(member, now):
            member.reached = False
            self._become(member, PeerState.LOST)
        if not member.in_document and now - member.heard_s > peering.forget_s:
            self._forget(member)
            return
        if member.state.is_heard or member.state is PeerState.NEW:
            self._put_off(member, now)
            silent_s = member.heard_s + peering.silence_s(self._period_s)
            member.due_s = min(member.due_s, max(silent_s, now + self._tick_s))
        else:
            wait_s = _LOST_PERIOD_S * min(_LOST_GROWTH**member.failures, _LOST_MOST)
            member.due_s = now + max(self._period_s, wait_s) * (1.0 + _JITTER * self._rng.random())
        if not member.asking:
            self._begin(member, now)
        elif now - member.asked_s >= _ANSWER_S:
            member.peer.give_up()

    def _is_silent(self, member: Member, now: float) -> bool:
        return now - member.heard_s >= self.settings.peering.silence_s(self._period_s)

    def _begin(self, member: Member, now: float) -> None:
        """Send one heartbeat: on a kept connection it needs no task."""
        member.asking, member.asked_s = True, now
        body = self._encoded(member)
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
                self._encoded(member),
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
        member = self._members.get(peer.name)
        if member is None or member.peer is not peer:
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
        self._received.inc(len(reply.body))
        heartbeat = self._decoded(reply.body, member.name) if reply.status == 200 else None
        if heartbeat is None or heartbeat.name != member.name:
            self._failed(member, EngineUnavailable(f"answer of status {reply.status}"))
            return
        self._answers.inc()
        member.failures, member.rtt_s = 0, now - member.asked_s
        member.reached = member.told_peers = True
        self._note(member, heartbeat, now, member.rtt_s / 2)

    def _failed(self, member: Member, error: EngineUnavailable) -> None:
        """Note that a heartbeat has no answer."""
        if is_own_shortage(error.__cause__):
            return  # what was known of the peer stays
        self._failures.inc()
        member.failures += 1
        if isinstance(error, UnknownKey):
            words = {**self._words(member), "why": str(error)}
            self._warn("peer does not know our key", words)
            self._out_of_reach(member, PeerState.UNKNOWN_KEY)
        elif isinstance(error, Unreachable | OtherName):
            self._out_of_reach(member, PeerState.LOST)

    def _out_of_reach(self, member: Member, state: PeerState) -> None:
        member.reached = False
        self._become(member, state)
        address = member.document_address
        if address and address != member.peer.address:
            self._move(member, address)

    def _unreachable(self, peer: Peer) -> None:
        """Note that no connection could be opened for a request."""
        member = self._members.get(peer.name)
        if member is not None and member.peer is peer:
            self._out_of_reach(member, PeerState.LOST)

    def _doubted(self, peer: Peer) -> None:
        """Look at once whether a member is still there: a connection to it has ended."""
        member = self._members.get(peer.name)
        if member is not None and member.peer is peer and member.state.is_heard:
            self._due.put_now(member)

    # ---- what is shown

    def states(self) -> list[dict[str, object]]:
        """Return what is known of each member, for `/state`."""
        now = self._clock()
        return [
            {
                "name": member.name,
                "address": member.peer.address,
                "state": member.state.value,
                "heard_s": round(now - member.heard_s, 3),
                "load_age_s": round(now - member.loaded_s, 3) if member.state.has_load else None,
                "rtt_ms": round(1e3 * member.rtt_s, 3),
                "in_document": member.in_document,
                "forwarded": member.sent,
                "taken": member.taken,
            }
            for member in sorted(self._members.values(), key=lambda one: one.name)
        ]

    def _oldest_load_s(self) -> float:
        now = self._clock()
        usable = (one for one in self._members.values() if one.state is PeerState.USABLE)
        return max((now - one.loaded_s for one in usable), default=0.0)

    def _words(self, member: Member) -> dict[str, object]:
        return {"peer": member.name, "address": member.peer.address}

    def _warn(self, event: str, words: dict[str, object]) -> None:
        """Write a warning, each event seldom."""
        seldom = self._seldom.get(event)
        if seldom is None:
            seldom = self._seldom[event] = Seldom(self._clock)
        seldom.warn(log, event, words)

    def close(self) -> None:
        """Close the idle connections, and know nobody from now on."""
        self._closed = True
        for member in list(self._members.values()):
            self._forget(member)


def _is_address(address: str) -> bool:
    try:
        split_address(address)
    except ValueError:
        return False
    return True
