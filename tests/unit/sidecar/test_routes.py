"""Clients reach the API, and none of the engine's levers."""

from __future__ import annotations

import pytest

from weir_sidecar.routes import HOT, is_open


@pytest.mark.parametrize(
    "path",
    [
        *sorted(HOT),
        "/v1/models",
        "/v1/responses/resp_1/cancel",
        "/v1/audio/transcriptions",
        "/v1/messages",
        "/v2/rerank",
        "/inference/v1/generate",
        "/tokenize",
        "/version",
        "/ping",
        "/invocations",
    ],
)
def test_the_api_is_open(path: str) -> None:
    assert is_open(path)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/metrics",
        "/health",
        "/load",
        "/docs",
        "/openapi.json",
        "/sleep",
        "/wake_up",
        "/reset_prefix_cache",
        "/collective_rpc",
        "/server_info",
        "/update_weights",
        "/pause",
        "/resume",
        "/abort_requests",
        "/start_profile",
        "/scale_elastic_ep",
        "/fault_tolerance/apply",
        "/inference/v1/abort_requests",
        "/load_lora_adapter",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
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
    ],
)
def test_everything_else_is_closed(path: str) -> None:
    assert not is_open(path)
