"""The router of one sidecar: where a request that arrived here is served best.

It stands before the scheduler: a request is routed at its arrival, and only what is kept here
becomes an arrival of this scheduler. The scheduler of the replica that gets a request decides by
its own exact counts and may reject it at once. Then the request is routed again, among the replicas
that it was not at, until it was forwarded `HOP_LIMIT` times.

The router has no clock and draws no numbers of its own: `now` and `rng` are arguments, so equal
inputs give equal choices. What it knows of other replicas are load vectors of some age; of its own
replica it is given the exact present. Four rules keep stale knowledge from doing harm:

- It compares a few candidates, never all: sidecars with the same old vectors would all send their
  requests to the one replica that looks best in them.
- The wait that a vector tells fades with its age into the average of all replicas. By then the
  queue is another one, and others have acted on the same vector.
- A request that it sent counts on top of a vector until one comes that was measured after the
  replica had acknowledged it. So a burst spreads inside one heartbeat. It counts more the older the
  vector is: so each sidecar spreads what it sends while it knows nothing new.
- A replica that drains, is silent, or refused gets nothing.

Vectors come with an age, not an instant: clocks of two machines agree on nothing else. A vector
that was measured before the one known is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from weir_core.route.score import View, is_better, judge, suits
from weir_core.route.types import (
    Ask,
    Candidate,
    Forward,
    Keep,
    LoadVector,
    Nowhere,
    Route,
)

MOST_CANDIDATES: Final = 6
HOP_LIMIT: Final = 2
"""How often a request may be forwarded."""
_HOLDERS: Final = 2
"""Prefix holders among the candidates."""
_RANDOM: Final = 2
"""Random replicas among them."""
_DRAWS: Final = 12
"""Draws for the random ones; the slow and the unusable are drawn again."""
_FRESH_S: Final = 0.2
"""Age at which a third of what a vector says beyond the usual still counts."""
_LATELY_S: Final = 60.0
"""For so long a request of a rank means that there are more of it."""
_CREDIT_GROWTH: Final = 1.0
"""What was sent counts so much more for each second of its replica's vector's age: the vector
lacks what all sidecars sent since, and of that only the own part is known."""
_SPEED_PART: Final = 0.2
"""How much of a new time per prompt token counts."""
_FADE: Final = 0.05
"""The greatest known speed is forgotten by this part in a round of heartbeats."""
_FASTEST_S: Final = 1e-9
"""Least time per prompt token that a replica may claim."""
_SILENT_S: Final = 5.0
"""Nothing heard for so long, five heartbeats, is silence."""
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0
"""A replica that refused is left out for a time that doubles with each refusal in a row."""


class Rng(Protocol):
    """Where random numbers come from; `random.Random` is one."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...


class _Sent:
    """One request that went to another replica."""

    def __init__(self, peer: _Peer, ask: Ask, tokens: int) -> None:
        self.peer = peer
        self.rank = ask.rank
        self.tokens = tokens
        self.sequences = max(1, ask.sequences)
        self.kv_tokens = ask.prompt_tokens + ask.output_tokens
        self.acknowledged_s = float("inf")
        """When the replica said that it has it; a vector measured from then on counts it."""


class _Usual:
    """The average load of a class over the vectors of all replicas, each in its own speed."""

    def __init__(self, wait_s: float, ahead_s: float) -> None:
        self.wait_s = wait_s
        self.ahead_s = ahead_s

    def follow(self, wait_s: float, ahead_s: float, part: float) -> None:
        """Move towards a new vector by `part` of the way."""
        self.wait_s += part * (wait_s - self.wait_s)
        self.ahead_s += part * (ahead_s - self.ahead_s)

    def fade(self, view: View) -> None:
        """Have an old vector's wait fade into the average."""
        trust = math.exp(-max(0.0, view.age_s) / _FRESH_S)
        token_s = max(_FASTEST_S, view.load.token_s)
        view.wait_s = self.wait_s + trust * (view.wait_s - self.wait_s)
        ahead_s = self.ahead_s + trust * (view.ahead_tokens * token_s - self.ahead_s)
        view.ahead_tokens = int(ahead_s / token_s)


