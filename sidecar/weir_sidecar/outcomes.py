"""How a request can end: every request that reaches the sidecar has exactly one outcome."""

from __future__ import annotations

from enum import StrEnum


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
