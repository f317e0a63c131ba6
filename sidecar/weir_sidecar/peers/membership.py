"""Who the other sidecars of the service are, and what each of them is to this one."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from weir_core.wire.peer_auth import is_name
from weir_core.wire.policies import PeerEntry
from weir_sidecar.peers.due import DueQueue
from weir_sidecar.peers.member import Member, PeerState
from weir_sidecar.peers.own import Own
from weir_sidecar.peers.peer import Peer, split_address
from weir_sidecar.settings import Settings
from weir_sidecar.telemetry.logs import Seldom
from weir_sidecar.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

_TICK: Final = 0.1
"""Members that are due within this part of a period are looked at together: a wake-up costs as much
as a heartbeat."""
_SPREAD_S: Final = 1.0
"""256 new members are greeted over this time, fewer over a part of it."""


class Membership:
    """The members, their states, and when each is to be looked at.

    Args:
        own: This sidecar.
        settings: Bounds.
        metrics: The instruments.
        clock: Seconds that only move forward.
        gateway: This sidecar never has an engine.

    Attributes:
        usable: Members that may get requests now.
        period_s: Time between two heartbeats of a pair.
        tick_s: Members that are due within this time are looked at together.
        due: The members by when they are due.
        attend: Called with each new way to a member.
        on_loss: Called when a member's load is not known any more.
        on_forgotten: Called when a member is known no longer.
        on_change: Called when a member has become something else to this one.
    """

    def __init__(
        self,
        own: Own,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float],
        gateway: bool,
    ) -> None:
        self._own = own
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._gateway = gateway
        self._rng = random.Random()
        self._members: dict[str, Member] = {}
        self._names: tuple[str, ...] | None = None
        self._seldom: dict[str, Seldom] = {}
        self._closed = False
        self.usable = 0
        self.period_s = self.tick_s = 0.0
        self._count()
        self.due = DueQueue(clock)
        self.attend: Callable[[Peer], None] | None = None
        self.on_loss: Callable[[Member], None] | None = None
        self.on_forgotten: Callable[[Member], None] | None = None
        self.on_change: Callable[[], None] | None = None
        for state in PeerState:
            metrics.peers.labels(state)
        metrics.peer_load_age.set_function(self._oldest_load_s)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def get(self, name: str) -> Member | None:
        """Return a member by its name."""
        return self._members.get(name)

    def of(self, peer: Peer) -> Member | None:
        """Return the member that a way leads to; None where there is another way to it by now."""
        member = self._members.get(peer.name)
        return member if member is not None and member.peer is peer else None

    def learn(self, entry: PeerEntry, now: float) -> Member | None:
        """Return a member, which may be new; None where it cannot be one."""
        member = self._members.get(entry.name)
        if member is not None or entry.name == self._own.name or self._closed:
            return member
        if not is_name(entry.name) or not _is_address(entry.address):
            self.warn("peer without a usable name and address", {})
            return None
        if len(self._members) >= self._settings.peering.most:
            self.warn(
                "too many peers: some are not heard", {"at_most": self._settings.peering.most}
            )
            return None
        member = Member(self._way_to(entry.name, entry.address), now)
        self._members[entry.name] = member
        self._count()
        self._metrics.peers.labels(member.state).inc()
        log.info("peer known", extra=self.words(member))
        spread_s = _SPREAD_S * min(1.0, len(self._members) / 256)
        self.due.put(member, now + self._rng.random() * spread_s)
        return member

    def _count(self) -> None:
        self.period_s = self._settings.peering.period_s(len(self._members))
        self.tick_s = _TICK * self.period_s

    def _way_to(self, name: str, address: str) -> Peer:
        peer = Peer(self._own, name, address, self._settings, self._metrics, self._clock)
        if self.attend is not None:
            self.attend(peer)
        return peer

    def move(self, member: Member, address: str) -> None:
        """Note that a member is at another address."""
        if address == member.peer.address or not _is_address(address):
            return
        member.peer.close()
        member.peer = self._way_to(member.name, address)
        member.reached = member.asking = False
        if member.state.has_load:
            self.become(member, PeerState.NEW)
        self.due.put_now(member)

    def forget(self, member: Member) -> None:
        """Know a member no longer."""
        self.become(member, PeerState.LOST)
        member.is_gone = True
        member.peer.close()
        del self._members[member.name]
        self._count()
        self._metrics.peers.labels(member.state).dec()
        log.info("peer forgotten", extra=self.words(member))
        if self.on_forgotten is not None:
            self.on_forgotten(member)

    def become(self, member: Member, state: PeerState) -> None:
        """Change a member's state, and tell of a loss."""
        before = member.state
        if before is state:
            return
        member.state = state
        self._names = None
        self.usable += (state is PeerState.USABLE) - (before is PeerState.USABLE)
        self._metrics.peers.labels(before).dec()
        self._metrics.peers.labels(state).inc()
        log.info("peer is %s", state.value, extra=self.words(member))
        if before.has_load and not state.has_load and self.on_loss is not None:
            self.on_loss(member)
        if self.on_change is not None:
            self.on_change()

    def note_down(self, member: Member, is_down: bool) -> None:
        """Note whether a member's address refuses connections."""
        before, member.is_down = member.is_down, is_down
        if before != is_down and not member.state.is_heard and self.on_change is not None:
            self.on_change()

    def seen(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        """Return who has an engine and can be asked, who is heard, and who refuses connections."""
        members = self._members.values()
        heard = [one for one in members if one.state.has_load or one.state is PeerState.GATEWAY]
        return (
            frozenset(one.name for one in heard if one.state.has_load),
            frozenset(one.name for one in heard),
            frozenset(one.name for one in members if one.is_down and not one.state.is_heard),
        )

    def entries(self, but: str) -> Iterable[PeerEntry]:
        """Yield where the members are that are heard."""
        for member in self._members.values():
            if member.state.is_heard and member.name != but:
                yield PeerEntry(member.name, member.peer.address)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all replicas, this one among them; the same in every sidecar."""
        if self._names is None:
            found = [one.name for one in self._members.values() if one.state.has_load]
            self._names = tuple(sorted(found if self._gateway else [*found, self._own.name]))
        return self._names

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

    def words(self, member: Member) -> dict[str, object]:
        """Return a member, for a log line."""
        return {"peer": member.name, "address": member.peer.address}

    def warn(self, event: str, words: dict[str, object]) -> None:
        """Write a warning, each event seldom."""
        seldom = self._seldom.get(event)
        if seldom is None:
            seldom = self._seldom[event] = Seldom(self._clock)
        seldom.warn(log, event, words)

    def close(self) -> None:
        """Forget all, and learn of none from now on."""
        self._closed = True
        for member in list(self._members.values()):
            self.forget(member)


def _is_address(address: str) -> bool:
    try:
        split_address(address)
    except ValueError:
        return False
    return True
