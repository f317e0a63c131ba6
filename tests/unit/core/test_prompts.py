"""From bodies to chains: what makes two prompts begin alike, for each API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from weir_core.route.prefix import CHUNK_BYTES, Chain
from weir_core.wire import prompts
from weir_core.wire.bodies import read_body
from weir_core.wire.paths import POSTS

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES, COHERE = "/v1/responses", "/v1/messages", "/cohere/v2/chat"
LONG = "What the fox is told before it answers. " * 200
TOOLS = [{"type": "function", "function": {"name": "search", "description": LONG}}]
TURNS = [
    {"role": "user", "content": LONG},
    {"role": "assistant", "content": "An answer. " * 300},
    {"role": "user", "content": "Thanks."},
]


def chain_of(path: str, body: dict[str, Any] | bytes) -> Chain | None:
    data = body if isinstance(body, bytes) else json.dumps({"model": "tiny"} | body).encode()
    return prompts.chain_of(path, data, read_body(POSTS[path], data))


def shared(path: str, one: dict[str, Any], other: dict[str, Any]) -> int:
    """Return how many chunks two prompts share from their beginning."""
    first, second = chain_of(path, one), chain_of(path, other)
    assert first is not None
    assert second is not None
    pairs = zip(first.hashes, second.hashes, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(first.hashes))


CONVERSATIONS = [
    pytest.param(CHAT, "messages", {"tools": TOOLS}, id="chat"),
    pytest.param(CHAT, "messages", {"documents": [{"text": LONG}]}, id="chat with documents"),
    pytest.param(RESPONSES, "input", {"instructions": LONG, "tools": TOOLS}, id="responses"),
    pytest.param(MESSAGES, "messages", {"system": LONG, "tools": TOOLS}, id="messages"),
    pytest.param(COHERE, "messages", {"tools": TOOLS}, id="cohere"),
]


@pytest.mark.parametrize(("path", "growing", "kept"), CONVERSATIONS)
def test_a_turn_begins_with_the_turns_before_it(
    path: str, growing: str, kept: dict[str, Any]
) -> None:
    first = {growing: TURNS[:1], "stream": True} | kept
    second = kept | {"temperature": 0.5, growing: TURNS}
    chain = chain_of(path, first)
    assert chain is not None
    assert shared(path, first, second) == len(chain.hashes) > 3


@pytest.mark.parametrize(("path", "growing", "kept"), CONVERSATIONS)
def test_other_texts_before_equal_ones_make_another_prompt(
    path: str, growing: str, kept: dict[str, Any]
) -> None:
    first = next(iter(kept))
    assert shared(path, {growing: TURNS} | kept, {growing: TURNS} | kept | {first: None}) == 0


def test_a_completion_begins_with_its_beginning() -> None:
    one, other = {"prompt": LONG}, {"prompt": LONG + LONG}
    assert shared(COMPLETIONS, one, other) == len(LONG) // CHUNK_BYTES
    tokens = list(range(1000, 3000))
    assert shared(COMPLETIONS, {"prompt": tokens}, {"prompt": [*tokens, *tokens]}) >= 5


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"model": "verse"}, id="another adapter"),
        pytest.param({"cache_salt": "mine"}, id="a salt"),
    ],
)
def test_what_has_kv_blocks_of_its_own_has_a_chain_of_its_own(fields: dict[str, Any]) -> None:
    assert shared(CHAT, {"messages": TURNS}, {"messages": TURNS} | fields) == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(COMPLETIONS, {"prompt": "x" * 1900}, id="a short body"),
        pytest.param(
            COMPLETIONS, {"prompt": "x", "user": LONG}, id="a short prompt in a long body"
        ),
        pytest.param(COMPLETIONS, {"prompt": [LONG, LONG]}, id="several prompts"),
        pytest.param(COMPLETIONS, {"prompt": LONG, "use_beam_search": True}, id="beams"),
        pytest.param(COMPLETIONS, {"messages": TURNS}, id="no prompt"),
        pytest.param(
            RESPONSES, {"input": LONG, "previous_response_id": "r1"}, id="its beginning is stored"
        ),
        pytest.param("/v1/embeddings", {"input": LONG}, id="no generation"),
        pytest.param(
            COMPLETIONS, {"prompt": "x" * prompts.MAX_BODY_BYTES}, id="media more than text"
        ),
        pytest.param(CHAT, b'{"messages": [NaN, "%s"]}' % LONG.encode(), id="more than JSON"),
        pytest.param(COMPLETIONS, {"prompt": LONG, "cache_salt": 7}, id="a salt that is no text"),
    ],
)
def test_has_no_chain(path: str, body: dict[str, Any] | bytes) -> None:
    assert chain_of(path, body) is None


def test_a_response_that_goes_on_from_nothing_stored_has_a_chain() -> None:
    assert chain_of(RESPONSES, {"input": LONG, "previous_response_id": None}) is not None
