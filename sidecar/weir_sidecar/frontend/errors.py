"""The errors that the sidecar answers with itself.

An error has a stable code in the shape of the API that was asked. Where trying again can help, it
says when, in Retry-After, and why, in a header that llm-d's clients know too.
"""

from __future__ import annotations

import re
import zlib
from typing import Final

from weir_core.errors import WeirError
from weir_core.sched.types import Reason
from weir_core.wire.errors import error_body, error_shape_of, retry_headers, status_headers
from weir_sidecar.frontend.answer import JSON, Answer
from weir_sidecar.outcomes import Outcome

DROPPED_REASON: Final = "x-llm-d-request-dropped-reason"
_MESSAGE: Final = re.compile(rb'"message":\s*"((?:[^"\\\\]|\\\\.)*)"')


class ApiError(WeirError):
    """A request the sidecar answers itself.

    Args:
        status: The HTTP status.
        outcome: What is counted.
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
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.outcome = outcome
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.is_spread = False
        """The time differs from that of others who were refused with it."""
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

    def answer(self, path: str, request_id: str, *, close: bool) -> Answer:
        """Return the answer as the API of `path` writes errors.

        Args:
            path: The decoded path that was asked.
            request_id: The request's id.
            close: The client's connection cannot go on.
        """
        headers = {"x-request-id": request_id, "server": "weir", **self.headers}
        headers.update(status_headers(self.status))
        if self.retry_after_s is not None:
            # Refused in one moment, clients should not come back in one moment. The scheduler has
            # spread its times already.
            spread = 0.0 if self.is_spread else zlib.crc32(request_id.encode()) / 0xFFFFFFFF
            headers.update(retry_headers(self.code, self.retry_after_s * (1.0 + 0.5 * spread)))
        body = error_body(error_shape_of(path), self.status, self.message, self.kind, self.code)
        return Answer(self.status, body, JSON, headers, close=close)


def not_found(path: str) -> ApiError:
    """No such route, or one that clients may not reach."""
    shown = path if len(path) <= 200 else path[:200] + "..."
    return ApiError(
        404,
        Outcome.CLIENT_ERROR,
        "not_found",
        f"There is nothing to call at {shown}. The API is under /v1, for example "
        "/v1/chat/completions; /health is here, and metrics are on the admin port.",
    )


def bad_request(message: str, *, status: int = 400, code: str = "bad_request") -> ApiError:
    """The client has to change its request."""
    return ApiError(status, Outcome.CLIENT_ERROR, code, message)


def unknown_model(name: str) -> ApiError:
    """No model of this name is served."""
    return bad_request(
        f"The model {name!r} does not exist; /v1/models lists those that do.",
        status=404,
        code="model_not_found",
    )


def too_large(limit_bytes: int) -> ApiError:
    """The body is over the limit."""
    return bad_request(
        f"The request body is larger than {limit_bytes} bytes, the most this service takes.",
        status=413,
        code="request_too_large",
    )


def unreadable(message: str, *, status: int = 400, code: str = "bad_http") -> ApiError:
    """The bytes are not a request, or its head is not one that is taken."""
    return bad_request(f"The request cannot be read: {message}.", status=status, code=code)


def head_too_large(limit_bytes: int, limit_headers: int) -> ApiError:
    """The request line and the headers are over a limit."""
    return unreadable(
        f"its first line and headers may have {limit_bytes} bytes together and {limit_headers} "
        "headers",
        status=431,
        code="head_too_large",
    )


def slow_head(limit_s: float) -> ApiError:
    """The head did not arrive in time."""
    return ApiError(
        408,
        Outcome.CLIENT_SLOW,
        "request_timeout",
        f"The request's headers did not arrive within {limit_s:g} seconds.",
    )


def slow_upload(limit_s: float) -> ApiError:
    """The body did not arrive in time."""
    return ApiError(
        408,
        Outcome.CLIENT_SLOW,
        "request_timeout",
        f"The request body did not arrive within {limit_s:g} seconds.",
    )


def unauthorized(message: str) -> ApiError:
    """Nobody knows who asks."""
    refusal = ApiError(401, Outcome.CLIENT_ERROR, "invalid_api_key", message)
    refusal.headers["WWW-Authenticate"] = "Bearer"
    return refusal


def forbidden(message: str) -> ApiError:
    """It is known who asks, and it is not for them."""
    return ApiError(403, Outcome.CLIENT_ERROR, "class_not_allowed", message)


def rejected(reason: Reason, retry_after_s: float) -> ApiError:
    """The scheduler, or a bound of this replica, says no."""
    if reason is Reason.TOO_LARGE:
        return bad_request(
            "The request becomes more sequences (prompts times answers) than this API key may have "
            "in flight. Send it in parts.",
            code=reason.value,
        )
    status, message = _REJECTIONS[reason]
    return ApiError(
        status,
        Outcome(reason.value.replace("-", "_")),
        reason.value,
        message,
        retry_after_s=retry_after_s,
    )


def no_engine(state: str, retry_after_s: float) -> ApiError:
    """There is no engine to run the request."""
    return ApiError(
        503,
        Outcome.REJECTED_NO_ENDPOINTS,
        "rejected-no-endpoints",
        f"No engine can take the request right now ({state}). Try again later.",
        retry_after_s=retry_after_s,
    )


def told_in_stream(status: int, answer: bytes) -> ApiError:
    """The engine refused a request whose stream had its head already."""
    found = _MESSAGE.search(answer)
    words = found.group(1).decode("utf-8", "replace") if found else "no reason was given"
    outcome = Outcome.CLIENT_ERROR if status < 500 else Outcome.ENGINE_ERROR
    return ApiError(
        status, outcome, "engine_refused", f"The engine refused with status {status}: {words}"
    )


def shutting_down(retry_after_s: float) -> ApiError:
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


def engine_timeout() -> ApiError:
    """The engine sent no first byte in time."""
    return ApiError(
        504,
        Outcome.ENGINE_TIMEOUT,
        "engine_timeout",
        "The engine did not begin to answer in time.",
    )


def engine_silent() -> ApiError:
    """The engine sent nothing more for too long in the middle of an answer."""
    return ApiError(
        504,
        Outcome.ENGINE_TIMEOUT,
        "engine_timeout",
        "The engine stopped sending in the middle of the answer.",
    )


def cut_by_shutdown() -> ApiError:
    """The time of a drain was over in the middle of an answer."""
    error = shutting_down(1)
    error.message = "This replica had to shut down before the answer was finished."
    return error


def engine_lost() -> ApiError:
    """The engine died, or closed the connection, in the middle of an answer."""
    return ApiError(
        503,
        Outcome.ENGINE_ERROR,
        "engine_lost",
        "The engine broke off in the middle of the answer.",
    )


def bad_gateway() -> ApiError:
    """The engine answered something that is not HTTP."""
    return ApiError(
        502, Outcome.ENGINE_ERROR, "bad_engine_answer", "The engine's answer was not HTTP."
    )


def internal_error() -> ApiError:
    """A bug; details are in the log only."""
    return ApiError(
        500,
        Outcome.INTERNAL_ERROR,
        "internal_error",
        "The sidecar failed. The log has the details under this request id.",
    )
