"""Late binding: which waiting requests a sidecar gives up, because a peer would begin them sooner.

A request is routed once, at its arrival, by predictions. Where they were wrong, a backlog waits at
one replica while another is idle. So a sidecar whose request pool is not empty compares, with each
load vector that it hears, when its waiting requests would begin here and at that peer.

It looks at a few requests only, the most important class first and the oldest of each first, and
moves a few of them for each vector. Three rules keep requests from going to and fro, and peers
from being overrun:

- A request moves only for a clear gain; it moves only while it may be forwarded (`HOP_LIMIT`), and
  never to a replica that has returned it.
- What moves fits in the slots and the KV room that the peer has left.
- Each request that moves counts twice as work at the peer: others that have a backlog hear of the
  same room.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Final

from weir_core.route.router import HOP_LIMIT, Router
from weir_core.route.score import View, judge
from weir_core.route.types import Ask, LoadVector, Move
from weir_core.sched.pool import ClassQueue
from weir_core.sched.scheduler import Scheduler
from weir_core.sched.types import Request

MOST_MOVES: Final = 4
"""Requests given up for one load vector."""
_LOOKED_AT: Final = 32
"""Requests of a class that are looked at for one."""
_LEAST_GAIN_S: Final = 0.05
_GAIN_SHARE: Final = 0.3
"""A move saves so much, and so much of the wait here."""
_COUNTED: Final = 2
"""How often the prompt of a request that moves counts at the peer."""


class _Target:
    """The peer, and what this call has moved to it."""

    def __init__(self, replica: str, router: Router, now: float) -> None:
        self.replica = replica
        self.moves: list[Move] = []
        self._router = router
        self._now = now
        self._tokens = 0
        self._sequences = 0
        self._kv_tokens = 0

    @property
    def is_done(self) -> bool:
        return len(self.moves) >= MOST_MOVES

    def view(self, class_name: str, rank: int) -> View | None:
        """Return what a newcomer of a class finds there, after what has moved."""
        view = self._router.view_of(self.replica, class_name, rank, self._now)
        if view is not None:
            view.sent_tokens += self._tokens
            view.sent_sequences += self._sequences
            view.sent_kv_tokens += self._kv_tokens
        return view

    def take(self, ask: Ask, view: View) -> None:
        """Move a request there, and count it in `view` too."""
        self.moves.append(Move(ask.request_id, self.replica))
        tokens = _COUNTED * ask.prompt_tokens
        sequences = max(1, ask.sequences)
        kv_tokens = ask.prompt_tokens + ask.output_tokens
        self._tokens += tokens
        self._sequences += sequences
        self._kv_tokens += kv_tokens
        view.sent_tokens += tokens
        view.sent_sequences += sequences
        view.sent_kv_tokens += kv_tokens


def moves_to(
    replica: str,
    router: Router,
    scheduler: Scheduler,
    own: LoadVector,
    ask_for: Callable[[Request], Ask],
    now: float,
) -> list[Move]:
    """Return the waiting requests that `replica`, which was just heard of, would begin sooner.

    Args:
        replica: The peer.
        router: Of this sidecar.
        scheduler: Of this sidecar, with an engine; nothing of it changes.
        own: Its load, now.
        ask_for: Returns what a waiting request asks, with its hops and where it was.
        now: The present.
    """
    peer = _Target(replica, router, now)
    for queue in scheduler.pool.classes:
        if queue.waiting and not peer.is_done:
            _move_class(queue, peer, own, ask_for)
    return peer.moves


def _move_class(
    queue: ClassQueue, peer: _Target, own: LoadVector, ask_for: Callable[[Request], Ask]
) -> None:
    policy = queue.policy
    there = peer.view(policy.name, policy.rank)
    if there is None:
        return
    here = View(own, policy.name)
    if _begins_s(here) - _begins_s(there) < _LEAST_GAIN_S:
        return
    whole_s = here.wait_s
    ahead = 0.0
    for ticket in islice(queue.oldest_first(), _LOOKED_AT):
        # What waits before it takes its part of the wait that a newcomer of the class has.
        here.wait_s = whole_s * ahead / max(1.0, queue.cost)
        ahead += ticket.cost
        ask = ask_for(ticket.request)
        cached = ask.prompt_tokens - ticket.new_tokens
        if _is_better(ask, here, cached, there, peer.replica):
            peer.take(ask, there)
            if peer.is_done:
                return


def _is_better(ask: Ask, here: View, cached: int, there: View, replica: str) -> bool:
    """Return whether a waiting request would begin clearly sooner at the peer, and has room."""
    if ask.hops >= HOP_LIMIT or replica in ask.tried or not _has_room(ask, there):
        return False
    stays = judge(ask, "", here, cached, 0)
    moves = judge(ask, replica, there, 0, cached)
    if not moves.feasible:
        return False
    gain_ms = stays.wait_ms - moves.wait_ms - moves.recompute_ms - moves.hop_ms
    return gain_ms >= max(1e3 * _LEAST_GAIN_S, _GAIN_SHARE * stays.wait_ms)


def _begins_s(view: View) -> float:
    """Return when a newcomer of the class begins."""
    ahead_s = (view.ahead_tokens + view.sent_tokens) * view.load.token_s
    return view.load.overdue_s + view.wait_s + ahead_s + view.hop_s


def _has_room(ask: Ask, view: View) -> bool:
    room = ask.prompt_tokens + ask.output_tokens
    return view.sequences_left >= max(1, ask.sequences) and view.kv_tokens_left >= room


def leaving(scheduler: Scheduler) -> list[str]:
    """Return all that waits, for a sidecar that drains or has no engine: each is routed again.

    The most important class comes first, and the oldest of each.
    """
    return [
        ticket.request.request_id
        for queue in scheduler.pool.classes
        for ticket in queue.oldest_first()
    ]
