"""What a client may say to vLLM's scheduler, held against the sources of the pinned vLLM."""

from __future__ import annotations

import ast

import pytest

from tests.unit.core import vllm_sources
from weir_core.wire.engine_inputs import (
    EXTRA_ARGS,
    FIELDS,
    HEADERS,
    STRIPPED_HEADERS,
    SentPriority,
    Treatment,
    bounded_target_s,
    may_search_beams,
    sent_priority,
)
from weir_core.wire.paths import POSTS

_CONTENT_ONLY = """
    add_generation_prompt add_special_tokens allowed_token_ids apply_softmax audio bad_words
    chat_request chat_template chat_template_kwargs citation_options completion_request
    content_parts continue_final_message data dimensions early_stopping echo embed_dtype
    embedding_types enable_response_messages encoding_format endianness file frequency_penalty
    generate_chunk generate_response generate_responses guided_decoding_backend hotwords ignore_eos
    include include_reasoning include_stop_str_in_output input_type instruction instructions
    item_first k label_token_ids language length_penalty logit_bias logprob_token_ids logprobs
    max_tokens_per_doc max_tokens_per_query max_tool_calls metadata min_p min_tokens mm_payload
    model output_config output_dimension output_mode p padding parallel_tool_calls presence_penalty
    previous_input_messages previous_response_id prompt_token_ids prompt_tokens query reasoning
    reasoning_effort reasoning_ended reasoning_parser_kwargs repetition_detection repetition_penalty
    response_format return_mm_kwargs return_prompt_text return_token_ids return_token_offsets
    return_token_strs return_tokens_as_token_ids routed_experts_prompt_start safety_mode seed
    skip_special_tokens spaces_between_special_tokens state stop stop_sequences stop_token_ids store
    stream stream_continuous_usage_stats stream_include_usage stream_options stream_state
    strict_tools structured_outputs suffix system task temperature text thinking
    thinking_token_budget timestamp_granularities to_language token_ids token_offsets tokens
    tool_choice tools top_k top_logprobs top_n top_p truncate truncation truncation_side
    use_activation user videos watermarking
"""
CONTENT_ONLY = frozenset(_CONTENT_ONLY.split())
"""Fields that say what is generated, or how it is written, and nothing of when, where or whose."""

OF_CLOSED_PATHS = {
    "BatchTranscriptionRequest",
    "BatchTranslationRequest",
    "LoadLoRAAdapterRequest",
    "StartProfileRequest",
    "UnloadLoRAAdapterRequest",
}

_OF_SAMPLING_PARAMS = """
    detokenize extra_args flat_logprobs output_kind output_text_buffer_length prompt_logprob_start
    prompt_logprob_token_ids skip_clone skip_reading_prefix_cache trace_decode_token_ids
"""
OF_SAMPLING_PARAMS = frozenset(_OF_SAMPLING_PARAMS.split())
"""Fields of vLLM's SamplingParams, which /inference/v1/generate takes as they are, beyond those of
the other bodies: `extra_args` is looked into, `output_kind` vLLM sets anew, and without its prefix
cache a prompt costs what it was counted as."""


def test_every_header_that_the_pinned_vllm_reads_is_decided_about() -> None:
    found = vllm_sources.headers()
    assert "x-vllm-priority" in found
    assert found.keys() - HEADERS.keys() == set()


def test_every_header_of_the_sagemaker_package_is_decided_about() -> None:
    root = vllm_sources.package("model_hosting_container_standards")
    spelled = {
        node.value.lower()
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node.value.lower().startswith("x-amzn-") and " " not in node.value
    }
    of_answers = {
        "x-amzn-sagemaker-",
        "x-amzn-sagemaker-new-session-id",
        "x-amzn-sagemaker-closed-session-id",
    }
    assert len(spelled) > 3
    assert spelled - of_answers - HEADERS.keys() == set()


