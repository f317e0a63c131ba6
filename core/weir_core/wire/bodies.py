"""What the body of a request makes the engine do: how many prompts and sequences, how long, how.

A body is read in one pass for the few fields that decide something; unknown fields are skipped
without an object for them, and lists of prompts are counted without an object for each where that
could be many. What cannot be read is refused, because the engine's reader, which takes more than
JSON is (NaN, lone surrogates, a byte order mark), would find fields that nothing here has counted.
"""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec

from weir_core.errors import InvalidBody
from weir_core.wire.engine_inputs import EXTRA_ARGS
from weir_core.wire.fields import NOTHING, Body, Extra, RequestBody
from weir_core.wire.paths import Endpoint, Kind

MAX_N: Final = 16384
"""vLLM's own bound of `n` (VLLM_MAX_N_SEQUENCES); it refuses more."""
LENIENT_BYTES: Final = 256 << 10
"""Bodies up to this size get a second reading, by Python's reader, which is the engine's."""
_MANY: Final = 1 << 18
"""Commas in a body from which on the elements of a list are counted by characters."""


_DECODER: Final = msgspec.json.Decoder(Body, strict=False)
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_MAPPING: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_EMPTY: Final = frozenset({b"", b"null", b"{}"})
_START: Final = re.compile(rb"\s*(\S)\s*(\S?)")
_FAULTY_FIELD: Final = re.compile(r" - at `\$\.(.+)`$")

_SCORED: Final = ("query", "queries", "documents", "items", "data_1", "data_2", "text_1", "text_2")
_COUNTED: Final[dict[str, tuple[str, ...]]] = {
    "/v1/completions": ("prompt", "prompt_embeds"),
    "/v1/chat/completions/batch": ("messages",),
    "/generative_scoring": ("items",),
    "/v1/systemone": ("questions",),
    "/v1/embeddings": ("input", "messages"),
    "/v2/embed": ("texts", "images", "inputs"),
    "/pooling": ("input", "messages"),
    "/classify": ("input", "messages"),
    **dict.fromkeys(("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"), _SCORED),
    "/invocations": ("prompt", "prompt_embeds", "input", "messages", *_SCORED),
}
"""Path -> the fields whose prompts the engine computes; elsewhere a body is one prompt."""
_CONVERSATIONS: Final = frozenset({"messages", "input"})
"""Fields where a list of objects is one conversation."""
_WITHOUT_N: Final = frozenset(
    {"/v1/responses", "/v1/messages", "/cohere/v2/chat", "/generative_scoring", "/v1/systemone"}
)
"""Paths of generations where vLLM ignores `n` and `use_beam_search`."""
_FORM_NAMES: Final = frozenset({b"vllm_xargs", b"use_beam_search"})
_BOUNDARY: Final = re.compile(r'boundary="?([^";,]+)', re.IGNORECASE)
_PART_NAME: Final = re.compile(rb'[;\s]name(\*?)[^=;]*=\s*"?([^";\r\n]*)', re.IGNORECASE)


def read_body(endpoint: Endpoint, body: bytes) -> RequestBody:
    """Return what a JSON body makes the engine do.

    Raises:
        InvalidBody: It cannot be read, or holds what clients may not send.
    """
    fields = _decode(body)
    _refuse(endpoint, fields)
    prompts = _prompts(endpoint, fields, body)
    sampling = fields.sampling_params
    n, max_tokens = fields.n, _max_output_tokens(fields)
    if sampling is not None and endpoint.path == "/inference/v1/generate":
        n, max_tokens = sampling.n, sampling.max_tokens
    heeds_n = endpoint.kind is Kind.GENERATION and endpoint.path not in _WITHOUT_N
    if not heeds_n:
        n = None
    if endpoint.kind is not Kind.GENERATION:
        max_tokens = None
    answers = 1 if n is None else min(max(n, 1), MAX_N)
    return RequestBody(
        model=fields.model,
        streams=bool(fields.stream),
        prompts=prompts,
        sequences=prompts * answers,
        max_output_tokens=None if max_tokens is None else max(max_tokens, 1),
        searches_beams=heeds_n and bool(fields.use_beam_search),
        priority=fields.priority,
        service_tier=fields.service_tier,
        temperature=fields.temperature,
        top_p=fields.top_p,
    )


