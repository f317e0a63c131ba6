"""What each path of vLLM's API is: open or closed, what it makes the engine do, and whose API.

vLLM serves its API and its levers (sleep, weights, profiling, caches, aborts) on one port. A path
that is not listed answers 404, so that a lever which a newer vLLM adds stays closed. The one
exception is `/v1/`, where clients expect every path of the OpenAI API: an unlisted POST below it
is open and taken for a generation, because a generation that is scheduled needlessly waits, and
one that is not scheduled overtakes every queue. Other methods there compute nothing.

A test holds the table against the routes in the sources of the pinned vLLM.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Kind(StrEnum):
    """What a request makes the engine do."""

    GENERATION = "generation"
    """Prefill and decode: waits in the pool."""
    POOLING = "pooling"
    """Prefill only (embeddings, scores, classes): waits in the pool."""
    NO_GENERATION = "no generation"
    """No work of the engine's scheduler: never waits, bounded per tenant and in all."""


class Api(StrEnum):
    """The API that a path belongs to: the shape of its answers, its events and its errors."""

    CHAT = "openai chat"
    COMPLETIONS = "openai completions"
    RESPONSES = "openai responses"
    MESSAGES = "anthropic messages"
    COHERE = "cohere chat"
    OTHER = "other"
    """vLLM's own paths; their errors and events are shaped as OpenAI's."""


class Priority(StrEnum):
    """Where vLLM reads the priority of a request."""

    HEADER = "header"
    """In `X-Vllm-Priority`, which overrides the body's."""
    BODY = "body"
    BOTH = "both"
    """One path for several kinds of bodies, of which some heed the header and some the body."""
    NOWHERE = "nowhere"


class Endpoint(NamedTuple):
    """One open path.

    Attributes:
        path: The path, without a slash at its end; `{id}` stands for one part.
        kind: What it makes the engine do.
        api: The API it belongs to.
        priority: Where vLLM reads its priority.
    """

    path: str
    kind: Kind
    api: Api = Api.OTHER
    priority: Priority = Priority.NOWHERE


MODELS_PATH: Final = "/v1/models"

_GENERATION: Final = Kind.GENERATION
_POOLING: Final = Kind.POOLING
_NONE: Final = Kind.NO_GENERATION
_HEADER: Final = Priority.HEADER
_BODY: Final = Priority.BODY

