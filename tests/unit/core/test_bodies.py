"""How many prompts and sequences a body makes the engine compute, and what is refused."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_core.errors import InvalidBody
from weir_core.wire import bodies
from weir_core.wire.bodies import MAX_N, read_body, read_form
from weir_core.wire.fields import Body, RequestBody
from weir_core.wire.paths import POSTS

CHAT = "/v1/chat/completions"


def read(path: str, body: bytes | dict[str, Any]) -> RequestBody:
    return read_body(POSTS[path], body if isinstance(body, bytes) else json.dumps(body).encode())


def test_reads_what_decides_something() -> None:
    body = {
        "model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, "n": 3,
        "max_tokens": 5, "temperature": 0.5, "top_p": 1, "priority": 7, "service_tier": "flex",
        "new": {"a": [1]}, "max_completion_tokens": 9,
    }  # fmt: skip
    assert read(CHAT, body) == RequestBody(
        model="m", streams=True, sequences=3, max_output_tokens=9, priority=7,
        service_tier="flex", temperature=0.5, top_p=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "prompts", "sequences"),
    [
        pytest.param(CHAT, {}, 1, 1, id="nothing said"),
        pytest.param(CHAT, {"n": None}, 1, 1, id="n null"),
        pytest.param(CHAT, {"n": 4}, 1, 4, id="n"),
        pytest.param(CHAT, {"n": "4"}, 1, 4, id="n as pydantic takes it"),
        pytest.param(CHAT, {"n": 0}, 1, 1, id="n that the engine refuses"),
        pytest.param(CHAT, {"n": 10**9}, 1, MAX_N, id="more than the engine takes"),
        pytest.param(CHAT, {"n": 2, "best_of": 9}, 1, 2, id="best_of, which vLLM ignores"),
        pytest.param(CHAT, {"n": 4, "use_beam_search": True}, 1, 4, id="beams"),
        pytest.param(CHAT, b'{"n":1,"n":5}', 1, 5, id="the last of two counts, as in the engine"),
        pytest.param(CHAT, b'{"\\u006e":5}', 1, 5, id="an escaped name"),
        pytest.param("/v1/completions", {"prompt": "a"}, 1, 1, id="a text"),
        pytest.param("/v1/completions", {"prompt": [1, 2, 3]}, 1, 1, id="token ids"),
        pytest.param("/v1/completions", {"prompt": ["a", 'b"c,['], "n": 3}, 2, 6, id="texts"),
        pytest.param("/v1/completions", {"prompt": [[1, 2], [3]]}, 2, 2, id="lists of token ids"),
        pytest.param("/v1/completions", {"prompt": []}, 1, 1, id="no prompt"),
        pytest.param("/v1/completions", {"prompt": None}, 1, 1, id="null"),
        pytest.param(
            "/v1/completions", {"prompt": ["a"], "prompt_embeds": ["b", "c"]}, 3, 3, id="embeds"
        ),
        pytest.param(
            "/v1/completions", b'{"prompt":[' + b" " * 999 + b'"a","b"]}', 2, 2, id="spaces"
        ),
        pytest.param("/v1/responses", {"input": ["a", "b"], "n": 9}, 1, 1, id="responses"),
        pytest.param("/v1/messages", {"n": 9}, 1, 1, id="messages"),
        pytest.param(
            "/v1/chat/completions/batch",
            {"messages": [[{"role": "user", "content": "a"}]] * 3, "n": 2},
            3, 6, id="a batch of chats",
        ),
        pytest.param(
            "/inference/v1/generate",
            {"token_ids": [1, 2], "sampling_params": {"n": 3}, "n": 7}, 1, 3, id="tokens in",
        ),
        pytest.param("/generative_scoring", {"query": "q", "items": ["a", "b"]}, 2, 2, id="items"),
        pytest.param(
            "/v1/systemone", {"questions": {"a": {"type": "x"}, "b": {}}}, 2, 2, id="questions"
        ),
        pytest.param("/v1/embeddings", {"input": "a", "n": 4}, 1, 1, id="an embedding"),
        pytest.param("/v1/embeddings", {"input": ["a", "b"]}, 2, 2, id="embeddings"),
        pytest.param("/v1/embeddings", {"messages": [{"role": "user"}] * 3}, 1, 1, id="of a chat"),
        pytest.param("/v1/embeddings", {"messages": [[{}], [{}]]}, 2, 2, id="of chats"),
        pytest.param("/v2/embed", {"texts": ["a", "b"], "images": ["c"]}, 3, 3, id="Cohere's"),
        pytest.param("/v2/embed", {"inputs": [{"content": []}] * 2}, 2, 2, id="Cohere's inputs"),
        pytest.param("/rerank", {"query": "q", "documents": ["a", "b"]}, 3, 3, id="documents"),
        pytest.param("/rerank", {"query": "q", "documents": ["a", {}]}, 3, 3, id="mixed documents"),
        pytest.param(
            "/v1/score", {"queries": ["a", "b"], "documents": ["c", "d"]}, 4, 4, id="pairs"
        ),
        pytest.param("/invocations", {"prompt": ["a", "b"], "n": 2}, 2, 4, id="SageMaker"),
    ],
)  # fmt: skip
def test_counts_what_the_engine_will_run(
    path: str, body: bytes | dict[str, Any], prompts: int, sequences: int
) -> None:
    found = read(path, body)
    assert (found.prompts, found.sequences) == (prompts, sequences)


TEXTS = st.lists(st.text(st.sampled_from('ab",[]{}\\ \n')), max_size=6)
TOKENS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), max_size=6)


@given(TEXTS | TOKENS)
def test_counting_by_characters_is_exact_for_texts_and_token_ids(prompts: list[Any]) -> None:
    many = [*prompts, prompts[0] if prompts else "a"]
    value = json.dumps(many).encode()
    first = value[1:2]
    assert bodies._elements(value, first) == len(many)


def test_a_list_of_very_many_is_counted() -> None:
    many = bodies._MANY + 2
    assert read("/v1/completions", {"prompt": ["a,"] * many}).prompts == many
    assert read("/v1/completions", {"prompt": [[1, 2]] * many}).prompts == many
    assert read("/v1/completions", {"prompt": list(range(many))}).prompts == 1
    chats = {"messages": [[{"role": "user", "content": "a,b"}]] * many}
    assert read("/v1/chat/completions/batch", chats).prompts >= many
    assert read("/rerank", {"query": "q", "documents": [{"a": 1}] * many}).prompts >= many
    assert read("/v1/systemone", {"questions": {str(i): 0 for i in range(many)}}).prompts == many


@pytest.mark.parametrize(
    ("path", "body", "want"),
    [
        pytest.param(CHAT, {"max_tokens": 3}, 3, id="chat"),
        pytest.param(CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, 4, id="the newer name"),
        pytest.param("/v1/responses", {"max_output_tokens": 5}, 5, id="responses"),
        pytest.param(CHAT, {"max_tokens": -3}, 1, id="what the engine refuses"),
        pytest.param(CHAT, {}, None, id="not said"),
        pytest.param("/v2/embed", {"max_tokens": 7}, None, id="of a prompt, where nothing follows"),
        pytest.param(
            "/inference/v1/generate", {"sampling_params": {"max_tokens": 6}}, 6, id="tokens in"
        ),
    ],
)
def test_the_output_limit_has_several_names(
    path: str, body: dict[str, Any], want: int | None
) -> None:
    assert read(path, body).max_output_tokens == want


@pytest.mark.parametrize(
    ("body", "want"),
    [
        pytest.param(b'{"n":3,"temperature":NaN}', 3, id="NaN"),
        pytest.param(b'{"n":3,"a":"\\ud83d"}', 3, id="half of an emoji"),
        pytest.param(b'\xef\xbb\xbf{"n":3}', 3, id="a byte order mark"),
        pytest.param(b'{"n":3,"a":-Infinity,"n":4}', 4, id="twice"),
    ],
)
def test_reads_what_only_the_engines_reader_takes(body: bytes, want: int) -> None:
    assert read(CHAT, body).sequences == want


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        pytest.param(CHAT, b"", "", id="nothing"),
        pytest.param(CHAT, b"{", "", id="no JSON"),
        pytest.param(CHAT, b"[1]", "", id="no object"),
        pytest.param(CHAT, b'{"a":' * 5000, "", id="too deep"),
        pytest.param(CHAT, b'{"n":1,"a":"\xff"', "", id="no UTF-8"),
        pytest.param("/v1/systemone", b'{"questions":{"\xff":1}}', "", id="no UTF-8 in a name"),
        pytest.param(CHAT, '{"n":2}'.encode("utf-16"), "", id="UTF-16"),
        pytest.param(CHAT, b'{"a":NaN,"b":"' + b"x" * (300 << 10) + b'"}', "", id="large NaN"),
        pytest.param(CHAT, b'{"n":[1]}', "n", id="another type"),
        pytest.param(CHAT, b'{"n":true,"a":NaN}', "n", id="another type, at the second reading"),
        pytest.param(CHAT, {"kv_transfer_params": {"a": 1}}, "kv_transfer_params", id="KV blocks"),
        pytest.param(CHAT, {"ec_transfer_params": {"a": 1}}, "ec_transfer_params", id="encoder"),
        pytest.param(
            CHAT, {"vllm_xargs": {"kv_cache_report_mode": "full"}},
            "vllm_xargs.kv_cache_report_mode", id="KV events",
        ),
        pytest.param(
            "/inference/v1/generate",
            {"sampling_params": {"extra_args": {"kv_transfer_params": {"a": 1}}}},
            "sampling_params.extra_args.kv_transfer_params", id="by sampling_params",
        ),
        pytest.param("/v1/responses", {"background": True}, "background", id="in the background"),
    ],
)  # fmt: skip
def test_refuses_what_it_cannot_read_and_what_clients_may_not_send(
    path: str, body: bytes | dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidBody) as caught:
        read(path, body)
    assert caught.value.field == field
    assert caught.value.message.endswith(".")


def test_beam_search_is_seen_where_vllm_heeds_it() -> None:
    assert read(CHAT, {"use_beam_search": True}).searches_beams
    assert read("/invocations", {"use_beam_search": "true"}).searches_beams
    assert not read("/v1/responses", {"use_beam_search": True}).searches_beams
    assert not read("/v1/embeddings", {"use_beam_search": True}).searches_beams


def test_passes_what_is_harmless() -> None:
    read(CHAT, {"kv_transfer_params": None, "ec_transfer_params": {}, "background": True})
    read(CHAT, {"vllm_xargs": {"session_id": "a", "kv_cache_report_mode": None}})
    read("/v1/responses", {"background": False, "kv_transfer_params": None})


@given(st.sampled_from(sorted(POSTS)), st.binary(max_size=200))
def test_no_body_makes_it_fail(path: str, body: bytes) -> None:
    with contextlib.suppress(InvalidBody):
        assert read(path, body).sequences >= 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(
    st.sampled_from(sorted(Body.__struct_fields__)) | st.text(), VALUES, max_size=5
)


@given(st.sampled_from(sorted(POSTS)), OBJECTS)
def test_no_object_makes_it_fail(path: str, value: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidBody):
        assert read(path, value).sequences >= 1


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n{}\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    b'RIFF; name="vllm_xargs"\r\n--x--\r\n'
)
MULTIPART = 'multipart/form-data; boundary="x"'


def test_a_form_with_audio_is_one_prompt() -> None:
    assert read_form(MULTIPART, FORM % b"model") == RequestBody()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param(MULTIPART, FORM % b"vllm_xargs", id="extra arguments"),
        pytest.param(MULTIPART, FORM % b"use_beam_search", id="beams"),
        pytest.param(MULTIPART, FORM % b"vllm\\_xargs", id="an escaped name"),
        pytest.param(
            MULTIPART, (FORM % b"model").replace(b'name="model"', b"name*=utf-8''vllm%5Fxargs"),
            id="an encoded name",
        ),
        pytest.param(
            MULTIPART,
            (FORM % b"model").replace(b'name="model"', b'name*0="vllm_"; name*1="xargs"'),
            id="a name in pieces",
        ),
        pytest.param(MULTIPART, (FORM % b"a").replace(b'name="a"', b"NAME=vllm_xargs"), id="bare"),
        pytest.param("application/json", b"{}", id="no form"),
    ],
)  # fmt: skip
def test_a_form_may_not_say_what_a_body_may_not(content_type: str, body: bytes) -> None:
    with pytest.raises(InvalidBody):
        read_form(content_type, body)
