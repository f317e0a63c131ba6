"""Where a request is served: the router of this sidecar, joined to the request path.

`weir_core.route` chooses; here its choices and what becomes of them are told from and to the
requests in flight. The scheduler of the replica that gets a request has the last word: a request
that comes back is routed again, among the replicas that it was not at.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, assert_never

import msgspec

from weir_core.route.load import ask_of, drain_s_of, load_of
from weir_core.route.rebalance import moves_to
from weir_core.route.types import Ask, Forward, Keep, LoadVector, Move, Nowhere, Route
from weir_core.sched.types import Reason, Request, ServedLately
from weir_core.wire.fleet import FleetReport, ReplicaReport
from weir_core.wire.peers import Forwarded
from weir_sidecar.frontend import errors
from weir_sidecar.frontend.auth import SESSION_HEADER
from weir_sidecar.outcomes import Outcome

if TYPE_CHECKING:
    from weir_sidecar.inflight import Handler, InFlightRequest
    from weir_sidecar.peers.peer import Peer
    from weir_sidecar.peers.peers import Peers
    from weir_sidecar.prefixes import Prefixes

_NOTHING_CACHED: Final[dict[str, int]] = {}
_DRAINING: Final = "draining"
_NO_ENGINE: Final = "no-engine"
_BACKLOGGED: Final = "backlogged"
_COUNTED: Final = frozenset({_BACKLOGGED, "refused"})
"""A replica that gives these has counted the request's work."""
_REASONS: Final = frozenset({_DRAINING, _NO_ENGINE, "no-adapter", *_COUNTED})
"""Why a request comes back; what else a newer sidecar may say counts as lost."""


