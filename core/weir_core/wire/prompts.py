"""The chain of a request's prompt: what stands for its text where prefixes are looked for.

An engine renders a prompt from a few values of the body. They are taken as they are written, which
is the same from one turn of a conversation to the next because one client writes both. What is
rendered from other fields is left out: a prediction that is wrong for it costs a cache miss.

Nothing here is on the way of a request unless its chain is asked for: the body is read once more,
for these values only.
"""

from __future__ import annotations

from typing import Final

import msgspec

from weir_core.route.prefix import CHUNK_BYTES, Chain, chunk_hashes, prefix_salt, prompt_text
from weir_core.wire.fields import NOTHING, PromptFields, RequestBody

MAX_BODY_BYTES: Final = 8 << 20
"""Larger bodies hold media more than text, and reading them again takes milliseconds."""
_NULL: Final = b"null"
_DECODER: Final = msgspec.json.Decoder(PromptFields)
_CHAT: Final = ("tools", "documents", "messages")
_PARTS: Final[dict[str, tuple[str, ...]]] = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": ("prompt",),
    "/v1/responses": ("instructions", "tools", "input"),
    "/v1/messages": ("system", "tools", "messages"),
    "/cohere/v2/chat": _CHAT,
}
"""Path -> the values of a prompt, in the order in which they are rendered: what a conversation
keeps comes before what grows at its end."""


def chain_of(path: str, body: bytes, asks: RequestBody) -> Chain | None:
    """Return the chain of a request's prompt; None where no prefix of it can be recognised.

    So it is with prompts shorter than one chunk, with several prompts in one request, and with
    those of which a part is kept in the engine.

    Args:
        path: Of the endpoint.
        body: As the engine gets it.
        asks: What the body asks for.
    """
    names = _PARTS.get(path)
    size = len(body)
    if names is None or size < CHUNK_BYTES or size > MAX_BODY_BYTES:
        return None
    if asks.prompts > 1 or asks.searches_beams:
        return None
    try:
        fields = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # it is not for this reader to refuse it
    if _is_given(fields.previous_response_id):
        return None
    salt = prefix_salt(asks.model or "", cache_salt=fields.cache_salt or "")
    chain = chunk_hashes(prompt_text(_parts(names, fields)), salt)
    return chain if chain.hashes else None


def _parts(names: tuple[str, ...], fields: PromptFields) -> list[memoryview]:
    """Return the values in their order; one that is not there keeps its place."""
    found: list[memoryview] = []
    for name in names:
        value: msgspec.Raw = getattr(fields, name)
        found.append(memoryview(value if _is_given(value) else NOTHING))
    return found


def _is_given(value: msgspec.Raw) -> bool:
    return value is not NOTHING and bytes(memoryview(value)[:4]) != _NULL
