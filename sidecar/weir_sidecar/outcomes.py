"""How a request can end, and the refusals the sidecar says itself.

Every request that reaches the sidecar ends in exactly one `Outcome`; the ledger counts it. What
the sidecar refuses is an OpenAI error with a stable code, and where trying again can help it says
when, in Retry-After, and why, in a header that llm-d's clients know too.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

from aiohttp import web

from weir_core.errors import WeirError
from weir_core.sched.types import Reason
from weir_core.wire.openai import error_body

DROPPED_REASON: Final = "x-llm-d-request-dropped-reason"


class Outcome(StrEnum):
    """The closed set of label values of `weir_requests_total`."""

    OK = "ok"
    CLIENT_ERROR = "client_error"
    """A 4xx, the engine's or ours: the request has to change."""
    CLIENT_GONE = "client_gone"
    CLIENT_SLOW = "client_slow"
    """The client did not send its body, or take its answer, in time."""
    ENGINE_ERROR = "engine_error"
    """A 5xx of the engine, or an answer that broke off."""
    ENGINE_TIMEOUT = "engine_timeout"
    REJECTED_SATURATED = "rejected_saturated"
    REJECTED_TTL_EXPIRED = "rejected_ttl_expired"
    REJECTED_QUEUE_FULL = "rejected_queue_full"
    REJECTED_MEMORY_FULL = "rejected_memory_full"
    REJECTED_TENANT_LIMIT = "rejected_tenant_limit"
    REJECTED_NO_ENDPOINTS = "rejected_no_endpoints"
    REJECTED_SHUTTING_DOWN = "rejected_shutting_down"
    CUT = "cut_by_shutdown"
    """Was still running when the grace period was over."""
    INTERNAL_ERROR = "internal_error"
    """A bug in the sidecar."""


class Refusal(WeirError):
    """A request the sidecar answers itself.

    Args:
        status: The HTTP status.
        outcome: What the ledger counts.
        code: Stable `code` of the error body.
        message: What is wrong and what to do, one or two sentences.
        retry_after_s: When trying again may help, or None where it cannot.
    """

    reason = "refused"

    def __init__(
        self,
        status: int,
        outcome: Outcome,
        code: str,
        message: str,
        *,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.outcome = outcome
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.headers: dict[str, str] = {}
        """Further ones for the answer."""

    @property
    def kind(self) -> str:
        """The error's `type`, as OpenAI uses them."""
        if self.status == 429:
            return "rate_limit_error"
        if self.status == 503:
            return "service_unavailable"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def response(self, request_id: str, *, close: bool) -> web.Response:
        """Return the answer; `close` where the client's connection cannot go on."""
        headers = {"x-request-id": request_id, "Server": "weir", **self.headers}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
            headers[DROPPED_REASON] = self.code
        response = web.Response(
            status=self.status,
            body=error_body(self.message, kind=self.kind, code=self.code),
            content_type="application/json",
            headers=headers,
        )
        if close:
            response.force_close()
        return response


def not_found(path: str) -> Refusal:
    """No such route, or one that clients may not reach."""
    shown = path if len(path) <= 200 else path[:200] + "..."
    return Refusal(
        404,
        Outcome.CLIENT_ERROR,
        "not_found",
        f"There is nothing to call at {shown}. The API is under /v1, for example "
        "/v1/chat/completions; /health is here, and metrics are on the admin port.",
    )


def bad_request(message: str, *, status: int = 400, code: str = "bad_request") -> Refusal:
    """The client has to change its request."""
    return Refusal(status, Outcome.CLIENT_ERROR, code, message)


def too_large(limit_bytes: int) -> Refusal:
    """The body is over the limit."""
    return bad_request(
        f"The request body is larger than {limit_bytes} bytes, the most this service takes.",
        status=413,
        code="request_too_large",
    )


def unreadable(message: str, *, status: int = 400, code: str = "bad_http") -> Refusal:
    """The bytes are not a request, or its head is not one that is taken."""
    return bad_request(f"The request cannot be read: {message}.", status=status, code=code)


def head_too_large(limit_bytes: int, limit_headers: int) -> Refusal:
    """The request line and the headers are over a limit."""
    return unreadable(
        f"its first line and headers may have {limit_bytes} bytes together and {limit_headers} "
        "headers",
        status=431,
        code="head_too_large",
    )


def slow_head(limit_s: float) -> Refusal:
    """The head did not arrive in time."""
    return Refusal(
        408,
        Outcome.CLIENT_SLOW,
        "request_timeout",
        f"The request's headers did not arrive within {limit_s:g} seconds.",
    )


def slow_upload(limit_s: float) -> Refusal:
    """The body did not arrive in time."""
    return Refusal(
        408,
        Outcome.CLIENT_SLOW,
        "request_timeout",
        f"The request body did not arrive within {limit_s:g} seconds.",
    )


def unauthorized(message: str) -> Refusal:
    """Nobody knows who asks."""
    refusal = Refusal(401, Outcome.CLIENT_ERROR, "invalid_api_key", message)
    refusal.headers["WWW-Authenticate"] = "Bearer"
    return refusal


def forbidden(message: str) -> Refusal:
    """It is known who asks, and it is not for them."""
    return Refusal(403, Outcome.CLIENT_ERROR, "class_not_allowed", message)


def rejected(reason: Reason, retry_after_s: float) -> Refusal:
    """The scheduler, or a bound of this replica, says no."""
    status, message = _REJECTIONS[reason]
    return Refusal(
        status,
        Outcome(reason.value.replace("-", "_")),
        reason.value,
        message,
        retry_after_s=max(1, math.ceil(retry_after_s)),
    )


def no_engine(state: str, retry_after_s: int) -> Refusal:
    """There is no engine to run the request."""
    return Refusal(
        503,
        Outcome.REJECTED_NO_ENDPOINTS,
        "rejected-no-endpoints",
        f"No engine can take the request right now ({state}). Try again later.",
        retry_after_s=retry_after_s,
    )


def shutting_down(retry_after_s: int) -> Refusal:
    """This replica is leaving."""
    return rejected(Reason.SHUTTING_DOWN, retry_after_s)


_REJECTIONS: Final[dict[Reason, tuple[int, str]]] = {
    Reason.SATURATED: (
        429,
        "The replica is too busy to answer in time. Try again after the time in Retry-After.",
    ),
    Reason.TTL_EXPIRED: (
        429,
        "The request waited as long as its class may, and its turn did not come in time.",
    ),
    Reason.QUEUE_FULL: (429, "This replica holds as many requests as it may. Try again later."),
    Reason.MEMORY_FULL: (
        503,
        "The requests that wait in this replica take as much memory as they may. Try again later.",
    ),
    Reason.TENANT_LIMIT: (
        429,
        "This API key has as many requests in flight, or has used as many tokens this minute, as "
        "it may.",
    ),
    Reason.SHUTTING_DOWN: (
        503,
        "This replica is shutting down. Try again: another one will answer.",
    ),
}


def engine_timeout() -> Refusal:
    """The engine sent no first byte in time."""
    return Refusal(
        504,
        Outcome.ENGINE_TIMEOUT,
        "engine_timeout",
        "The engine did not begin to answer in time.",
    )


def bad_gateway() -> Refusal:
    """The engine answered something that is not HTTP."""
    return Refusal(
        502, Outcome.ENGINE_ERROR, "bad_engine_answer", "The engine's answer was not HTTP."
    )


def internal_error() -> Refusal:
    """A bug; details are in the log only."""
    return Refusal(
        500,
        Outcome.INTERNAL_ERROR,
        "internal_error",
        "The sidecar failed. The log has the details under this request id.",
    )