class _Peer:
    """Another replica, as this router knows it."""

    def __init__(self, name: str, index: int) -> None:
        self.name = name
        self.index = index
        """Its place in the list that random candidates are drawn from."""
        self.load: LoadVector | None = None
        self.measured_s = float("-inf")
        self.heard_s = float("-inf")
        self.token_s = 0.0
        """Its time per prompt token, as a slow mean: one estimate may be far off."""
        self.speed = 0.0
        self._credit: dict[str, _Sent] = {}
        # What it adds up to; of prompt tokens, by rank.
        self._sent_tokens: dict[int, int] = {}
        self._sent_sequences = 0
        self._sent_kv_tokens = 0
        self.refusals = 0
        self.paused_until_s = float("-inf")

    def is_usable(self, now: float) -> bool:
        """Return whether it may get requests."""
        if self.load is None or self.load.draining or now < self.paused_until_s:
            return False
        return now - self.heard_s < _SILENT_S

    def hear(self, load: LoadVector, measured_s: float) -> None:
        """Note a vector that is newer than the last one."""
        self.load, self.measured_s = load, measured_s
        for request_id, sent in list(self._credit.items()):
            if sent.acknowledged_s <= measured_s:
                self.drop(request_id)

    @property
    def credit(self) -> int:
        """Return how many requests it was sent that its vector does not show."""
        return len(self._credit)

    def take(self, request_id: str, sent: _Sent) -> None:
        """Count a request that was sent to it."""
        self.drop(request_id)
        self._credit[request_id] = sent
        self._sent_tokens[sent.rank] = self._sent_tokens.get(sent.rank, 0) + sent.tokens
        self._sent_sequences += sent.sequences
        self._sent_kv_tokens += sent.kv_tokens

    def drop(self, request_id: str) -> None:
        """Count a request no longer: it has ended, or the vector shows it."""
        sent = self._credit.pop(request_id, None)
        if sent is None:
            return
        tokens = self._sent_tokens[sent.rank] - sent.tokens
        if tokens:
            self._sent_tokens[sent.rank] = tokens
        else:
            del self._sent_tokens[sent.rank]
        self._sent_sequences -= sent.sequences
        self._sent_kv_tokens -= sent.kv_tokens

    def add_credit(self, view: View, rank: int) -> None:
        """Add what the vector does not show, as a newcomer of `rank` meets it."""
        if not self.credit:
            return
        tokens = sum(count for sent, count in self._sent_tokens.items() if sent >= rank)
        weight = 1.0 + _CREDIT_GROWTH * max(0.0, view.age_s)
        view.sent_tokens = int(weight * tokens)
        view.sent_sequences = int(weight * self._sent_sequences)
        view.sent_kv_tokens = int(weight * self._sent_kv_tokens)