POSTS: Final[dict[str, Endpoint]] = {
    each.path: each
    for each in (
        Endpoint("/v1/chat/completions", _GENERATION, Api.CHAT, _HEADER),
        Endpoint("/v1/completions", _GENERATION, Api.COMPLETIONS, _HEADER),
        Endpoint("/v1/responses", _GENERATION, Api.RESPONSES, _HEADER),
        Endpoint("/v1/messages", _GENERATION, Api.MESSAGES, _HEADER),
        Endpoint("/cohere/v2/chat", _GENERATION, Api.COHERE, _HEADER),
        Endpoint("/v1/chat/completions/batch", _GENERATION, Api.CHAT, _BODY),
        Endpoint("/inference/v1/generate", _GENERATION, Api.OTHER, _BODY),
        Endpoint("/generative_scoring", _GENERATION, Api.OTHER, _BODY),
        Endpoint("/v1/systemone", _GENERATION, Api.OTHER, _BODY),
        Endpoint("/v1/audio/transcriptions", _GENERATION),
        Endpoint("/v1/audio/translations", _GENERATION),
        Endpoint("/invocations", _GENERATION, Api.OTHER, Priority.BOTH),
        Endpoint("/v1/embeddings", _POOLING, Api.OTHER, _BODY),
        Endpoint("/v2/embed", _POOLING, Api.OTHER, _BODY),
        Endpoint("/pooling", _POOLING, Api.OTHER, _BODY),
        Endpoint("/classify", _POOLING, Api.OTHER, _BODY),
        Endpoint("/score", _POOLING, Api.OTHER, _BODY),
        Endpoint("/v1/score", _POOLING, Api.OTHER, _BODY),
        Endpoint("/rerank", _POOLING, Api.OTHER, _BODY),
        Endpoint("/v1/rerank", _POOLING, Api.OTHER, _BODY),
        Endpoint("/v2/rerank", _POOLING, Api.OTHER, _BODY),
        Endpoint("/tokenize", _NONE),
        Endpoint("/detokenize", _NONE),
        Endpoint("/v1/messages/count_tokens", _NONE, Api.MESSAGES),
        Endpoint("/v1/chat/completions/render", _NONE, Api.CHAT),
        Endpoint("/v1/completions/render", _NONE, Api.COMPLETIONS),
        Endpoint("/v1/responses/render", _NONE, Api.RESPONSES),
        Endpoint("/v1/messages/render", _NONE, Api.MESSAGES),
        Endpoint("/cohere/v2/chat/render", _NONE, Api.COHERE),
        Endpoint("/v1/chat/completions/derender", _NONE, Api.CHAT),
        Endpoint("/v1/completions/derender", _NONE, Api.COMPLETIONS),
        Endpoint("/v1/responses/{id}/cancel", _NONE, Api.RESPONSES),
        Endpoint("/ping", _NONE),
    )
}
"""What clients may POST to."""
READS: Final[dict[str, Endpoint]] = {
    each.path: each
    for each in (
        Endpoint(MODELS_PATH, _NONE),
        Endpoint("/v1/responses/{id}", _NONE, Api.RESPONSES),
        Endpoint("/v1/realtime", _NONE),  # a WebSocket, which the relay refuses
        Endpoint("/version", _NONE),
        Endpoint("/ping", _NONE),
    )
}
"""What clients may ask for with any other method."""
CLOSED: Final = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
"""Levers below `/v1/`. Adapters are declared in the InferenceService, because one that is loaded
by hand is lost at the engine's next start."""
DEFAULT_PREFIX: Final = "/v1/"
"""Below it a path is open although it is in neither table."""

_RESPONSES: Final = "/v1/responses/"
_HAVING_MORE: Final = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
"""Paths below which there are more of the same API."""


def endpoint_of(method: str, path: str) -> Endpoint | None:
    """Return what a decoded path is, or None where it is closed to clients.

    The engine routes by the decoded path, so the decision is made on that. A path of vLLM's that
    is asked for with a method which it does not have is open: the engine says 405.
    """
    known = POSTS.get(path) if method == "POST" else READS.get(path)
    if known is not None:
        return known
    path = path.rstrip("/")
    if path in CLOSED or not _is_plain(path):
        return None
    table, other = (POSTS, READS) if method == "POST" else (READS, POSTS)
    known = table.get(path) or table.get(_with_id(path))
    if known is not None:
        return known
    if path in other:
        return Endpoint(path, _NONE, other[path].api)
    return _unlisted(method, path) if path.startswith(DEFAULT_PREFIX) else None


def _unlisted(method: str, path: str) -> Endpoint:
    """Return what a path below `/v1/` is that a newer vLLM may have."""
    above = [each for each in _HAVING_MORE if path.startswith(each + "/")]
    api = POSTS[above[0]].api if above else Api.OTHER
    if method == "POST":
        return Endpoint(path, _GENERATION, api, _HEADER)
    return Endpoint(path, _NONE, api)


def _with_id(path: str) -> str:
    """Return a path of a stored response as the tables write it."""
    if not path.startswith(_RESPONSES):
        return path
    name, slash, rest = path[len(_RESPONSES) :].partition("/")
    return f"{_RESPONSES}{{id}}{slash}{rest}" if name else path


def _is_plain(path: str) -> bool:
    """Refuse paths that two readers could understand differently."""
    if "//" in path or "%" in path or "\\" in path:
        return False
    return path.isprintable() and not any(part in (".", "..") for part in path.split("/"))
