"""What each path of vLLM's API is, held against the routes of the pinned vLLM."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.core import vllm_sources
from weir_core.wire.paths import POSTS, READS, Api, Endpoint, Kind, Priority, endpoint_of

LEVERS = {
    "/abort_requests",
    "/collective_rpc",
    "/docs",
    "/fault_tolerance/apply",
    "/fault_tolerance/status",
    "/finish_weight_update",
    "/get_world_size",
    "/health",
    "/inference/v1/abort_requests",
    "/init_weight_transfer_engine",
    "/is_paused",
    "/is_scaling_elastic_ep",
    "/is_sleeping",
    "/kv_event_sources",
    "/load",
    "/pause",
    "/release_kv_cache_memory",
    "/reset_encoder_cache",
    "/reset_mm_cache",
    "/reset_prefix_cache",
    "/resume",
    "/scale_elastic_ep",
    "/server_info",
    "/shutdown_weight_transfer_engine",
    "/sleep",
    "/start_draft_weight_update",
    "/start_profile",
    "/start_weight_update",
    "/static",
    "/stop_profile",
    "/tokenizer_info",
    "/update_weight_version",
    "/update_weights",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/wake_up",
    "/weight_checker",
    "/weight_info",
}
"""Routes of vLLM that act on the engine, or tell of it, and are not for clients."""


def _as_listed(path: str) -> str:
    return path.replace("{response_id}", "{id}")


def test_every_route_of_the_pinned_vllm_is_open_or_closed_on_purpose() -> None:
    found = vllm_sources.routes()
    assert len(found) > 50
    for method, path in found:
        listed = _as_listed(path) in (POSTS if method == "POST" else READS)
        assert listed != (path in LEVERS), f"classify {method} {path} of vLLM"


def test_every_listed_path_is_a_route_of_the_pinned_vllm() -> None:
    there = {(method, _as_listed(path)) for method, path in vllm_sources.routes()}
    assert {("POST", path) for path in POSTS} <= there
    assert {("GET", path) for path in READS} <= there
    assert {path for _, path in there} >= LEVERS


def test_no_lever_is_open_by_any_method() -> None:
    for path in LEVERS:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            assert endpoint_of(method, path) is None, path


def test_the_paths_that_heed_the_header_are_those_of_the_sources() -> None:
    """The other handlers take `request.priority`; Messages and Cohere go by chat's handler."""
    assert vllm_sources.callers_of("_get_priority") == {
        "openai/chat_completion/serving.py",
        "openai/completion/serving.py",
        "openai/responses/serving.py",
    }
    for source in ("anthropic/serving.py", "cohere/serving.py"):
        assert source in vllm_sources.callers_of("create_chat_completion")
    heeding = {each.path for each in POSTS.values() if each.priority is Priority.HEADER}
    assert heeding == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/cohere/v2/chat",
    }


def test_the_paths_that_heed_the_body_have_a_field_for_it() -> None:
    by_body = {each.path for each in POSTS.values() if each.priority is Priority.BODY}
    assert vllm_sources.request_fields()["priority"] >= {
        "BatchChatCompletionRequest",
        "ClassificationChatRequest",
        "ClassificationCompletionRequest",
        "CohereEmbedRequest",
        "EmbeddingBatchChatInputRequest",
        "EmbeddingBatchChatRequest",
        "EmbeddingChatInputRequest",
        "EmbeddingChatRequest",
        "EmbeddingCompletionRequest",
        "GenerateRequest",
        "GenerativeScoringRequest",
        "IOProcessorRequest",
        "PoolingChatRequest",
        "PoolingCompletionRequest",
        "RerankRequest",
        "ScoreDataRequest",
        "ScoreQueriesDocumentsRequest",
        "ScoreQueriesItemsRequest",
        "ScoreTextRequest",
        "StructuredDecisionRequest",
    }
    assert {each.path for each in POSTS.values() if each.kind is Kind.POOLING} <= by_body


@pytest.mark.parametrize(
    ("method", "path", "kind", "api"),
    [
        pytest.param("POST", "/v1/chat/completions", Kind.GENERATION, Api.CHAT, id="chat"),
        pytest.param("POST", "/v1/messages", Kind.GENERATION, Api.MESSAGES, id="messages"),
        pytest.param("POST", "/v1/chat/completions/", Kind.GENERATION, Api.CHAT, id="a slash"),
        pytest.param("POST", "/v1/embeddings", Kind.POOLING, Api.OTHER, id="embeddings"),
        pytest.param("POST", "/invocations", Kind.GENERATION, Api.OTHER, id="SageMaker"),
        pytest.param("POST", "/tokenize", Kind.NO_GENERATION, Api.OTHER, id="tokenize"),
        pytest.param(
            "POST", "/v1/messages/count_tokens", Kind.NO_GENERATION, Api.MESSAGES, id="count"
        ),
        pytest.param(
            "POST", "/v1/responses/resp_1/cancel", Kind.NO_GENERATION, Api.RESPONSES, id="cancel"
        ),
        pytest.param("GET", "/v1/responses/resp_1", Kind.NO_GENERATION, Api.RESPONSES, id="fetch"),
        pytest.param("GET", "/v1/models", Kind.NO_GENERATION, Api.OTHER, id="models"),
        pytest.param("GET", "/v1/models/m", Kind.NO_GENERATION, Api.OTHER, id="one model"),
        pytest.param(
            "OPTIONS", "/v1/chat/completions", Kind.NO_GENERATION, Api.CHAT, id="a preflight"
        ),
        pytest.param("GET", "/score", Kind.NO_GENERATION, Api.OTHER, id="a wrong method"),
        pytest.param("POST", "/v1/videos", Kind.GENERATION, Api.OTHER, id="one of a newer vLLM"),
        pytest.param(
            "POST", "/v1/responses/r/new", Kind.GENERATION, Api.RESPONSES, id="new of an API"
        ),
        pytest.param("GET", "/v1/videos/7", Kind.NO_GENERATION, Api.OTHER, id="a newer read"),
    ],
)
def test_says_what_an_open_path_is(method: str, path: str, kind: Kind, api: Api) -> None:
    found = endpoint_of(method, path)
    assert found is not None
    assert (found.kind, found.api) == (kind, api)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/metrics",
        "/openapi.json",
        "/load_lora_adapter",
        "/v1/load_lora_adapter/",
        "/v1",
        "/v1/../sleep",
        "/v1/./load_lora_adapter",
        "/v1//load_lora_adapter",
        "//v1/models",
        "/v1/%6Coad_lora_adapter",
        "/v1/a\\b",
        "/v1/a\nb",
        "/v2/something_new",
        "/inference/v1/something_new",
    ],
)
def test_everything_else_is_closed(path: str) -> None:
    assert endpoint_of("POST", path) is None
    assert endpoint_of("GET", path) is None


@given(st.sampled_from(["GET", "POST", "HEAD"]), st.text())
def test_no_path_makes_it_fail(method: str, path: str) -> None:
    found = endpoint_of(method, path)
    assert found is None or isinstance(found, Endpoint)
