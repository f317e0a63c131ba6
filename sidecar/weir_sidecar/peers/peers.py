"""The other sidecars of the service: who is there, in what state, with what load.

Members come from the policy document, from whoever greets with the service's key, and from what
others tell a newcomer. A member may get requests once a heartbeat of ours was answered, so that a
connection to it is known to work and is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import msgspec

from weir_core.route.router import Router
from weir_core.route.types import Ask, DigestUpdate, LoadVector
from weir_core.wire.peer_auth import Keys
from weir_core.wire.peers import PROTOCOL, Heartbeat
from weir_core.wire.policies import PeerEntry, PolicyDocument
from weir_sidecar.peers.heartbeats import Heartbeats
from weir_sidecar.peers.member import Member, PeerState
from weir_sidecar.peers.membership import Membership
from weir_sidecar.peers.own import Own
from weir_sidecar.peers.peer import Peer
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

_ENCODER: Final = msgspec.msgpack.Encoder()


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
        on_served: Called with what a member has served to a tenant: class, tenant, tokens.
        on_lost: Called when a member that might have had requests of ours is lost.
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
        self.on_served: Callable[[str, str, float], None] | None = None
        self.on_lost: Callable[[str], None] | None = None
        self.digests: Digests | None = None
        self._metrics = metrics
        self._clock = clock
        self._known = Membership(self.own, settings, metrics, clock, gateway)
        self._known.on_loss, self._known.on_forgotten = self._lost, self._forgotten
        self._heartbeats = Heartbeats(self._known, settings.peering, metrics, clock, self._encoded)
        self._heartbeats.on_answer = self._answered
        self._heard = metrics.heartbeats.labels("heard")
        self._sent = metrics.heartbeat_bytes.labels("sent")

    # ---- what the request path asks

    @property
    def usable(self) -> int:
        """Members that may get requests now."""
        return self._known.usable

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all replicas, this one among them; the same in every sidecar."""
        return self._known.names

    def find(self, name: str) -> Peer | None:
        """Return the way to a member."""
        member = self._known.get(name)
        return None if member is None else member.peer

    def watch(self, on_change: Callable[[], None] | None) -> None:
        """Have this called when a member has become something else to this sidecar."""
        self._known.on_change = on_change

    def seen(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        """Return who has an engine and can be asked, who is heard, and who refuses connections."""
        return self._known.seen()

    def forwarding(self, ask: Ask, name: str, cached: int) -> int:
        """Note that a request goes to a member; return its number there."""
        self.router.on_sent(name, ask, cached)
        member = self._known.get(name)
        if member is None:
            return 0
        member.sent += 1
        member.unacknowledged.append((member.sent, ask.request_id))
        return member.sent

    def taken(self, sender: str, number: int) -> None:
        """Note a request that a member has forwarded and that is in the load from now on."""
        self.own.load_changed()
        member = self._known.get(sender)
        if member is not None and number > member.taken:
            member.taken = number

    # ---- what changes it

    def listens_at(self, port: int) -> None:
        """Note the port that the peer port got."""
        self.own.listens_at(port)

    def keep_port(self, keep: Callable[[], Awaitable[None]] | None) -> None:
        """Have the peer port looked at in each second, and at once where the keys change."""
        self._heartbeats.keep_port = keep

    def tell_now(self) -> None:
        """Send heartbeats at once: the load has changed in a way that the others must know."""
        self.own.load_changed()
        for member in self._known:
            if member.state.is_heard:
                self._known.due.put_now(member)

    def apply(self, document: PolicyDocument) -> None:
        """Take over the keys and the members that the document names."""
        self._apply_keys(Keys(document.peer_keys))
        named = document.peers if self.own.keys else ()
        now = self._clock()
        for member in self._known:
            member.in_document = False
        for entry in named:
            known = self._known.learn(entry, now)
            if known is None:
                continue
            known.in_document = True
            if entry.address != known.document_address:
                known.document_address = entry.address
                self._known.move(known, entry.address)
        if not self.own.keys:
            for member in list(self._known):
                self._known.forget(member)
        self._heartbeats.keep_port_now()

    def _apply_keys(self, keys: Keys) -> None:
        before, self.own.keys = self.own.keys, keys
        if any(each not in keys for each in before.ids):
            for member in self._known:
                member.peer.drop_idle()
        if before.ids != keys.ids:
            for member in self._known:
                if member.state is PeerState.UNKNOWN_KEY:
                    self._known.due.put_now(member)

    # ---- what is heard

    def greeted(self, name: str, epoch: int) -> None:
        """Note that a sidecar has opened a connection and shown its key."""
        member = self._known.get(name)
        if member is not None:
            member.counts_anew(epoch)

    def answer(self, sender: str, body: bytes) -> bytes | None:
        """Return the answer to the heartbeat of a sidecar; None where it is malformed."""
        now = self._clock()
        heartbeat = self._heartbeats.decoded(body, sender)
        if heartbeat is None:
            return None
        member = self._known.learn(PeerEntry(sender, heartbeat.address), now)
        if member is None:
            return None
        self._heard.inc()
        if self._is_present(member, heartbeat.epoch, now):
            self._note(member, heartbeat, now)
        known: tuple[PeerEntry, ...] = ()
        if heartbeat.asks_peers:
            known = tuple(self._known.entries(but=sender))
        return self._encoded(member, known)

    def _answered(self, member: Member, heartbeat: Heartbeat, now: float) -> None:
        """Take over an answer: the member can be reached."""
        if self._is_present(member, heartbeat.epoch, now):
            member.reached = member.told_peers = True
            self._note(member, heartbeat, now)

    def _note(self, member: Member, heartbeat: Heartbeat, now: float) -> None:
        """Take over what a member says of itself."""
        member.heard_s = now
        if member.reached:
            self._heartbeats.put_off(member, now)
        elif not member.asking:  # it is for us to find out whether it can be reached
            self._known.due.put_now(member)
        if heartbeat.address and heartbeat.address != member.peer.address:
            self._known.move(member, heartbeat.address)
        for entry in heartbeat.peers[: self.settings.peering.most]:
            self._known.learn(entry, now)
        if heartbeat.protocol > PROTOCOL:
            self._known.become(member, PeerState.NEWER)
            return
        measured_s = now - max(0.0, heartbeat.age_s) - member.rtt_s / 2
        self._acknowledge(member, heartbeat.received, measured_s)
        self._note_digest(member, heartbeat)
        self._note_served(member, heartbeat)
        if member.reached:
            self._note_load(member, heartbeat.load, measured_s, now)

    def _note_load(
        self, member: Member, load: LoadVector | None, measured_s: float, now: float
    ) -> None:
        if load is None:
            self._known.become(member, PeerState.GATEWAY)
            return
        member.loaded_s = measured_s
        self._known.become(member, PeerState.DRAINING if load.draining else PeerState.USABLE)
        self.router.on_load(member.name, load, now - measured_s, now)
        if self.on_load is not None:
            self.on_load(member.name)

    def _is_present(self, member: Member, epoch: int, now: float) -> bool:
        """Tell whether a member's present process speaks, and not an older one beside it."""
        if epoch == member.epoch:
            return True
        if member.epoch and epoch < member.epoch and not self._heartbeats.is_silent(member, now):
            self._known.warn("two sidecars have one name", self._known.words(member))
            return False
        if member.epoch:
            log.info("peer restarted", extra=self._known.words(member))
            if member.state.has_load:
                self._known.become(member, PeerState.NEW)
            member.reached = False
            self._known.due.put_now(member)
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

    def _note_served(self, member: Member, heartbeat: Heartbeat) -> None:
        if self.on_served is not None and heartbeat.served is not None:
            for each in member.served.news(heartbeat.served):
                self.on_served(each.class_name, each.tenant, each.tokens)

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
                served=own.served(),
            )
        )
        self._sent.inc(len(body))
        return body

    # ---- what becomes of members

    async def run(self) -> None:
        """Send heartbeats, and notice who is silent, until cancelled."""
        await self._heartbeats.run()

    def _lost(self, member: Member) -> None:
        self.router.on_gone(member.name)
        member.unacknowledged.clear()
        member.served.lost()
        if self.on_lost is not None:
            self.on_lost(member.name)

    def _forgotten(self, member: Member) -> None:
        if self.digests is not None:
            self.digests.peer_gone(member.name)

    def states(self) -> list[dict[str, object]]:
        """Return what is known of each member, for `/state`."""
        return self._known.states()

    def close(self) -> None:
        """Close the idle connections, and know nobody from now on."""
        self._known.close()