def read_form(content_type: str, body: bytes) -> RequestBody:
    """Return what a form with audio makes the engine do.

    Raises:
        InvalidBody: It holds what clients may not send.
    """
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise InvalidBody("", "The body must be a form (multipart/form-data) with a boundary.")
    for part in body.split(b"--" + boundary[1].strip().encode("latin-1", "replace")):
        for encoded, name in _PART_NAME.findall(part.partition(b"\r\n\r\n")[0]):
            # A name in another encoding could be any; no client needs one.
            if encoded or name.replace(b"\\", b"").strip() in _FORM_NAMES:
                raise InvalidBody(
                    name.decode("latin-1"), "vllm_xargs and use_beam_search are not for clients."
                )
    return RequestBody()


def _decode(body: bytes) -> Body:
    try:
        return _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise _of_another_type(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    if len(body) > LENIENT_BYTES or not json.detect_encoding(body).startswith("utf-8"):
        raise _not_utf8()
    try:
        value = json.loads(body, parse_constant=_no_number)
        return _DECODER.decode(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except msgspec.ValidationError as error:
        raise _of_another_type(error) from None
    except (ValueError, RecursionError):
        raise InvalidBody("", "The body is not JSON.") from None


def _no_number(_: str) -> None:
    """Read NaN and the infinities, which JSON has not, as null."""


def _of_another_type(error: msgspec.ValidationError) -> InvalidBody:
    field = _FAULTY_FIELD.search(str(error))
    return InvalidBody(field[1] if field else "", f"The body cannot be read: {error}.")


def _refuse(endpoint: Endpoint, fields: Body) -> None:
    """Refuse what clients may not send."""
    if fields.background and endpoint.path == "/v1/responses":
        raise InvalidBody("background", "Responses in the background are not served.")
    if fields.kv_transfer_params is not NOTHING:
        _refuse_any(fields.kv_transfer_params, "kv_transfer_params")
    if fields.ec_transfer_params is not NOTHING:
        _refuse_any(fields.ec_transfer_params, "ec_transfer_params")
    if fields.vllm_xargs is not None:
        _refuse_extra(fields.vllm_xargs, "vllm_xargs")
    if fields.sampling_params is not None and fields.sampling_params.extra_args is not None:
        _refuse_extra(fields.sampling_params.extra_args, "sampling_params.extra_args")


def _refuse_extra(extra: Extra, field: str) -> None:
    for name in EXTRA_ARGS:
        _refuse_any(getattr(extra, name), f"{field}.{name}")


def _refuse_any(value: msgspec.Raw, field: str) -> None:
    if bytes(value) not in _EMPTY:
        raise InvalidBody(field, f"{field} is not for clients.")


def _max_output_tokens(fields: Body) -> int | None:
    if fields.max_completion_tokens is not None:
        return fields.max_completion_tokens
    return fields.max_tokens if fields.max_tokens is not None else fields.max_output_tokens


def _prompts(endpoint: Endpoint, fields: Body, body: bytes) -> int:
    names = _COUNTED.get(endpoint.path)
    if names is None:
        return 1
    is_small = len(body) < _MANY or body.count(b",") < _MANY
    found = [(name, getattr(fields, name)) for name in names]
    counts = [_count(name, raw, is_small) for name, raw in found if raw is not NOTHING]
    return max(sum(counts), 1)


def _count(name: str, value: msgspec.Raw, is_small: bool) -> int:
    """Return how many prompts a field holds."""
    start = _START.match(memoryview(value))
    if start is None or start[1] != b"[":
        return _single(name, value, is_small)
    first = start[2]
    if first not in (b'"', b"[", b"{"):  # token ids, or nothing
        return 1
    if first == b"{" and name in _CONVERSATIONS:
        return 1
    return len(_LIST.decode(value)) if is_small else _elements(bytes(value), first)


def _single(name: str, value: msgspec.Raw, is_small: bool) -> int:
    """Return how many prompts a value that is no list holds."""
    start = bytes(memoryview(value)[:4])
    if name == "questions" and start[:1] == b"{":
        return _members(value) if is_small else bytes(value).count(b",") + 1
    return int(start != b"null")


def _members(value: msgspec.Raw) -> int:
    """Return how many members an object has; its names were not read as text before."""
    try:
        return len(_MAPPING.decode(value))
    except UnicodeDecodeError:
        raise _not_utf8() from None


def _not_utf8() -> InvalidBody:
    return InvalidBody("", "The body must be JSON in UTF-8.")


def _elements(value: bytes, first: bytes) -> int:
    """Return how many elements a large list has, without an object for each.

    It is exact for lists of texts and lists of token ids, and no less than what there is for
    lists of objects and of conversations.
    """
    if first != b'"':
        return value.count(first) - int(first == b"[")
    if b"\\" in value:
        value = value.replace(b"\\\\", b"").replace(b'\\"', b"")
    return max(value.count(b'"') // 2, 1)
