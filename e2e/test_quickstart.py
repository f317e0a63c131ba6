"""The quickstart on a real cluster: apply it, wait until it is Ready, talk to the model."""

from __future__ import annotations

from openai import OpenAI

from e2e.kube import conditions
from e2e.service import MODEL, Service
from weir_core.api.labels import ENGINE_CONTAINER, SIDECAR_CONTAINER
from weir_operator.conditions import MODEL as MODEL_READY
from weir_operator.conditions import READY, ROUTER, SPEC
from weir_operator.parts import PARTS

CONDITIONS = {READY, SPEC, MODEL_READY, ROUTER} | {part.condition for part in PARTS}


def test_the_status_says_that_it_is_ready_and_for_which_generation(quickstart: Service) -> None:
    found = quickstart.object()
    states = conditions(found)
    assert set(states) == CONDITIONS
    for state in states.values():
        assert state["status"] == "True", state
        assert state["reason"], state
        assert state["observedGeneration"] == found["metadata"]["generation"], state
    assert found["status"]["readyReplicas"] == 1


def test_kubectl_get_shows_the_address_and_the_readiness(quickstart: Service) -> None:
    out = quickstart.target.kubectl("get", "infs", quickstart.name, "--namespace=weir-e2e")
    header, line = out.splitlines()
    assert header.split()[:2] == ["NAME", "URL"]
    assert set(header.split()) >= {"READY", "REASON", "REPLICAS", "AGE"}
    assert "http://" in line
    assert "True" in line


def test_the_openai_client_streams_a_chat_through_the_service(quickstart: Service) -> None:
    with (
        OpenAI(base_url=f"{quickstart.url()}/v1", api_key="unused", max_retries=0) as client,
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hello!"}],
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        ) as stream,
    ):
        chunks = list(stream)
    assert len(chunks) > 3
    assert {choice.finish_reason for chunk in chunks for choice in chunk.choices} >= {"length"}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 16


def test_the_service_lists_its_model(quickstart: Service) -> None:
    with OpenAI(base_url=f"{quickstart.url()}/v1", api_key="unused") as client:
        assert MODEL in {model.id for model in client.models.list()}


def test_nothing_in_a_replica_runs_as_root_or_can_write_to_its_image(quickstart: Service) -> None:
    pod = quickstart.pod()
    name = pod["metadata"]["name"]
    for container in (SIDECAR_CONTAINER, ENGINE_CONTAINER):
        into = ("exec", name, "--namespace=weir-e2e", f"--container={container}", "--")
        assert quickstart.target.kubectl(*into, "id", "-u").strip() not in ("", "0")
        denied = quickstart.target.kubectl.attempt(*into, "touch", "/written")
        assert "Read-only file system" in denied.err
    account = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    token = quickstart.target.kubectl.attempt(*into, "cat", account)
    assert token.code, "a replica needs no rights in the cluster"