class Routing:
    """Routes the requests of one sidecar.

    Args:
        handler: Whose requests they are.
        peers: The other sidecars of the service.
        prefixes: What of prompts is cached where.
        clock: Seconds that only move forward.
    """

    def __init__(
        self, handler: Handler, peers: Peers, prefixes: Prefixes, clock: Callable[[], float]
    ) -> None:
        self._handler = handler
        self._driver = handler.driver
        self._metrics = handler.metrics
        self._answered = handler.metrics.forwards.labels("answered")
        self._peers = peers
        self._prefixes = prefixes
        self._router = peers.router
        self._clock = clock
        self._rng = random.Random()
        self.name = self._router.name
        peers.on_load = self._heard
        peers.on_lost = self._lost
        peers.on_served = self._driver.scheduler.on_served_elsewhere
        if not self._driver.is_gateway:
            peers.own.look_at_served = self._served_lately

    # ---- what the request path asks

    def may_forward(self, tried: Collection[str]) -> bool:
        """Tell whether a replica that may get requests is left."""
        # One that was tried and is gone since is not among the usable ones.
        return self._peers.usable > sum(self._router.serves(name) for name in set(tried))

    def find(self, name: str) -> Peer | None:
        """Return a replica by its name."""
        return self._peers.find(name)

    def choose(self, request: InFlightRequest, asked: Request) -> Route:
        """Return where a request is served best."""
        now = self._clock()
        ask = self._ask(request, asked)
        chain, cached = request.chain, _NOTHING_CACHED
        if chain is not None:
            cached = self._prefixes.cached(chain, ask.prompt_tokens)
        candidates = self._router.candidates(ask, cached, now, self._rng)
        if chain is not None:  # those that were drawn may hold a part, too
            cached = self._prefixes.cached(chain, ask.prompt_tokens, candidates)
        route = self._router.choose(ask, candidates, self.load(), cached, now)
        if isinstance(route, Forward):
            held = cached.get(route.replica, 0)
            request.number = self._peers.forwarding(ask, route.replica, held)
        return route

    def forwarded(self, request: InFlightRequest, payer: str, route: Forward) -> Forwarded:
        """Return what the replica that gets a request is told of it."""
        asked = request.asked
        explains = request.explains
        return Forwarded(
            class_name=request.class_name,
            tenant=request.tenant,
            payer=payer,
            age_s=self._clock() - request.arrival,
            number=request.number,
            hops=route.hops,
            ttft_target_s=None if asked is None else asked.ttft_target_s,
            prompt_tokens=None if asked is None else asked.prompt_tokens,
            may_return=True,
            explains=explains,
            reason=route.reason,
            candidates=route.candidates if explains else (),
            holds_place=request.holds_place,
            is_counted=request.is_counted,
            may_be_late=asked is not None and asked.may_be_late,
        )

    @property
    def nobody_serves(self) -> bool:
        """Whether this is a gateway, and no replica takes requests."""
        return self._driver.is_gateway and not self._peers.usable

    def any_peer(self, request: InFlightRequest, payer: str) -> tuple[Peer | None, Forwarded]:
        """Return a replica for a request that computes nothing, and what to tell it."""
        ask = Ask(request.request_id, request.class_name, 0, 1, 1, tried=request.tried)
        found = self._router.candidates(ask, {}, self._clock(), self._rng)
        name = next((each for each in found if each != self.name), "")
        route = Forward(request.request_id, name, request.hops + 1, _NO_ENGINE)
        return self._peers.find(name), self.forwarded(request, payer, route)

    def returned(self, request: InFlightRequest, reason: str) -> None:
        """Note that a request came back, and why; it was lost where no reason was given.

        One that would begin sooner elsewhere comes back with the name of that replica.
        """
        assert request.asked is not None
        reason, _, request.better_at = reason.partition(" ")
        request_id = request.asked.request_id
        if reason in ("", _DRAINING, _NO_ENGINE):
            self._router.on_refused(request_id, self._clock())
        else:
            self._router.on_ended(request_id)
            request.is_counted = request.is_counted or reason in _COUNTED
        self._metrics.forwards.labels(reason if reason in _REASONS else "lost").inc()

    def ended(self, request: InFlightRequest) -> None:
        """Note that another replica's answer was the last word, whatever it was."""
        asked = request.asked
        if asked is None:
            return
        self._router.on_ended(asked.request_id)
        self._answered.inc()
        if request.outcome is Outcome.OK and request.usage is not None:
            self._driver.learn(asked, request.usage)

    # ---- what the peers ask

    def load(self) -> LoadVector | None:
        """Return the load of this replica, now; None where it has no engine to load."""
        if self._driver.is_gateway:
            return None
        self._driver.note_silent()
        return load_of(self._driver.scheduler, self._clock(), self._handler.leaving)

    def _served_lately(self) -> ServedLately:
        return self._driver.scheduler.served_lately(self._clock())

    def fleet(self, pod: str) -> FleetReport:
        """Return what is known of all replicas; a gateway is none of them.

        Args:
            pod: Name of this one.
        """
        own, now = self.load(), self._clock()
        found: list[ReplicaReport] = []
        if own is not None:
            drain_s = drain_s_of(self._driver.scheduler, now)
            found.append(ReplicaReport(pod, own, drain_s=drain_s))
        for name, load, age_s in self._router.loads(now):
            found.append(ReplicaReport(name, load, age_s))
        return FleetReport(pod, tuple(found), self.waiting, self._handler.registry.idle_s)

    @property
    def waiting(self) -> int:
        """Requests that wait at a gateway for a replica; a replica counts its own in its load."""
        return self._driver.scheduler.pool.requests if self._driver.is_gateway else 0

    def taken(self, sender: str, forwarded: Forwarded) -> None:
        """Note a request that has come from another sidecar."""
        self._peers.taken(sender, forwarded.number)

    # ---- what changes while requests wait

    def tell_peers(self) -> None:
        """Tell the others at once: this replica takes requests from now on, or no more."""
        self._peers.tell_now()

    def hand_over(self) -> None:
        """Have what waits go to other replicas: this one leaves, or lost its engine."""
        if not self._driver.scheduler.pool.requests:
            return
        for request in self._driver.waiting_requests():
            if request.dispatch is not None:
                continue  # giving up another one has made place for it
            if request.may_return:
                self._return(request)
            else:
                self._pass_on(request)

    def _heard(self, name: str) -> None:
        """Look whether what waits here would begin sooner there."""
        self._prefixes.is_used = True
        scheduler = self._driver.scheduler
        if not scheduler.pool.requests:
            return
        own = self.load()
        if own is None or own.draining:
            self.hand_over()
            return
        now = self._clock()
        for move in moves_to(name, self._router, scheduler, own, self._ask_of_waiting, now):
            self._move(move)

    def _move(self, move: Move) -> None:
        request = self._driver.request_of(move.request_id)
        if request is None or request.asked is None or request.dispatch is not None:
            return  # giving up another one has made place for it
        if request.forwarded is not None:
            self._driver.give_up(request)
            reason = f"{_BACKLOGGED} {move.replica}"
            request.send_back(reason, errors.rejected(Reason.SATURATED, 1))
            return
        ask = self._ask(request, request.asked)
        route = Forward(move.request_id, move.replica, request.hops + 1, "sooner-there")
        self._driver.give_up(request)
        request.number = self._peers.forwarding(ask, move.replica, 0)
        request.leave_for(route)

    def _ask_of_waiting(self, asked: Request) -> Ask:
        request = self._driver.request_of(asked.request_id)
        assert request is not None
        return self._ask(request, asked)

    def _ask(self, request: InFlightRequest, asked: Request) -> Ask:
        policy = self._driver.directory.policy(asked.class_name)
        now = self._clock()
        is_lowest = self._router.is_lowest(policy.rank, now)
        ask = ask_of(asked, policy, self._driver.scheduler.estimator, now, is_lowest)
        session_replica = request.better_at or self._of_session(request)
        if not (request.hops or request.tried or session_replica):
            return ask
        return msgspec.structs.replace(
            ask, hops=request.hops, tried=request.tried, session_replica=session_replica
        )

    def _lost(self, name: str) -> None:
        """Route again what a replica that is gone or silent has not begun."""
        for request in self._handler.registry.away_at(name):
            request.reroute()

    def _return(self, request: InFlightRequest) -> None:
        self._driver.give_up(request)
        if self._handler.leaving:
            request.send_back(_DRAINING, errors.shutting_down(1))
        else:
            request.send_back(_NO_ENGINE, self._driver.no_engine())

    def _pass_on(self, request: InFlightRequest) -> None:
        asked = request.asked
        assert asked is not None
        route = self.choose(request, asked)
        match route:
            case Forward():
                self._driver.give_up(request)
                request.leave_for(route)
            case Keep() | Nowhere():
                pass
            case _:
                assert_never(route)

    def _of_session(self, request: InFlightRequest) -> str:
        """Return the replica that all turns of a session may go to; empty where it names none.

        Every sidecar finds the same one, whichever of them the next turn reaches.
        """
        session = request.head.said.get(SESSION_HEADER)
        names = self._peers.names
        if not session or not names:
            return ""
        return names[zlib.crc32(session.encode()) % len(names)]