def test_the_trace_headers_are_those_of_the_pinned_vllm() -> None:
    tree = ast.parse((vllm_sources.package("vllm") / "tracing" / "utils.py").read_text())
    names = {
        ast.unparse(target): node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    assert set(ast.literal_eval(names["TRACE_HEADERS"])) <= HEADERS.keys()


def test_every_field_of_the_pinned_vllms_bodies_is_decided_about() -> None:
    found = vllm_sources.request_fields()
    assert len(found) > 150
    for field, models in sorted(found.items()):
        if models <= OF_CLOSED_PATHS:
            continue
        decided = (field in FIELDS) + (field in CONTENT_ONLY)
        assert decided == 1, f"decide about {field} of {', '.join(sorted(models))}"
    sampling = vllm_sources.fields_of_class("sampling_params.py", "SamplingParams")
    assert sampling - FIELDS.keys() - CONTENT_ONLY == OF_SAMPLING_PARAMS


def test_every_decision_is_about_something_of_the_pinned_vllm() -> None:
    assert FIELDS.keys() | CONTENT_ONLY == {
        field
        for field, models in vllm_sources.request_fields().items()
        if not models <= OF_CLOSED_PATHS
    }


def test_the_refused_extra_arguments_are_those_that_the_engine_reads() -> None:
    tree = ast.parse((vllm_sources.package("vllm") / "v1" / "request.py").read_text())
    read = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("extra_args.get")
        and isinstance(node.args[0], ast.Constant)
    }
    assert read == set(EXTRA_ARGS)


def test_what_a_client_must_not_say_is_stripped() -> None:
    assert {b"x-vllm-priority", b"x-data-parallel-rank"} <= STRIPPED_HEADERS
    assert not STRIPPED_HEADERS & {b"authorization", b"x-request-id", b"content-type"}
    assert all(
        HEADERS[name.decode()].treatment is not Treatment.PASSED for name in STRIPPED_HEADERS
    )


@pytest.mark.parametrize(
    ("path", "priority", "is_in_body", "want"),
    [
        pytest.param(
            "/v1/chat/completions", -5, False, SentPriority(b"x-vllm-priority: -5\r\n", None),
            id="by the header",
        ),
        pytest.param("/v1/messages", 7, False, SentPriority(b"x-vllm-priority: 7\r\n", None),
            id="Anthropic's, which ignores the body",
        ),
        pytest.param("/v1/embeddings", 7, False, SentPriority(b"", 7), id="by the body"),
        pytest.param("/invocations", 7, False, SentPriority(b"x-vllm-priority: 7\r\n", 7),
            id="by either",
        ),
        pytest.param("/v1/audio/transcriptions", 7, False, SentPriority(b"", None), id="nowhere"),
        pytest.param("/v1/chat/completions", None, True,
            SentPriority(b"x-vllm-priority: 0\r\n", None), id="an engine without priorities",
        ),
        pytest.param("/v1/embeddings", None, True, SentPriority(b"", 0), id="the wish overridden"),
        pytest.param("/v1/embeddings", None, False, SentPriority(b"", None), id="body untouched"),
    ],
)  # fmt: skip
def test_the_priority_goes_where_vllm_heeds_it(
    path: str, priority: int | None, is_in_body: bool, want: SentPriority
) -> None:
    assert sent_priority(POSTS[path], priority, is_in_body=is_in_body) == want


@pytest.mark.parametrize(
    ("asked_s", "class_target_s", "want_s"),
    [
        pytest.param(0.001, 60.0, 60.0, id="no less than its class"),
        pytest.param(90.0, 60.0, 90.0, id="more patience"),
        pytest.param(None, 60.0, None, id="its class's"),
        pytest.param(0.001, None, None, id="a class that promises nothing"),
    ],
)
def test_no_request_is_due_before_its_class(
    asked_s: float | None, class_target_s: float | None, want_s: float | None
) -> None:
    assert bounded_target_s(asked_s, class_target_s) == want_s


def test_beam_search_is_for_classes_that_lose_by_it() -> None:
    assert may_search_beams(100, by_priority=True)
    assert not may_search_beams(0, by_priority=True)
    assert not may_search_beams(-100, by_priority=True)
    assert may_search_beams(-100, by_priority=False)


def test_the_pinned_vllm_gives_beam_search_no_priority() -> None:
    calls = [
        node
        for module in vllm_sources.entrypoints()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"self.beam_search", "self.engine_client.generate"}
        and (ast.unparse(node.func).endswith("beam_search") or "beam" in module.name)
    ]
    assert len(calls) >= 3
    for call in calls:
        assert "priority" not in {word.arg for word in call.keywords}