class Router:
    """Knows the other replicas and chooses among them and this one.

    Args:
        name: Of this replica; empty where this sidecar has no engine.
        hop_s: Time to another replica and back, charged to each forward.
    """

    def __init__(self, name: str, hop_s: float = 0.002) -> None:
        self.name = name
        self._hop_s = hop_s
        self._peers: dict[str, _Peer] = {}
        self._order: list[_Peer] = []
        self._fastest = 0.0
        # Class name -> what is expected where a vector is old.
        self._usual: dict[str, _Usual] = {}
        # Rank -> when the last request of it came.
        self._came: dict[int, float] = {}
        # Request id -> what was sent and has not ended.
        self._sent: dict[str, _Sent] = {}

    @property
    def known(self) -> Sequence[str]:
        """Return the names of the other replicas."""
        return tuple(self._peers)

    def serves(self, replica: str) -> bool:
        """Return whether another replica is known and not draining; it may be left out for now."""
        peer = self._peers.get(replica)
        return peer is not None and peer.load is not None and not peer.load.draining

    def loads(self, now: float) -> list[tuple[str, LoadVector, float]]:
        """Return what is known of the other replicas: name, load vector and its age."""
        return [
            (peer.name, peer.load, max(0.0, now - peer.measured_s))
            for peer in self._peers.values()
            if peer.load is not None
        ]

    # ---- what is heard

    def on_load(self, replica: str, load: LoadVector, age_s: float, now: float) -> None:
        """Note the load of another replica, measured `age_s` ago."""
        if replica == self.name:
            return
        peer = self._peers.get(replica)
        if peer is None:
            peer = self._peers[replica] = _Peer(replica, len(self._order))
            self._order.append(peer)
        peer.heard_s = now
        measured_s = now - age_s
        if measured_s < peer.measured_s:
            return
        peer.hear(load, measured_s)
        self._note_speed(peer, max(_FASTEST_S, load.token_s))
        self._note_usual(load)

    def on_gone(self, replica: str) -> None:
        """Forget a replica that left."""
        peer = self._peers.pop(replica, None)
        if peer is None:
            return
        last = self._order.pop()
        if last is not peer:
            self._order[peer.index], last.index = last, peer.index

    def on_sent(self, replica: str, ask: Ask, cached: int) -> None:
        """Count a request that goes to another replica, until its vector does."""
        peer = self._peers.get(replica)
        if peer is not None:
            sent = _Sent(peer, ask, max(1, ask.prompt_tokens - cached))
            self._sent[ask.request_id] = sent
            peer.take(ask.request_id, sent)

    def on_acknowledged(self, request_id: str, now: float) -> None:
        """Note that the replica has the request."""
        sent = self._sent.get(request_id)
        if sent is not None:
            sent.acknowledged_s = now
            sent.peer.refusals = 0

    def on_refused(self, request_id: str, now: float) -> None:
        """Note that the replica could not be reached, or takes nothing at all."""
        sent = self._sent.get(request_id)
        if sent is not None:
            peer = sent.peer
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(peer.refusals, 16))
            peer.refusals += 1
            peer.paused_until_s = now + pause_s
        self.on_ended(request_id)

    def on_ended(self, request_id: str) -> None:
        """Note that a request was answered, failed, or came back: it is not there any more."""
        sent = self._sent.pop(request_id, None)
        if sent is not None:
            sent.peer.drop(request_id)

    # ---- where a request goes

    def is_lowest(self, rank: int, now: float) -> bool:
        """Return whether no request of a lower rank came by of late, and note this one."""
        self._came[rank] = now
        for other, came_s in self._came.items():
            if other < rank and now - came_s < _LATELY_S:
                return False
        return True

    def candidates(self, ask: Ask, cached: Mapping[str, int], now: float, rng: Rng) -> list[str]:
        """Return the few replicas to compare: this one, and others that may get requests.

        Args:
            ask: The request.
            cached: Replica -> prompt tokens of it that are cached there, where it is known.
            now: The present.
            rng: For the random ones.
        """
        found = [self.name] if self.name and self.name not in ask.tried else []
        if ask.hops >= HOP_LIMIT:
            return found
        if ask.session_replica:
            self._add(ask.session_replica, ask, found, now)
        if cached:
            holders = sorted(cached, key=lambda name: (-cached[name], name))
            for name in holders[:_HOLDERS]:
                self._add(name, ask, found, now)
        self._add_random(ask, found, now, rng)
        return found

    def choose(
        self,
        ask: Ask,
        candidates: Sequence[str],
        own: LoadVector | None,
        cached: Mapping[str, int],
        now: float,
    ) -> Route:
        """Return where the request goes: to the best candidate that can meet its targets.

        Where none can, to the best of all: its scheduler refuses with an honest time to return.

        Args:
            ask: The request.
            candidates: From `candidates`.
            own: This replica's load, now; None where this sidecar has no engine.
            cached: As for `candidates`.
            now: The present.
        """
        longest = 0
        for name in candidates:
            longest = max(longest, cached.get(name, 0))
        judged: list[Candidate] = []
        best: Candidate | None = None
        for name in candidates:
            candidate = self._judge(ask, name, own, (cached.get(name, 0), longest), now)
            if candidate is None:
                continue
            judged.append(candidate)
            if best is None or is_better(candidate, best):
                best = candidate
        return self._route(ask, best, tuple(judged))

    def view_of(self, replica: str, class_name: str, rank: int, now: float) -> View | None:
        """Return another replica as a newcomer of a class meets it; None if it may get nothing."""
        peer = self._peers.get(replica)
        if peer is None or peer.load is None or not peer.is_usable(now):
            return None
        return self._view(peer, peer.load, class_name, rank, now)

    def _route(self, ask: Ask, best: Candidate | None, judged: tuple[Candidate, ...]) -> Route:
        if best is not None and best.replica != self.name:
            reason = "best" if self.name else "no-engine-here"
            return Forward(ask.request_id, best.replica, ask.hops + 1, reason, judged)
        if not self.name:
            return Nowhere(ask.request_id)
        reason = "best" if len(judged) > 1 else "alone"
        if ask.hops >= HOP_LIMIT:
            reason = "hop-limit"
        return Keep(ask.request_id, reason, judged)

    def _judge(
        self,
        ask: Ask,
        name: str,
        own: LoadVector | None,
        cached: tuple[int, int],
        now: float,
    ) -> Candidate | None:
        here, longest = cached
        if name == self.name:
            if own is None or own.draining:
                return None
            return judge(ask, name, View(own, ask.class_name), here, longest - here)
        peer = self._peers.get(name)
        if peer is None or peer.load is None:
            return None
        view = self._view(peer, peer.load, ask.class_name, ask.rank, now)
        return judge(ask, name, view, here, longest - here)

    def _view(self, peer: _Peer, load: LoadVector, class_name: str, rank: int, now: float) -> View:
        view = View(load, class_name, self._hop_s, now - peer.measured_s)
        usual = self._usual.get(class_name)
        if usual is not None:
            usual.fade(view)
        peer.add_credit(view, rank)
        return view

    def _add(self, name: str, ask: Ask, found: list[str], now: float) -> None:
        if len(found) >= MOST_CANDIDATES or name in found or name in ask.tried:
            return
        peer = self._peers.get(name)
        if peer is not None and peer.is_usable(now):
            found.append(name)

    def _add_random(self, ask: Ask, found: list[str], now: float, rng: Rng) -> None:
        """Draw replicas that suit the class, a fast one more often.

        Where nothing was found so, look at all of them: better a slow replica than none.
        """
        count = len(self._order)
        is_here = self.name in found
        wanted = min(MOST_CANDIDATES, len(found) + _RANDOM, count + is_here)
        for draw in range(2 * _DRAWS if count else 0):
            if len(found) >= wanted:
                return
            peer = self._order[int(rng.random() * count)]
            load = peer.load
            is_fast = rng.random() * self._fastest <= peer.speed
            if is_fast and (draw >= _DRAWS or (load is not None and suits(ask, load))):
                self._add(peer.name, ask, found, now)
        if count and not found:
            self._add_any(ask, found, now, int(rng.random() * count))

    def _add_any(self, ask: Ask, found: list[str], now: float, first: int) -> None:
        for peer in self._order[first:] + self._order[:first]:
            self._add(peer.name, ask, found, now)
            if found:
                return

    def _note_usual(self, load: LoadVector) -> None:
        part = 2.0 / (1.0 + len(self._order))
        for each in load.classes:
            ahead_s = each.ahead_tokens * load.token_s
            usual = self._usual.get(each.name)
            if usual is None:
                self._usual[each.name] = _Usual(each.wait_s, ahead_s)
            else:
                usual.follow(each.wait_s, ahead_s, part)

    def _note_speed(self, peer: _Peer, token_s: float) -> None:
        """Keep the greatest speed; after each round of heartbeats it has faded a little."""
        known = peer.token_s or token_s
        peer.token_s = known + _SPEED_PART * (token_s - known)
        peer.speed = 1.0 / peer.token_s
        self._fastest = max(peer.speed, self._fastest * (1.0 - _FADE / len(self._order)))
