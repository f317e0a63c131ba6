"""The desk before the engine: who asks, for which class, and when it is their turn.

Requests that make the engine compute get a turn in the pool; the others (models, tokenizing) pass.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from weir_core.errors import EngineUnavailable
from weir_core.sched.types import Request
from weir_core.wire.openai import UNREADABLE, RequestFields, Usage, is_utf8, token_count_in
from weir_sidecar import outcomes
from weir_sidecar.admission import Admission
from weir_sidecar.frontend.auth import (
    EXPLAIN_HEADER,
    SECRET_HEADERS,
    Caller,
    is_here,
    ttft_target_s,
)
from weir_sidecar.intake import Intake
from weir_sidecar.ledger import Entry
from weir_sidecar.outcomes import Outcome, Refusal
from weir_sidecar.settings import Tokenizing
from weir_sidecar.turn import Turn
from weir_sidecar.upstreams.connections import Pool
from weir_sidecar.upstreams.splice import Ending, Exchange

_UNSCHEDULED: Final = frozenset({"/tokenize", "/detokenize", "/ping"})
_TOKENIZABLE: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
_EXPLAIN: Final = EXPLAIN_HEADER.decode()


class Desk:
    """Gives requests their turn.

    Args:
        admission: The scheduler's driver.
        serves_here: Without tenants, requests from this machine are served.
        pool: Connections to the engine, to have large prompts counted.
        settings: Which bodies are counted, and how long that may take.
        replica: This replica's name, for explanations.
    """

    secret: Final = SECRET_HEADERS

    def __init__(
        self,
        admission: Admission,
        pool: Pool,
        settings: Tokenizing,
        replica: str,
        *,
        serves_here: bool,
    ) -> None:
        self._admission = admission
        self._serves_here = serves_here
        self._pool = pool
        self._settings = settings
        self._replica = replica
        self._counting = 0

    def identify(self, request: web.BaseRequest, intake: Intake) -> Caller:
        """Return who asks; raise the 401."""
        directory = self._admission.directory
        # An address is looked up only where it matters: it costs a system call.
        from_here = self._serves_here and not directory.tenants and is_here(request.remote)
        return directory.identify(intake.said, from_here=from_here)

    async def arrive(
        self,
        request: web.BaseRequest,
        intake: Intake,
        caller: Caller,
        entry: Entry,
        fields: RequestFields,
        body: bytes,
    ) -> Turn | None:
        """Take a request into the pool; None is one that needs no turn.

        Raises:
            Refusal: Its class is not there or not for this caller, its body is in no encoding that
                can be looked into, or no engine was ever ready.
        """
        directory = self._admission.directory
        class_name = directory.class_of(caller, intake.said, fields)
        tenant = directory.tenant_of(caller, intake.said)
        entry.class_name, entry.tenant = class_name, tenant
        if entry.trace is not None:
            entry.trace.admitted(class_name, tenant)
        path = request.path
        if request.method != "POST" or path in _UNSCHEDULED:
            return None
        if fields is UNREADABLE and not is_utf8(body):
            # The engine would read it, with a priority in it that nobody here has seen.
            raise outcomes.bad_request("The body must be JSON in UTF-8.", code="bad_encoding")
        target_s = ttft_target_s(intake.said)
        prompt_tokens = await self._count(path, body)
        asked = Request(
            request_id=self._admission.next_id(),
            tenant=tenant,
            payer=caller.tenant,
            class_name=class_name,
            arrival_s=self._admission.now(),
            body_bytes=len(body),
            prompt_tokens=prompt_tokens,
            max_output_tokens=fields.output_limit_tokens,
            endpoint=path,
            ttft_target_s=target_s,
        )
        return self._admission.arrive(
            asked, entry, wire_id=intake.request_id, streams=bool(fields.stream)
        )

    async def served(
        self,
        turn: Turn,
        explain: bool,
        attempt: Callable[[int | None], Awaitable[Exchange]],
    ) -> Exchange:
        """Wait for the turn and use it, again where it is taken back; raise the refusal."""
        try:
            while True:
                dispatch = await turn.given()
                if turn.entry.trace is not None:
                    turn.entry.trace.placed(dispatch.rank, turn.returns, dispatch.by_min_share)
                exchange = await attempt(self._admission.priority(turn))
                if exchange.ending is not Ending.RECALLED:
                    return exchange
        except Refusal as refusal:
            if explain:
                refusal.headers[_EXPLAIN] = self._explain(turn, refusal.code).decode()
            raise

    def begun(self, turn: Turn, explain: bool, answer: Exchange) -> bytes:
        """Hear that an answer begins; return the header lines to add to it."""
        # From here on nobody may take its place. A plain answer's first byte is its last, so there
        # is nothing to be learned from when it came; and after an error the engine has nothing left
        # to do.
        if answer.status < 400:
            self._admission.begun(turn, learn=turn.streams)
        else:
            self._admission.leave(turn)
        if not explain:
            return b""
        return b"%b: %b\r\n" % (EXPLAIN_HEADER, self._explain(turn, "dispatched"))

    def leave(self, turn: Turn, entry: Entry, usage: Usage | None) -> None:
        """Hear that a request is over, whatever its outcome."""
        if entry.outcome is Outcome.OK:
            self._admission.finish(turn, usage)
        else:
            ran = entry.outcome is not Outcome.REJECTED_NO_ENDPOINTS
            self._admission.leave(turn, ran=ran)

    def _explain(self, turn: Turn, reason: str) -> bytes:
        dispatch = turn.dispatch
        waited_s = None if dispatch is None else round(dispatch.waited_s, 6)
        return msgspec.json.encode(
            {
                "class": turn.request.class_name,
                "tenant": turn.request.tenant,
                "reason": "min_share" if dispatch and dispatch.by_min_share else reason,
                "wait_s": waited_s,
                "rank": None if dispatch is None else dispatch.rank,
                "preempted": turn.returns,
                "replica": self._replica,
                "candidates": [self._replica],
            }
        )

    async def _count(self, path: str, body: bytes) -> int | None:
        """Have the engine count a large prompt, for which a guess by its size may be far off."""
        bounds = self._settings
        if len(body) < bounds.min_bytes or path not in _TOKENIZABLE:
            return None
        if self._counting >= bounds.at_once:
            return None
        self._counting += 1
        try:
            reply = await self._pool.ask(
                "POST", "/tokenize", body=body, timeout_s=bounds.timeout_s, limit_bytes=64 << 20
            )
        except EngineUnavailable:
            return None
        finally:
            self._counting -= 1
        return token_count_in(reply.body) if reply.status == 200 else None
