"""What is known of one other sidecar of the service."""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING

from weir_core.sched.served import ServedThere

if TYPE_CHECKING:
    from weir_sidecar.peers.peer import Peer


class PeerState(StrEnum):
    """What another sidecar is to this one."""

    NEW = "new"
    """Known, and not reached yet."""
    USABLE = "usable"
    """It may get requests."""
    DRAINING = "draining"
    """It takes nothing new: it leaves, or has no engine now."""
    GATEWAY = "gateway"
    """It never has an engine."""
    NEWER = "newer"
    """It speaks a protocol that would be misunderstood here."""
    LOST = "lost"
    """Silent, or no connection to it can be opened."""
    UNKNOWN_KEY = "unknown_key"
    """It does not accept any of our keys."""

    @property
    def has_load(self) -> bool:
        """Whether the router knows its load."""
        return self is PeerState.USABLE or self is PeerState.DRAINING

    @property
    def is_heard(self) -> bool:
        """Whether it says something of itself."""
        return self.has_load or self is PeerState.GATEWAY or self is PeerState.NEWER


class Member:
    """Another sidecar of the service.

    Attributes:
        peer: The way to it.
        state: What it is to this one.
        in_document: The policy document names it.
        document_address: Where the document says it is; empty where it does not.
        epoch: Of its present process; 0 before it was heard.
        reached: A heartbeat of ours was answered since a connection to it last failed.
        heard_s: When it last said something.
        loaded_s: When its newest load was measured.
        rtt_s: Time of the last heartbeat of ours and its answer.
        asking: A heartbeat of ours waits for its answer.
        asked_s: When it was sent.
        is_down: Its address refuses connections.
        failures: Heartbeats in a row without an answer.
        told_peers: It has told which sidecars it knows.
        sent: Requests that were forwarded to it.
        unacknowledged: Number and id of those whose arrival it has not told yet.
        taken: Highest number of a request that came from it.
        sender_epoch: The process of its that counts so.
        held_seq: Its digest that is held here.
        told_seq: Our digest that it holds.
        served: What it has said of the tokens that it served.
    """

    def __init__(self, peer: Peer, now: float) -> None:
        self.peer = peer
        self.name = peer.name
        self.state = PeerState.NEW
        self.in_document = False
        self.document_address = ""
        self.reached = self.asking = self.told_peers = self.is_gone = self.is_down = False
        self.heard_s = now
        self.loaded_s = self.due_s = self.asked_s = now
        self.queued_s = float("inf")
        """When the run loop looks at it next."""
        self.rtt_s = 0.0
        self.epoch = self.sender_epoch = 0
        self.failures = self.sent = self.taken = 0
        self.unacknowledged: deque[tuple[int, str]] = deque()
        self.held_seq = self.told_seq = 0
        self.served = ServedThere()

    def restarted(self, epoch: int) -> None:
        """Forget what another process of it had said."""
        if self.epoch:
            self.served.restarted()
        self.epoch = epoch
        self.told_peers = False
        self.unacknowledged.clear()
        self.held_seq = self.told_seq = 0

    def counts_anew(self, epoch: int) -> None:
        """Note the process that sends requests: each counts its own from 1."""
        if epoch != self.sender_epoch:
            self.sender_epoch, self.taken = epoch, 0
