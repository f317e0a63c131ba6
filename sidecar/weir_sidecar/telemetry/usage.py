"""Who used what: the metrics and the access line of each request that has ended.

The sidecar that a client reached counts the request. Tokens, waiting and the engine's time are
counted by the sidecar whose engine had it, for which the other one has forwarded it. So sums over
all sidecars count everything once, and nothing has to be told between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from weir_core.wire.access import OTHER_MODELS, AccessLine
from weir_sidecar.driver import streamed_tokens
from weir_sidecar.outcomes import Outcome
from weir_sidecar.settings import Identity
from weir_sidecar.telemetry.access_log import AccessLog
from weir_sidecar.telemetry.metrics import NO_TENANT, Metrics
from weir_sidecar.telemetry.request_trace import MAX_TEXT

if TYPE_CHECKING:
    from weir_sidecar.inflight import InFlightRequest

_NO_MODEL: Final = "none"
_MAX_MODELS: Final = 64


class Tokens:
    """What an engine computed for a request.

    The answer's own usage counts first, then what the step log tells of its end, then what came.

    Args:
        request: It has ended, and was at the engine here.
    """

    def __init__(self, request: InFlightRequest) -> None:
        usage, share, exchange = request.usage, request.share, request.exchange
        if request.away is not None:  # they are those of another engine, which had it last
            usage = share = exchange = None
        self.prompt = self.output = 0
        self.queue_s = 0.0 if request.away is not None else request.queue_s
        self.cached: int | None = None
        self.engine_s: float | None = None
        self.finish_reason = ""
        is_told = share is not None and share.has_ended
        self.exact = usage is not None or is_told
        if usage is not None:
            self.prompt, self.output = usage.prompt_tokens, usage.output_tokens
        elif share is not None and is_told:
            self.output = share.output_tokens
        elif exchange is not None and exchange.tokens:
            self.output = streamed_tokens(exchange)
        if share is not None:
            share.charge(self.output if self.exact else self.output or None)
            self.cached, self.engine_s = share.cached_tokens, share.engine_s
            self.prompt = self.prompt or share.prompt_tokens
            self.finish_reason = ",".join(share.reasons)
        for lost in request.lost_shares:
            lost.charge(None)
            self.engine_s = (self.engine_s or 0.0) + lost.engine_s


class Ended(msgspec.Struct, frozen=True, gc=False):
    """How and when a request ended.

    Attributes:
        outcome: How.
        at: When.
        duration_s: Arrival to the end.
        ttft_s: Arrival to the first token; None where none came.
    """

    outcome: Outcome
    at: datetime
    duration_s: float
    ttft_s: float | None


class UsageMeter:
    """Counts requests that have ended, and writes their lines.

    Args:
        metrics: The instruments.
        identity: Who this replica is.
        access_log: Takes the lines, or None.
    """

    def __init__(
        self, metrics: Metrics, identity: Identity, access_log: AccessLog | None = None
    ) -> None:
        self._metrics = metrics
        self._identity = identity
        self._access_log = access_log
        self._labels: set[str] = set()
        # Requests of which the engine is yet to tell how they ended.
        self._untold: dict[InFlightRequest, Ended] = {}
        self._adapters: frozenset[str] = frozenset()
        self._declared = frozenset((identity.model,))

    def declare(self, aliases: Iterable[str], adapters: Iterable[str]) -> None:
        """Take these for the names that are served beside the model's own."""
        self._adapters = frozenset(adapters)
        self._declared = frozenset((self._identity.model, *aliases, *self._adapters))

    async def close(self) -> None:
        """Count what the engine has not told of, and write the rest of the log, within a bound."""
        for request in list(self._untold):
            self.told(request)
        if self._access_log is not None:
            await self._access_log.close()

    def ended(
        self, request: InFlightRequest, outcome: Outcome, now: float, ttft_s: float | None
    ) -> None:
        """Count a request and write its line.

        Args:
            request: It has ended.
            outcome: How.
            now: When, on the sidecar's clock.
            ttft_s: Arrival to the first token; None where none came.
        """
        ended = Ended(outcome, datetime.now(UTC), now - request.arrival, ttft_s)
        if request.awaits_end:
            self._untold[request] = ended
        else:
            self._count(request, ended)

    def told(self, request: InFlightRequest) -> None:
        """Count a request for which the engine's word was waited for."""
        ended = self._untold.pop(request, None)
        if ended is not None:
            self._count(request, ended)

    def _count(self, request: InFlightRequest, ended: Ended) -> None:
        tokens = Tokens(request) if request.was_here else None
        caller = request.caller
        tenant = request.tenant or ("" if caller is None else caller.tenant)
        model = self._model(request)
        counts = self._metrics.usage_of(
            tenant or NO_TENANT, request.class_name, self._model_label(model)
        )
        if request.forwarded is None:
            counts.requests.inc()
        if tokens is not None:
            counts.prompt_tokens.inc(tokens.prompt)
            counts.cached_tokens.inc(tokens.cached or 0)
            counts.output_tokens.inc(tokens.output)
            counts.engine_s.inc(tokens.engine_s or 0.0)
            counts.queue_s.inc(tokens.queue_s)
        if self._access_log is not None:
            self._access_log.take(self._line(request, ended, tenant, tokens))

    def _model(self, request: InFlightRequest) -> str:
        """Return the model that was asked for, where one of that name is served.

        Clients may name any; the engine tells of those that it computed for.
        """
        model, share = request.asks.model or "", request.share
        if not model or model in self._declared or model in self._labels:
            return model
        is_computed = share is not None and (share.ends > 0 or share.prompt_tokens > 0)
        return model if is_computed or 200 <= request.status < 300 else OTHER_MODELS

    def _model_label(self, model: str) -> str:
        if model not in self._labels:
            if not model or model == OTHER_MODELS or len(self._labels) >= _MAX_MODELS:
                return OTHER_MODELS if model else _NO_MODEL
            self._labels.add(model)
        return model

    def _line(
        self, request: InFlightRequest, ended: Ended, tenant: str, tokens: Tokens | None
    ) -> AccessLine:
        identity, caller, away = self._identity, request.caller, request.away
        model = self._model(request)[:MAX_TEXT]
        executed_by = "" if away is None else away.name
        engine_s = None if tokens is None else tokens.engine_s
        return AccessLine(
            time=ended.at.isoformat(timespec="milliseconds"),
            request_id=request.request_id[:MAX_TEXT],
            service=identity.service,
            pool=identity.pool,
            replica=identity.pod,
            forwarded=request.forwarded is not None,
            executed_by=executed_by or (identity.pod if tokens is not None else ""),
            tenant=tenant,
            key="" if caller is None else caller.key,
            class_name=request.class_name,
            model=model,
            adapter=model if model in self._adapters else "",
            prompt_tokens=0 if tokens is None else tokens.prompt,
            cached_tokens=None if tokens is None else tokens.cached,
            output_tokens=0 if tokens is None else tokens.output,
            exact=tokens is not None and tokens.exact,
            queue_s=None if tokens is None else round(tokens.queue_s, 6),
            ttft_s=None if ended.ttft_s is None else round(ended.ttft_s, 6),
            duration_s=round(ended.duration_s, 6),
            engine_s=None if engine_s is None else round(engine_s, 6),
            finish_reason="" if tokens is None else tokens.finish_reason,
            outcome=ended.outcome.value,
            status=request.status,
        )
