"""Which of the engine's paths clients may reach.

vLLM serves its API and its levers (sleep, weights, profiling, caches, RPC) on one port. What is
not listed here answers 404, so a lever that a new vLLM adds is closed until someone opens it.
The decision is made on the decoded path, which is what the engine routes by.
"""

from __future__ import annotations

from typing import Final

HOT: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
"""Allowed as they are, without decoding first."""

HEALTH: Final = "/health"
"""Answered as vLLM answers it, by the sidecar: a load balancer asks without a key."""

_EXACT: Final = frozenset(
    {
        "/classify",
        "/cohere/v2/chat",
        "/detokenize",
        "/generative_scoring",
        "/invocations",
        "/ping",
        "/pooling",
        "/rerank",
        "/score",
        "/tokenize",
        "/v2/embed",
        "/v2/rerank",
        "/version",
    }
)
_UNDER: Final = ("/v1/", "/inference/v1/")
_CLOSED: Final = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
"""Adapters are declared in the InferenceService; loading one by hand would be lost on restart."""


def is_open(path: str) -> bool:
    """Tell whether clients may call a decoded path."""
    path = path.rstrip("/")
    if path in _CLOSED or not _is_plain(path):
        return False
    return path in _EXACT or path.startswith(_UNDER)


def _is_plain(path: str) -> bool:
    """Refuse paths that two readers could understand differently."""
    if "//" in path or "%" in path or "\\" in path:
        return False
    return path.isprintable() and not any(part in (".", "..") for part in path.split("/"))
